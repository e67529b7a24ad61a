"""Pixels for augmentation: not larger than the model's input, and decoded once for all runs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2

from trainer.images import cache_folder, examined
from trainer.images.cache import VERSION, Decoded, Wanted, open_cache
from trainer.images.read_page import Pixels, Source, fitted, read_page
from trainer.images.reading import DECODERS


@dataclass(frozen=True)
class Limit:
    """The first transform of a list: LongestMaxSize to `longest` pixels with OpenCV's `interpolation`."""

    longest: int
    interpolation: int

    @classmethod
    def of(cls, entries: Sequence[Any]) -> Limit | None:
        """The limit of a list of transforms. None if it starts with another transform and needs all pixels."""
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


def decode(file: Source, limit: Limit | None) -> Pixels:
    """The image, (H, W, 3) uint8 RGB, within `limit`: see `read_page`. Raises OSError or ValueError; the message names
    the file, if it is one."""
    try:
        return read_page(file) if limit is None else read_page(file, limit.longest, limit.interpolation)
    except (OSError, ValueError) as error:  # it was read before: it has changed since
        if not isinstance(file, Path) or getattr(error, "filename", None) is not None:
            raise
        raise OSError(f"{file}: the image can no longer be read: {error}") from None


class Images:
    """The images at `paths`, by row. Picklable: each image loading process has a copy, and all share the cache."""

    def __init__(self, paths: Sequence[Path], limit: Limit | None, cache: Decoded | None = None) -> None:
        self.paths = paths
        self.limit = limit
        self.cache = cache
        self._stamps = [examined.stamp(path) for path in paths]

    def __call__(self, row: int) -> Pixels:
        """The image, (H, W, 3) uint8 RGB, within the limit. Do not write to it: it may be part of the cache."""
        if self.cache is None:
            return decode(self.paths[row], self.limit)
        return self.cache.get(row, lambda: decode(self.paths[row], self.limit), lambda: self.unchanged(row))

    def whole(self, row: int) -> Pixels:
        """The image with the pixels of the file, up to `LARGEST_SIDE`. From the cache if it is within the limit."""
        if self.limit is None or max(examined.shape(self.paths[row])) <= self.limit.longest:
            return self(row)
        return decode(self.paths[row], None)

    def unchanged(self, row: int) -> bool:
        """Whether the file is still the one whose digest is known. If not, no cache may keep its pixels: caches are
        named by the digests."""
        return examined.is_same(self.paths[row], self._stamps[row])

    def close(self) -> None:
        """Close the cache."""
        if self.cache is not None:
            self.cache.close()


def shared(
    paths: Sequence[Path], ids: Sequence[str], limit: Limit | None, gigabytes: float | None, fingerprint: str
) -> Images:
    """Images in the cache of `fingerprint` and `limit`, decoded once for all runs if there is room. `gigabytes` (10^9
    bytes) is the limit of all caches together; the default is `cache_folder.default_limit`."""
    root = cache_folder.root()
    if root is None or gigabytes == 0:
        return Images(paths, limit)
    order = sorted(range(len(ids)), key=ids.__getitem__)
    longest = None if limit is None else limit.longest
    kind = "whole" if limit is None else f"{limit.longest}px-{limit.interpolation}"
    key = hashlib.sha256(repr((VERSION, DECODERS, fingerprint, [ids[row] for row in order])).encode()).hexdigest()
    wanted = Wanted(
        f"{key[:16]}-{kind}",
        lambda: [fitted(examined.shape(paths[row]), longest) for row in order],
        order,
        {
            "data_fingerprint": fingerprint,
            "folder": str(paths[0].parent) if paths else "",
            "size": longest,
        },
    )
    most = cache_folder.default_limit(root) if gigabytes is None else int(gigabytes * 10**9)
    return Images(paths, limit, open_cache(wanted, most))
