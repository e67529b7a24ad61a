"""Image files: open them as RGB, check them completely."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import PIL
from PIL import Image, features

from trainer.base import cores
from trainer.base.files import write_text
from trainer.images.digests import name_of_set
from trainer.images.read_page import TooLargeError, has_several_pages, read_page

NAMED = 3
"""Files that a note names."""
DECODERS = (PIL.__version__, features.version("jpg"), cv2.__version__)
"""Other versions may decode other pixels."""


def open_image(path: Path) -> Image.Image:
    """The page of `read_page` as an RGB image. Raises OSError or ValueError for an unreadable file."""
    return Image.fromarray(read_page(path))


def unreadable(paths: Sequence[Path]) -> Iterator[tuple[int, str]]:
    """Row and reason for every image that cannot be decoded completely. Prints a note if files have several pages.

    A file in $CACHE_DIR remembers a correct set by names, sizes and times, because all runs of a matrix read the same.
    """
    name = name_of_set(paths, [path.stat() for path in paths], DECODERS)
    cache = os.environ.get("CACHE_DIR")
    passed = Path(cache) / "checked" / f"{name}.json" if cache else None
    if passed is not None and passed.exists():
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # another program's file
            _note_pages(json.loads(passed.read_text(encoding="utf-8"))["several_pages"])
            return
    good, several = True, []
    with ThreadPoolExecutor(max_workers=cores.available()) as pool:
        for row, (reason, pages) in enumerate(pool.map(_examined, paths)):
            if reason:
                good = False
                yield row, reason
            elif pages:
                top = Path(os.path.commonpath([path.parent for path in paths]))
                several.append(os.path.relpath(paths[row], top.parent))
    _note_pages(several)
    if good and passed is not None:
        write_text(passed, json.dumps({"images": len(paths), "several_pages": several}) + "\n")


def _note_pages(files: Sequence[str]) -> None:
    if files:
        named = ", ".join(files[:NAMED]) + (", …" if len(files) > NAMED else "")
        have = "1 file has" if len(files) == 1 else f"{len(files)} files have"
        print(f"note: {have} several pages or frames; only the first of each is read: {named}")


def _examined(path: Path) -> tuple[str | None, bool]:
    """The reason why the image cannot be read, and whether its file has several pages."""
    if path.stat().st_size == 0:
        return "the file is empty (0 bytes)", False
    try:
        read_page(path, longest=1)  # a JPEG at 1/8 size still decodes all its bits, in much less time
        return None, has_several_pages(path)
    except TooLargeError as error:
        return str(error), False
    except Exception as error:  # Pillow's decoders raise any error for a broken file
        return f"not a readable image: {' '.join(str(error).split()).replace(str(path), path.name)}", False
