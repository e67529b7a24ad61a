"""Fixed, seeded, corrupted copies of the validation images: effects of scanners, fax machines, phones and hands.

They simulate real conditions, not one test set. No training augmentation of the trainer has the kinds in `HELD_OUT`.
So the score on the copies also measures unseen corruptions.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from typing import Any

import albumentations as A
import cv2
import numpy as np

from trainer.images.read_page import Pixels

Generator = np.random.Generator

HELD_OUT = ("jpeg", "page_curl")
"""Kinds that are in no augmentation of `trainer/config/conf/data`."""
HELD_OUT_TRANSFORMS = (
    "ElasticTransform",
    "GridDistortion",
    "GridElasticDeform",
    "ImageCompression",
    "OpticalDistortion",
    "PiecewiseAffine",
    "ThinPlateSpline",
)
"""The albumentations transforms with these kinds."""


class Corruption:
    """Every image is rotated or flipped (one of the 8 symmetries of the square) and gets one to three of `KINDS`."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def kinds(self, image_id: str) -> tuple[str, ...]:
        """The kinds for the image, in the order of their application: page, light, camera, file."""
        return self._plan(image_id)[1]

    def __call__(self, image: Pixels, image_id: str) -> Pixels:
        """`image`: (H, W, 3) uint8 RGB. Returns the corrupted copy, of about the same size. Equal seeds and IDs give
        equal copies."""
        generator, kinds, turns, flipped = self._plan(image_id)
        out = np.rot90(image, turns)
        out = np.ascontiguousarray(out[:, ::-1] if flipped else out)
        for kind in kinds:
            out = KINDS[kind](out, generator)
        return out

    def _plan(self, image_id: str) -> tuple[Generator, tuple[str, ...], int, bool]:
        # By ID, not by row, so that another order of train.csv does not change the copies.
        digest = hashlib.sha256(image_id.encode()).digest()
        generator = np.random.default_rng((self.seed, int.from_bytes(digest[:8])))
        count = int(generator.choice([1, 2, 3], p=[0.25, 0.5, 0.25]))
        chosen = generator.choice(len(KINDS), size=count, replace=False)
        names = tuple(name for place, name in enumerate(KINDS) if place in chosen)
        return generator, names, int(generator.integers(4)), bool(generator.integers(2))


def _done(transform: Any, image: Pixels, generator: Generator) -> Pixels:
    """An albumentations transform that draws only from `generator`."""
    transform.set_random_state(generator, random.Random(int(generator.integers(2**63))))
    out: Pixels = transform(image=image)["image"]
    return out


def _beyond(generator: Generator) -> tuple[float, float, float]:
    """The background of the page: a scanner's white lid or, equally often, a dark to light table."""
    if generator.random() < 0.5:
        return (255.0, 255.0, 255.0)
    grey = generator.uniform(20, 200)
    red, green, blue = np.clip(grey + generator.normal(0, 12, 3), 0, 255)
    return (float(red), float(green), float(blue))


def _lit(image: Pixels, factor: Any, added: Any = 0) -> Pixels:
    """image · factor + added, rounded, within 0 to 255."""
    values = image * np.asarray(factor, dtype=np.float32) + np.asarray(added, dtype=np.float32)
    return np.clip(values, 0, 255, out=values).round().astype(np.uint8)


def _page_curl(image: Pixels, generator: Generator) -> Pixels:
    """Bend the page in one to two waves along one axis. Text lines move by up to 4 % of the other side, and slopes are
    darker."""
    if generator.random() < 0.5:
        return np.ascontiguousarray(_bend(image.transpose(1, 0, 2), generator).transpose(1, 0, 2))
    return _bend(image, generator)


def _bend(image: Pixels, generator: Generator) -> Pixels:
    height, width = image.shape[:2]
    across = np.linspace(0, 2 * np.pi * generator.uniform(0.5, 1.5), width) + generator.uniform(0, 2 * np.pi)
    shift = generator.uniform(0.015, 0.04) * height * np.sin(across)
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    bent = cv2.remap(
        np.ascontiguousarray(image),
        columns,
        rows + shift.astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=_beyond(generator),
    )
    light = 1 - generator.uniform(0.1, 0.35) * (0.5 + 0.5 * np.cos(across))
    return _lit(np.asarray(bent, dtype=np.uint8), light[:, None])


