"""Open image files as RGB."""

from __future__ import annotations

from pathlib import Path

import cv2
import PIL
from PIL import Image, features

from trainer.images.read_page import read_page

DECODERS = (PIL.__version__, features.version("jpg"), cv2.__version__)
"""Other versions may decode other pixels."""


def open_image(path: Path) -> Image.Image:
    """The page of `read_page` as an RGB image. Raises OSError or ValueError for an unreadable file."""
    return Image.fromarray(read_page(path))
