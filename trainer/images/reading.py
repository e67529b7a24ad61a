"""Image files: find them by ID, open them as RGB, check them completely."""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from trainer.base.files import write_text

Pixels = NDArray[np.uint8]
"""(H, W, 3) RGB of an image in memory."""
Shape = tuple[int, int]
"""Height, width, in pixels."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif")
Image.MAX_IMAGE_PIXELS = 400_000_000  # a 1,200-dpi A4 scan has 140 million; more pixels can be a decompression bomb


def open_image(path: Path) -> Image.Image:
    """The image as RGB, with EXIF orientation applied, transparency on white, 16 bits scaled to 8.

    Raises OSError, ValueError or Image.DecompressionBombError for an unreadable image.
    """
    return open_near(path, None)[0]


def open_near(path: Path, longest: int | None) -> tuple[Image.Image, tuple[int, int]]:
    """The same as `open_image`, and the height and width of the file. The decoder may scale a JPEG down, but its longer
    side is still at least `longest` pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # EXIF warnings; real errors raise
        with Image.open(path) as opened:
            whole = _upright(opened)
            if longest is not None and longest < max(opened.size):
                scale = longest / max(opened.size)
                opened.draft(None, (math.ceil(opened.width * scale), math.ceil(opened.height * scale)))
            opened.load()
            turned = opened.getexif().get(ExifTags.Base.Orientation, 1) != 1
            image = ImageOps.exif_transpose(opened) if turned else opened  # exif_transpose would copy it
    if image.width == 0 or image.height == 0:
        raise ValueError("the image has no pixels")
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        if image.mode.startswith("I;16") or values.max(initial=0) > 255:
            values = values / 257
        elif image.mode == "F" and values.max(initial=0) <= 1:
            values = values * 255
        image = Image.fromarray(np.clip(values + 0.5, 0, 255).astype(np.uint8))
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        rgba = image.convert("RGBA")
        paper = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(paper, rgba)
    return (image if image.mode == "RGB" else image.convert("RGB")), whole


def shape(path: Path) -> tuple[int, int]:
    """Height and width of the image in the orientation of `open_image`, from the header. Raises the same errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path) as opened:
            return _upright(opened)


def _upright(opened: Image.Image) -> tuple[int, int]:
    lying = opened.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    return (opened.width, opened.height) if lying else (opened.height, opened.width)


def find_image(root: Path, image_id: str, folder: str = "train") -> Path | None:
    """The file of `image_id` in `root`/`folder` (or in `root`, for a plain ImageFolder). The ID may have no extension.
    None if there is no file, or if the ID points outside the folder."""
    if Path(image_id).is_absolute() or ".." in Path(image_id).parts or not image_id:
        return None
    for base in (root / folder, root):
        for candidate in (base / image_id, *(base / (image_id + suffix) for suffix in SUFFIXES)):
            if candidate.is_file():
                return candidate
    return None


def unreadable(paths: Sequence[Path]) -> Iterator[tuple[int, str]]:
    """Row and reason for every image that cannot be decoded completely.

    A file in $CACHE_DIR remembers a correct set by names, sizes and times, because all runs of a matrix read the same.
    """
    stats = [path.stat() for path in paths]
    top = os.path.commonpath([path.parent for path in paths]) if paths else ""
    # Relative: a container sees the same files under another path.
    listed = [(os.path.relpath(p, top), s.st_size, s.st_mtime_ns) for p, s in zip(paths, stats, strict=True)]
    key = hashlib.sha256(repr(listed).encode())
    cache = os.environ.get("CACHE_DIR")
    passed = Path(cache) / "checked" / key.hexdigest() if cache else None
    if passed is not None and passed.exists():
        return
    good = True
    with ThreadPoolExecutor(max_workers=os.process_cpu_count() if hasattr(os, "process_cpu_count") else None) as pool:
        for row, reason in enumerate(pool.map(_fault, paths)):
            if reason:
                good = False
                yield row, reason
    if good and passed is not None:
        write_text(passed, f"{len(paths)} images\n")


def _fault(path: Path) -> str | None:
    if path.stat().st_size == 0:
        return "the file is empty (0 bytes)"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                # A JPEG at 1/8 size still decodes all its bits, in much less time.
                image.draft(None, (image.width // 8, image.height // 8))
                image.load()
                if image.width == 0 or image.height == 0:
                    return "the image has no pixels"
    except Image.DecompressionBombError:
        return f"the image has too many pixels (limit: {Image.MAX_IMAGE_PIXELS:,})"
    except Exception as error:  # Pillow's decoders raise any error for a broken file
        return f"not a readable image: {' '.join(str(error).split()).replace(str(path), path.name)}"
    return None
