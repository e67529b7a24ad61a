"""Read a page as in the training of the model. The trainer itself reads with this file, and an export has a copy of it.

Needs Pillow, NumPy and OpenCV, and pi-heif for HEIC. Importing it raises Pillow's limit of pixels; `read_page` has a
limit of memory instead.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

with contextlib.suppress(ImportError):  # photos of phones; there are platforms without this package
    import pi_heif

    pi_heif.register_heif_opener()

Pixels = NDArray[np.uint8]
"""(H, W, 3) RGB."""
Shape = tuple[int, int]
"""Height, width, in pixels."""
Source = str | os.PathLike[str] | BinaryIO
"""A path, or a binary file that can seek."""

LARGEST_SIDE = 8000
"""No page gets larger than this, pixels: an A4 page at 680 dpi."""
MOST_MEMORY = 1_500_000_000
"""Largest memory for decoding a page, bytes: RGB up to 187 million pixels (A4 at 1,200 dpi has 140), gray up to 750."""
BYTES = {"1": 1, "L": 1, "P": 2, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}
"""Bytes per pixel in memory, by Pillow's mode. 4 for others."""
DECODER_BYTES = {"WEBP": 10, "AVIF": 4, "JPEG2000": 12}
"""Bytes per pixel that a decoder needs besides, by format (measured)."""
PROGRAMS = ("EPS", "WMF", "EMF")
"""Formats of drawing commands. Pillow runs Ghostscript for them, or has no reader."""
BAND = 256
"""Rows that are converted at once. A multiple of 8, the largest reduction."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a page upright, by the value of its orientation tag."""
DECLARED = {"F": (1, 255, 65535), "I": tuple(2**bits - 1 for bits in range(8, 33))}
"""Values of white that a file may declare, for floats and integers. Another value is only the largest in the page."""
USUAL = {"F": (1, 255, 65535), "I": (255, 65535, 2**31 - 1, 2**32 - 1)}
"""Values of white in files of 32 bits that declare none."""

Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, MOST_MEMORY // 2)


class TooLargeError(ValueError):
    """The page needs more than `MOST_MEMORY`."""


