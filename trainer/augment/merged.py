"""Run a list of augmentations faster with the same draws: before upscaling, and with one warp for all movements.

Every transform draws its parameters as in albumentations, in the same order and from the same random streams. So a
sample gets the same augmentation. Only the order of the pixel operations changes:

- A page smaller than `data.img_size` stays small until a step needs the final pixels (noise, sharpening, blur, …).
- Rotations by 90° and flips move whole pixels. The other warps are multiplied into one matrix and interpolated once.
  The list as written would interpolate after each step.
- Steps on the colour of single pixels run on the small page. CLAHE does too, because its tiles scale with the page.

An unknown transform runs in albumentations, on the final pixels. So every list gives correct results.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import albumentations as A
import cv2
import numpy as np

from trainer.augment import light_and_noise
from trainer.augment.warps import PendingPage, colour, finish, lay_out, move, parameters, turn, writable
from trainer.images.read_page import Pixels

ANY_RESOLUTION = (
    A.CLAHE,
    A.ChannelShuffle,
    A.ColorJitter,
    A.HueSaturationValue,
    A.InvertImg,
    A.RGBShift,
    A.RandomBrightnessContrast,
    A.RandomGamma,
    A.ToGray,
)
"""Transforms of colours, or of shares of the page. Scaling, rotation by 90° and flips do not change their effect."""


def merge(pipeline: A.Compose, image: Pixels) -> Pixels:
    """Run `image`, (H, W, 3) uint8 RGB, through `pipeline`, whose random state is set. The result is that of
    `pipeline(image=image)`, except for one interpolation more or less."""
    if pipeline.py_random.random() >= pipeline.p:  # Compose draws before its transforms
        return image
    page = PendingPage(image, image.shape[:2])
    for transform in pipeline.transforms:
        if not transform.should_apply():
            continue
        step = STEPS.get(type(transform))
        if step is not None and step(page, transform):
            continue
        any_resolution = isinstance(transform, ANY_RESOLUTION) or getattr(transform, "any_resolution", False)
        any_resolution = any_resolution and page.pixels.shape[:2] != (1, 1)  # A.ToGray drops two of its dimensions
        if any_resolution:
            lay_out(page)
        else:
            finish(page)
        page.pixels = transform(image=writable(page.pixels), force_apply=True)["image"]
        if not any_resolution:
            page.shape = page.pixels.shape[:2]
    return finish(page)


def _longest_max_size(page: PendingPage, transform: Any) -> bool:
    if isinstance(transform.max_size, list | tuple) or transform.max_size is None or page.matrix is not None:
        return False
    height, width = page.shape
    scale = transform.max_size / max(height, width)
    if scale < 1 or any(page.pads):
        return False
    page.shape = (round(height * scale), round(width * scale))
    page.interpolation = transform.interpolation
    return True


def _pad_if_needed(page: PendingPage, transform: Any) -> bool:
    if transform.border_mode != cv2.BORDER_CONSTANT or page.matrix is not None or any(page.pads):
        return False
    drawn = parameters(page, transform)
    page.pads = tuple(drawn[f"pad_{side}"] for side in ("top", "bottom", "left", "right"))
    page.fill = colour(transform.fill)
    top, bottom, left, right = page.pads
    page.shape = (page.shape[0] + top + bottom, page.shape[1] + left + right)
    return True


def _rotate90(page: PendingPage, transform: Any) -> bool:
    return turn(page, parameters(page, transform)["factor"], mirrored=False)


def _horizontal_flip(page: PendingPage, transform: Any) -> bool:
    return turn(page, 0, mirrored=True)


def _vertical_flip(page: PendingPage, transform: Any) -> bool:
    return turn(page, 2, mirrored=True)


def _transpose(page: PendingPage, transform: Any) -> bool:
    return turn(page, 1, mirrored=True)


def _d4(page: PendingPage, transform: Any) -> bool:
    turns, mirrored = {
        "e": (0, False),
        "r90": (1, False),
        "r180": (2, False),
        "r270": (3, False),
        "v": (2, True),
        "hvt": (3, True),
        "h": (0, True),
        "t": (1, True),
    }[parameters(page, transform)["group_element"]]
    return turn(page, turns, mirrored)


def _rotate(page: PendingPage, transform: Any) -> bool:
    if transform.crop_border or not _mergeable(transform):
        return False
    return move(page, parameters(page, transform)["matrix"], page.shape, transform.fill)


def _affine(page: PendingPage, transform: Any) -> bool:
    if not _mergeable(transform):
        return False
    drawn = parameters(page, transform)
    height, width = (round(float(side)) for side in drawn["output_shape"])
    return move(page, drawn["matrix"], (height, width), transform.fill)


def _perspective(page: PendingPage, transform: Any) -> bool:
    if not _mergeable(transform):
        return False
    drawn = parameters(page, transform)
    drawn_height, drawn_width = drawn["max_height"], drawn["max_width"]
    if not transform.keep_size:
        return move(page, drawn["matrix"], (drawn_height, drawn_width), transform.fill)
    height, width = page.shape
    return move(
        page, np.diag([width / drawn_width, height / drawn_height, 1]) @ drawn["matrix"], page.shape, transform.fill
    )


def _mergeable(transform: Any) -> bool:
    return bool(transform.border_mode == cv2.BORDER_CONSTANT and transform.interpolation == cv2.INTER_LINEAR)


STEPS: dict[type, Callable[[PendingPage, Any], bool]] = {
    A.LongestMaxSize: _longest_max_size,
    A.PadIfNeeded: _pad_if_needed,
    A.RandomRotate90: _rotate90,
    A.HorizontalFlip: _horizontal_flip,
    A.VerticalFlip: _vertical_flip,
    A.Transpose: _transpose,
    A.D4: _d4,
    A.Rotate: _rotate,
    A.Affine: _affine,
    A.Perspective: _perspective,
    A.CLAHE: light_and_noise.clahe,
    A.GaussNoise: light_and_noise.gauss_noise,
    A.Illumination: light_and_noise.illumination,
    A.PlasmaShadow: light_and_noise.plasma_shadow,
}
"""The transforms handled here. A function returns False, without any draw, to leave the work to albumentations."""
