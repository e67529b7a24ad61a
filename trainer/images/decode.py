"""The pixels of images as augmentation needs them: no larger than the model sees, and decoded once for all runs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from trainer.images import cache_folder, reading
from trainer.images.cache import VERSION, Decoded, Wanted, open_cache
from trainer.images.reading import Pixels, Shape


@dataclass(frozen=True)
class Limit:
    """What a list of transforms begins with: LongestMaxSize to `longest` pixels by OpenCV's `interpolation`."""

    longest: int
    interpolation: int

    @classmethod
    def of(cls, entries: Sequence[Any]) -> Limit | None:
        """None where the list begins otherwise, so that it has to see every pixel."""
        entry = entries[0] if entries else None
        if not (isinstance(entry, dict) and "LongestMaxSize" in entry):
            return None
        arguments = entry["LongestMaxSize"] or {}
        longest = arguments.get("max_size")
        if (
            not isinstance(longest, int)
            or arguments.get("p", 1) < 1
            or set(arguments) - {"max_size", "interpolation", "p"}
        ):
            return None
        return cls(longest, int(arguments.get("interpolation", cv2.INTER_LINEAR)))

    def fitted(self, shape: Shape) -> Shape:
        """The shape of an image that is no longer than `longest`, rounded as albumentations does."""
        scale = min(1.0, self.longest / max(shape))
        return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def decode(path: Path, limit: Limit | None) -> Pixels:
    """(H, W, 3) uint8 RGB. A JPEG that is larger than `limit` is scaled inside its decoder, to an eighth, a quarter or
    a half, which averages what a linear resize would skip, and resized from there.

    Raises what `image_files.open_image` raises.
    """
    if limit is None:
        return np.asarray(reading.open_image(path))
    image, whole = reading.open_near(path, limit.longest)
    height, width = limit.fitted(whole)
    pixels: Pixels = np.asarray(image)
    if pixels.shape[:2] != (height, width):
        pixels = np.asarray(cv2.resize(pixels, (width, height), interpolation=limit.interpolation), dtype=np.uint8)
    return pixels


class Images:
    """The images at `paths`, row by row. Picklable: processes that load images get a copy each, and share the cache."""

    def __init__(self, paths: Sequence[Path], limit: Limit | None, cache: Decoded | None = None) -> None:
        self.paths = paths
        self.limit = limit
        self.cache = cache

    def __call__(self, row: int) -> Pixels:
        """(H, W, 3) uint8 RGB, within the limit. Not to be written to: it may be the cache itself."""
        if self.cache is None:
            return decode(self.paths[row], self.limit)
        return self.cache.get(row, lambda: decode(self.paths[row], self.limit))

    def whole(self, row: int) -> Pixels:
        """The same with every pixel of the file; from the cache where the limit took none away."""
        if self.limit is None or max(reading.shape(self.paths[row])) <= self.limit.longest:
            return self(row)
        return decode(self.paths[row], None)

    def close(self) -> None:
        """Let go of the cache."""
        if self.cache is not None:
            self.cache.close()


def shared(
    paths: Sequence[Path], ids: Sequence[str], limit: Limit | None, gigabytes: float | None, fingerprint: str
) -> Images:
    """Images that are decoded once for all runs of `fingerprint` and `limit`, as far as the cache has room: `gigabytes`
    (10^9 bytes) for all caches together, or as `cache_folder.default_limit` says."""
    root = cache_folder.root()
    if root is None or gigabytes == 0:
        return Images(paths, limit)
    order = sorted(range(len(ids)), key=ids.__getitem__)
    whole = [reading.shape(paths[row]) for row in order]
    shapes = whole if limit is None else [limit.fitted(shape) for shape in whole]
    kind = "whole" if limit is None else f"{limit.longest}px-{limit.interpolation}"
    key = hashlib.sha256(repr((VERSION, fingerprint, [ids[row] for row in order], shapes)).encode()).hexdigest()
    wanted = Wanted(
        f"{key[:16]}-{kind}",
        shapes,
        order,
        {
            "data_fingerprint": fingerprint,
            "folder": str(paths[0].parent) if paths else "",
            "size": limit and limit.longest,
        },
    )
    most = cache_folder.default_limit(root) if gigabytes is None else int(gigabytes * 10**9)
    return Images(paths, limit, open_cache(wanted, most))