def read_page(source: Source, longest: int | None = None, interpolation: int = cv2.INTER_AREA) -> Pixels:
    """The page, (H, W, 3) uint8 RGB, with its longer side at most `longest` pixels (default: `LARGEST_SIDE`).

    - Of several pages or frames it is the first.
    - It is upright, by the orientation tag (EXIF, TIFF or XMP).
    - What is transparent or not a number is white, like paper. An alpha channel of zeros alone does not count.
    - More than 8 bits are scaled to 8, by the range that the format or the file declares.
    - A page larger than `longest` is first averaged over squares of 2, 4 or 8 pixels, which keeps thin lines. The JPEG
      decoder does this by itself. Then it is resized with OpenCV's `interpolation`.

    Raises OSError or ValueError if the file is not a readable image; TooLargeError is a ValueError.
    """
    with _opened(source) as (file, image):
        orientation = _orientation(file, image)
        whole = _upright(image, orientation)
        if not all(whole):
            raise ValueError("the image has no pixels")
        _check_memory(image)
        height, width = fitted(whole, longest)
        factor = _reduction(image, max(height, width))
        if factor > 1 and image.draft(None, (image.width // factor, image.height // factor)) is not None:
            factor = 1  # the decoder reduces it
        depth = image.tile[0][3] if image.format == "PNG" and image.tile else None
        image.load()
        _scale_transparency(image, depth)
        if image.mode in ("RGBA", "LA") and _is_unset(image.getextrema()):
            image = image.convert("RGB" if image.mode == "RGBA" else "L")
        convert = _eight_bits(image) if image.mode.startswith("I") or image.mode == "F" else _white_paper
        if orientation in TURNS and image.format != "TIFF":  # Pillow turns TIFF itself
            image = image.transpose(TURNS[orientation])
        pixels = _in_bands(image, convert, factor)
    if pixels.shape[:2] != (height, width):
        pixels = np.asarray(cv2.resize(pixels, (width, height), interpolation=interpolation), dtype=np.uint8)
    return pixels if pixels.ndim == 3 else np.asarray(cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB), dtype=np.uint8)


def page_shape(source: Source) -> Shape:
    """Height and width of the upright page in its file, from the header. Raises the errors of `read_page`."""
    with _opened(source) as (file, image):
        return _upright(image, _orientation(file, image))


def has_several_pages(source: Source) -> bool:
    """Whether the file has more pages or frames than `read_page` reads. Previews and the extra pictures of phones (MPO)
    do not count. Raises the errors of `read_page`."""
    with _opened(source) as (_, image):
        with contextlib.suppress(Exception):  # the end of the file, or damage after the first page
            if image.format == "MPO" or not getattr(image, "is_animated", False):
                return False
            for number in itertools.count(1):
                image.seek(number)
                kind, old_kind = (image.tag_v2.get(tag, 0) if image.format == "TIFF" else 0 for tag in (254, 255))
                if not kind & 0b101 and old_kind != 2:  # neither reduced nor a mask
                    return True
        return False


def fitted(shape: Shape, longest: int | None) -> Shape:
    """The shape of a page after `read_page`, rounded as in albumentations."""
    scale = min(1.0, min(longest or LARGEST_SIDE, LARGEST_SIDE) / max(shape))
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


@contextlib.contextmanager
def _opened(source: Source) -> Iterator[tuple[BinaryIO, Any]]:
    """The file and its image. Pillow gets the file and not the path, because it would map an uncompressed TIFF into
    memory with the width and height of the upright page, which scrambles a turned one."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # real errors raise
        file: Any = stack.enter_context(Path(source).open("rb")) if isinstance(source, str | os.PathLike) else source
        try:
            image = stack.enter_context(Image.open(file))
            if image.format in PROGRAMS:
                raise OSError(f"the file has drawing commands ({image.format}) and not pixels; export it as PNG")
            yield file, image
        except UnidentifiedImageError:
            raise OSError("cannot identify the format of the image") from None
        except Image.DecompressionBombError:
            most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
            raise TooLargeError(
                f"the page has more than {most:,} pixels, too many to decode; make it smaller"
            ) from None
        except (OSError, ValueError, MemoryError):
            raise
        except Exception as error:  # Pillow's decoders raise any error for a broken file
            raise OSError(f"{type(error).__name__}: {error}") from error


def _orientation(file: BinaryIO, image: Any) -> int:
    """The orientation tag, 1 to 8. 1 without a tag, or if the tags are damaged."""
    try:
        if image.format == "PNG" and "exif" not in image.info and _tagged_late(file):
            image.load()
        # `PngImageFile.getexif` would decode the page.
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
        return orientation if orientation in TURNS else 1
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError, struct.error):
        return 1


def _tagged_late(file: BinaryIO) -> bool:
    """Whether a PNG may have an orientation after its pixels, so that Pillow knows it only after decoding them."""
    raw: Any = getattr(file, "raw", file)  # without its buffer, which would read the whole file
    before, pixels = raw.tell(), False
    try:
        raw.seek(8)
        while len(head := raw.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"IDAT":
                pixels = True
            elif pixels and kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
                start = raw.read(min(length, 24))
                if kind == b"eXIf" or start.startswith((b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")):
                    return True
                length -= len(start)
            raw.seek(length + 4, os.SEEK_CUR)
        return False
    finally:
        raw.seek(before)


def _upright(image: Any, orientation: int) -> Shape:
    width, height = image.size
    if image.format == "TIFF":  # Pillow reports some of them upright
        tags = image.tag_v2
        width, height = tags[ExifTags.Base.ImageWidth], tags[ExifTags.Base.ImageLength]
    return (width, height) if orientation >= 5 else (height, width)


def _check_memory(image: Image.Image) -> None:
    """A page is twice in memory: as decoded, and turned or converted."""
    own = 2 if image.info.get("progressive") else DECODER_BYTES.get(image.format or "", 0)
    need = image.width * image.height * (2 * BYTES.get(image.mode, 4) + own)
    if need > MOST_MEMORY:
        raise TooLargeError(
            f"the page has {image.width:,} × {image.height:,} pixels, which take {need / 1e9:.1f} GB of memory to "
            f"decode (limit: {MOST_MEMORY / 1e9:g} GB); make it smaller"
        )


def _reduction(image: Image.Image, longest: int) -> int:
    """8, 4, 2 or 1: the largest reduction after which no side is smaller than wanted."""
    scale = min(1.0, longest / max(image.size))
    least = min(side // math.ceil(side * scale) for side in image.size)
    return next(factor for factor in (8, 4, 2, 1) if factor <= least)


def _bands(image: Image.Image) -> Iterator[Image.Image]:
    """The image in parts, so that its conversion needs little memory beside it."""
    for top in range(0, image.height, BAND):
        yield image if image.height <= BAND else image.crop((0, top, image.width, min(top + BAND, image.height)))


def _in_bands(image: Image.Image, convert: Callable[[Image.Image], Image.Image], factor: int) -> Pixels:
    """(H, W) or (H, W, 3) uint8: the converted image, as means of squares of `factor` pixels."""
    height, width = -(-image.height // factor), -(-image.width // factor)
    pixels, top = np.empty((0, 0), dtype=np.uint8), 0
    for band in map(convert, _bands(image)):
        part = np.asarray(band.reduce(factor) if factor > 1 else band)
        if not top:
            pixels = np.empty((height, width, *part.shape[2:]), dtype=np.uint8)
        pixels[top : top + len(part)] = part
        top += len(part)
    return pixels


def _scale_transparency(image: Image.Image, depth: Any) -> None:
    """Bring the transparent colour of a PNG to the depth of its pixels in memory."""
    colour = image.info.get("transparency")
    if depth in ("L;2", "L;4") and isinstance(colour, int):
        image.info["transparency"] = colour * {"L;2": 85, "L;4": 17}[depth]
    elif depth == "RGB;16B" and isinstance(colour, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in colour)


def _is_unset(extrema: Any) -> bool:
    """Whether a page that shows something has an alpha channel of zeros: some programs store it so, as unused."""
    *colours, alpha = extrema
    return alpha == (0, 0) and any(lowest != highest for lowest, highest in colours)


def _white_paper(image: Image.Image) -> Image.Image:
    """An image of up to 8 bits, transparent on white, as L or RGB."""
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)
    elif image.mode == "LAB":
        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB") or image
    wanted = "L" if image.mode in ("1", "L") else "RGB"
    return image if image.mode == wanted else image.convert(wanted)


def _eight_bits(image: Any) -> Callable[[Image.Image], Image.Image]:
    """A function from a part of `image`, which has more than 8 bits per pixel, to L."""
    tags: Any = image.tag_v2 if image.format == "TIFF" else {}
    unsigned = image.mode == "I" and tags.get(ExifTags.Base.SampleFormat, (1,)) == (1,)
    lowest, highest = _range(image, tags, unsigned)
    clear = image.info.get("transparency")

    def converted(part: Image.Image) -> Image.Image:
        values = _values(part, unsigned)
        with np.errstate(all="ignore"):
            gray = (values.astype(np.float64) - lowest) * 255 / (highest - lowest)
        if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:  # Pillow inverts only up to 8 bits
            gray = 255 - gray
        gray[np.isnan(gray) | (values == clear if isinstance(clear, int) else False)] = 255
        return Image.fromarray(np.clip(gray + 0.5, 0, 255).astype(np.uint8))

    return converted


def _values(image: Image.Image, unsigned: bool) -> NDArray[Any]:
    values = np.asarray(image)
    return values.view(np.uint32) if unsigned else values  # Pillow has only signed integers of 32 bits


def _range(image: Image.Image, tags: Any, unsigned: bool) -> tuple[float, float]:
    """The values of black and white: as declared by the file; for 16 bits all of them; for 32 bits up to the first
    usual white that is not below the page. Floats may exceed it by as much again, because filters overshoot."""
    kind = image.mode[0]
    for high, low in ((_first(tags.get(high)), _first(tags.get(low))) for high, low in ((341, 340), (281, 280))):
        if high is not None and high in DECLARED[kind]:
            return (-high - 1 if low == -high - 1 else 0.0), high
    bits = int(_first(tags.get(ExifTags.Base.BitsPerSample)) or 32)
    if image.mode.startswith("I;16") or (tags and bits <= 16):
        return 0.0, 2.0 ** (min(bits, 16) - (image.mode == "I")) - 1  # Pillow reads signed ones as I
    if image.format in ("PNG", "PPM", "JPEG2000"):
        return 0.0, 65535.0
    largest = 0.0
    for values in (_values(band, unsigned) for band in _bands(image)):
        largest = max(largest, float(values[np.isfinite(values)].max(initial=0)))
    usual = (white for white in USUAL[kind] if largest <= white * (2 if kind == "F" else 1))
    return 0.0, float(next(usual, largest))


def _first(value: Any) -> float | None:
    value = value[0] if isinstance(value, tuple) and value else value
    return float(value) if isinstance(value, (int, float)) else None
