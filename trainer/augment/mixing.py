"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019), drawn once per optimizer step from (seed, step).

The partner of an image is the next image of the step; the partner of the last is the first. So partners do not depend
on micro-batches. With several devices each device mixes its own images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from trainer.config.schema import TrainingConfig

_STREAM = 0x317D
"""Separates these draws from the augmentation's draws by (seed, epoch, row)."""


@dataclass(frozen=True)
class Mix:
    """The mixing of the images of a step with their partners."""

    share: float
    """Share of the image itself and of its target."""
    box: tuple[int, int, int, int] | None = None
    """Top, bottom, left, right (pixels) of the partner's rectangle. None: blend the whole image."""


def draw(training: TrainingConfig, seed: int, step: int, side: int) -> Mix | None:
    """The mixing in optimizer step `step` for images of `side` pixels. None: no mixing."""
    kinds = [kind for kind in ("mixup", "cutmix") if getattr(training, kind) > 0]
    generator = np.random.default_rng((seed, step, _STREAM))
    if not kinds or generator.random() >= training.mix_probability:
        return None
    kind = kinds[int(generator.integers(len(kinds)))]
    alpha = getattr(training, kind)
    share = float(generator.beta(alpha, alpha))
    if kind == "mixup":
        return Mix(share)
    half = side * math.sqrt(1 - share) / 2
    ends = [
        min(side, max(0, round(float(end))))
        for centre in generator.uniform(0, side, 2)
        for end in (centre - half, centre + half)
    ]
    top, bottom, left, right = ends
    return Mix(1 - (bottom - top) * (right - left) / side**2, (top, bottom, left, right))


def images(mix: Mix, own: torch.Tensor, partners: torch.Tensor) -> torch.Tensor:
    """Mix images and partners, both (N, 3, H, W) uint8 → (N, 3, H, W) uint8."""
    if mix.box is None:
        return torch.lerp(partners.float(), own.float(), mix.share).round_().to(torch.uint8)
    top, bottom, left, right = mix.box
    joined = own.clone()
    joined[..., top:bottom, left:right] = partners[..., top:bottom, left:right]
    return joined
