"""Teachers of a student: trained classifiers whose mean probabilities it learns beside the labels.

They see the very images that the student sees, augmented and mixed (Beyer et al. 2022: a consistent teacher).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import interpolate

from trainer.base.errors import ConfigError
from trainer.models import build, checkpoint, ensemble_file


@dataclass(frozen=True)
class Teacher:
    """A frozen classifier."""

    net: nn.Module
    img_size: int
    temperature: float
    order: list[int]
    """Where the student's classes stand among its own."""
    share: float
    """In the mean of all teachers; they add up to 1."""
    name: str
    """As `training.teachers` has it; the members of an ensemble have the same."""
    split_fingerprint: str | None
    """Of the split that it was validated on, where that is known."""


def read(paths: Sequence[str]) -> list[tuple[str, checkpoint.Checkpoint, float]]:
    """The checkpoints behind `training.teachers`, with the path that names each and their shares: every path counts
    alike, the members of an ensemble.json within it by their weights. Raises ConfigError."""
    found: list[tuple[str, checkpoint.Checkpoint, float]] = []
    for name in paths:
        path = Path(name).expanduser()
        try:
            if path.suffix == ".json":
                made = ensemble_file.read(path)
                shares = zip(made.parts, made.shares, strict=True)
                found += [(name, part.checkpoint, share / len(paths)) for part, share in shares]
            else:
                found.append((name, checkpoint.load(path), 1 / len(paths)))
        except ConfigError as error:
            raise ConfigError(f"training.teachers: {error}") from None
    return found


def load(paths: Sequence[str], class_names: Sequence[str], on: torch.device, channels_last: bool) -> list[Teacher]:
    """The teachers on the device `on`. Raises ConfigError where one is missing or knows other classes."""
    teachers = []
    for path, member, share in read(paths):
        if set(member.class_names) != set(class_names):
            odd = ", ".join(sorted(set(member.class_names) ^ set(class_names)))
            raise ConfigError(
                f"training.teachers: a {member.settings.model.name} was trained on other classes than the data have: "
                f"they differ in {odd}"
            )
        size = member.preprocessing["img_size"]
        bare = build.restore(member.settings.model, len(class_names), size, member.state_dict)
        mean, std = tuple(member.preprocessing["mean"]), tuple(member.preprocessing["std"])
        net = build.Normalized(bare, mean, std, channels_last).to(on).eval().requires_grad_(False)
        order = [member.class_names.index(name) for name in class_names]
        split = member.validation.get("split_fingerprint")
        teachers.append(Teacher(net, size, member.temperature, order, share, path, split))
    return teachers


def saw_validation(teachers: Sequence[Teacher], split_fingerprint: str) -> list[str]:
    """The names of those that may have trained on the validation images of the student's split: their own split is
    another, or is not known."""
    return list(dict.fromkeys(t.name for t in teachers if t.split_fingerprint != split_fingerprint))


@torch.no_grad()
def probabilities(teachers: Sequence[Teacher], images: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W) uint8 → (N, classes): the teachers' mean, each after its own size, normalisation and temperature."""
    total: torch.Tensor | float = 0.0
    for teacher in teachers:
        logits = teacher.net(_sized(images, teacher.img_size))
        total = total + teacher.share * (logits / teacher.temperature).softmax(1)[:, teacher.order]
    assert isinstance(total, torch.Tensor)
    return total


def _sized(images: torch.Tensor, side: int) -> torch.Tensor:
    if images.shape[-1] == side:
        return images
    return interpolate(images.float(), (side, side), mode="bilinear", antialias=True).clamp(0, 255)
