"""Test-time augmentation: views of a prepared image, made on the device. Predictions are the mean over views."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import interpolate, pad

from trainer.base.errors import ConfigError, nearest

View = Callable[[torch.Tensor], torch.Tensor]
"""uint8 (N, 3, S, S) → the same shape and type."""

PAPER = 255


def turned(times: int, mirrored: bool = False) -> View:
    """One of the eight symmetries of the square: flip left to right, then rotate by `times` × 90°."""

    def view(images: torch.Tensor) -> torch.Tensor:
        return torch.rot90(images.flip(3) if mirrored else images, times, (2, 3))

    return view


def zoomed(factor: float) -> View:
    """Zoom in (above 1: margins are cut off) or out (below 1: white paper around the image)."""

    def view(images: torch.Tensor) -> torch.Tensor:
        side = images.shape[3]
        margin = round(side * (1 - min(factor, 1 / factor)) / 2)
        inside = slice(margin, side - margin)
        if factor > 1:
            return _resized(images[:, :, inside, inside], side)
        return pad(_resized(images, side - 2 * margin), (margin,) * 4, value=PAPER)

    return view


def contrasted(factor: float) -> View:
    """Change contrast by `factor` around white: paper stays white, and ink gets darker (above 1) or lighter."""

    def view(images: torch.Tensor) -> torch.Tensor:
        return (PAPER - (PAPER - images.float()) * factor).clamp(0, 255).round().to(torch.uint8)

    return view


def _resized(images: torch.Tensor, side: int) -> torch.Tensor:
    scaled = interpolate(images.float(), size=(side, side), mode="bilinear", align_corners=False)
    return scaled.round().clamp(0, 255).to(torch.uint8)


_TURNS = [turned(times) for times in range(4)]
_SQUARE = [*_TURNS, *(turned(times, mirrored=True) for times in range(4))]

VIEWS: dict[str, Sequence[View]] = {
    "none": _TURNS[:1],
    "light": [*_TURNS, turned(0, mirrored=True)],
    "standard": _SQUARE,
    "heavy": [*_SQUARE, zoomed(1.15), zoomed(0.87), contrasted(1.3)],
}
"""none: the image. light: its four rotations and its mirror image. standard: the 8 symmetries of the square (D4).
heavy: standard, zoom in, zoom out, and more contrast. The first view is always the image itself."""


def views(name: str) -> Sequence[View]:
    """The views of `name`. Raises ConfigError if `name` is unknown."""
    if name not in VIEWS:
        raise ConfigError(f"--tta {name}: unknown views; {nearest(name, VIEWS)}")
    return VIEWS[name]