def _perspective(image: Pixels, generator: Generator) -> Pixels:
    """Perspective: move the corners by 5 to 12 % of the sides. A line of one pixel stays as it is: albumentations would
    divide by its moved side, which can be zero."""
    if min(image.shape[:2]) == 1:
        return image.copy()
    transform = A.Perspective(scale=(0.05, 0.12), fit_output=True, fill=_beyond(generator), p=1)
    return _done(transform, image, generator)


def _tilt(image: Pixels, generator: Generator) -> Pixels:
    """Rotate by 4 to 25 degrees."""
    angle = float(generator.uniform(4, 25) * generator.choice([-1, 1]))
    transform = A.Affine(rotate=(angle, angle), fit_output=True, fill=_beyond(generator), p=1)
    return _done(transform, image, generator)


def _occlusion(image: Pixels, generator: Generator) -> Pixels:
    """Put one to three objects (notes, stamps, fingers) on the page. Each side is 12 to 35 % of the page's."""
    out = image.copy()
    height, width = out.shape[:2]
    for _ in range(int(generator.integers(1, 4))):
        half_x, half_y = (int(side * generator.uniform(0.06, 0.175)) + 1 for side in (width, height))
        centre = (int(generator.integers(width)), int(generator.integers(height)))
        colour = tuple(float(c) for c in generator.integers(0, 256, 3))
        if generator.random() < 0.5:
            corners = [(centre[0] - half_x, centre[1] - half_y), (centre[0] + half_x, centre[1] + half_y)]
            cv2.rectangle(out, corners[0], corners[1], colour, thickness=cv2.FILLED)
        else:
            angle = float(generator.uniform(0, 180))
            cv2.ellipse(out, centre, (half_x, half_y), angle, 0, 360, colour, thickness=cv2.FILLED)
    return out


def _shadow(image: Pixels, generator: Generator) -> Pixels:
    """A shadow with a soft edge: 35 to 70 % of the light remains on one side."""
    height, width = image.shape[:2]
    angle, edge = generator.uniform(0, 2 * np.pi), generator.uniform(-0.35, 0.35)
    softness = generator.uniform(0.02, 0.25)
    columns, rows = (np.linspace(-0.5, 0.5, side, dtype=np.float32) for side in (width, height))
    depth = np.clip((columns * np.cos(angle) + rows[:, None] * np.sin(angle) - edge) / softness, 0, 1)
    light = 1 - (1 - generator.uniform(0.35, 0.7)) * depth
    return _lit(image, light[..., None])


def _colour_loss(image: Pixels, generator: Generator) -> Pixels:
    """A grey copy, a faded one, or one under coloured light."""
    choice = generator.integers(3)
    if choice == 0:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        return np.repeat(grey[..., None], 3, axis=2)
    if choice == 1:
        left, lift = generator.uniform(0.3, 0.6), generator.uniform(60, 100)
        return _lit(image, left, lift)
    return _lit(image, generator.uniform(0.6, 1.1, 3))


def _blur(image: Pixels, generator: Generator) -> Pixels:
    """Defocus or motion blur, by 0.15 to 0.45 % of the longer side."""
    radius = max(image.shape[:2]) * generator.uniform(0.0015, 0.0045)
    if generator.random() < 0.5:
        return np.asarray(cv2.GaussianBlur(image, (0, 0), max(0.6, radius)), dtype=np.uint8)
    length = max(3, 2 * int(radius * 2) + 1)
    return _done(A.MotionBlur(blur_limit=(length, length), p=1), image, generator)


def _noise(image: Pixels, generator: Generator) -> Pixels:
    """Sensor noise, σ 10 to 35 of 255, in each channel or only in brightness."""
    shape = image.shape if generator.random() < 0.5 else (*image.shape[:2], 1)
    noise = generator.standard_normal(shape, dtype=np.float32) * np.float32(generator.uniform(10, 35))
    return _lit(image, 1, noise)


def _jpeg(image: Pixels, generator: Generator) -> Pixels:
    """JPEG with quality 8 to 25, as from a messenger app."""
    quality = int(generator.integers(8, 26))
    return _done(A.ImageCompression(quality_range=(quality, quality), p=1), image, generator)


KINDS: dict[str, Callable[[Pixels, Generator], Pixels]] = {
    "page_curl": _page_curl,
    "perspective": _perspective,
    "tilt": _tilt,
    "occlusion": _occlusion,
    "shadow": _shadow,
    "colour_loss": _colour_loss,
    "blur": _blur,
    "noise": _noise,
    "jpeg": _jpeg,
}
"""In the order of their application. Orientation is not a kind: every copy has one."""
