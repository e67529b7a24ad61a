"""Teachers for distillation: trained classifiers. The student learns their mean probabilities and the labels.

Teachers and student see the same augmented and mixed images (Beyer et al. 2022: a consistent teacher).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import interpolate

from trainer.base.errors import ConfigError
from trainer.models import build, ensemble_file


@dataclass(frozen=True)
class Teacher:
    """A frozen classifier."""

    net: nn.Module
    img_size: int
    temperature: float
    order: list[int]
    """Index of each of the student's classes in the teacher's classes."""
    share: float
    """Weight in the mean of all teachers. The weights sum to 1."""
    name: str
    """The path in `training.teachers`. The members of an ensemble have the same path."""
    split_fingerprint: str | None
    """Fingerprint of its validation split, if known."""
    described: str = ""
    """See `ensemble_file.taught_by`."""


def read(paths: Sequence[str]) -> list[tuple[str, ensemble_file.Loaded, float]]:
    """The checkpoints of `training.teachers`, each with its path there and its share. All paths have equal shares.
    Members of an ensemble.json divide its share by their weights. Raises ConfigError."""
    members: list[tuple[str, ensemble_file.Loaded, float]] = []
    for name in paths:
        path = Path(name).expanduser()
        try:
            if path.suffix == ".json":
                ensemble = ensemble_file.read(path)
                shares = zip(ensemble.parts, ensemble.shares, strict=True)
                members += [(name, part, share / len(paths)) for part, share in shares]
            else:
                members.append((name, ensemble_file.load(path), 1 / len(paths)))
        except ConfigError as error:
            raise ConfigError(f"training.teachers: {error}") from None
    return members


def load(
    paths: Sequence[str], class_names: Sequence[str], on: torch.device, channels_last: bool, split_fingerprint: str = ""
) -> list[Teacher]:
    """The teachers on the device `on`, for a student with this validation split. Raises ConfigError if a file is
    missing or has other classes."""
    teachers = []
    for path, part, share in read(paths):
        member = part.checkpoint
        if set(member.class_names) != set(class_names):
            odd = ", ".join(sorted(set(member.class_names) ^ set(class_names)))
            raise ConfigError(
                f"training.teachers: a {member.settings.model.name} has other classes than the data; "
                f"the difference is: {odd}"
            )
        size = member.preprocessing["img_size"]
        bare = build.restore(member.settings.model, len(class_names), size, member.state_dict)
        mean, std = tuple(member.preprocessing["mean"]), tuple(member.preprocessing["std"])
        net = build.Normalized(bare, mean, std, channels_last).to(on).eval().requires_grad_(False)
        order = [member.class_names.index(name) for name in class_names]
        split = member.validation.get("split_fingerprint")
        described = ensemble_file.taught_by(member, part.sha256, split_fingerprint)
        teachers.append(Teacher(net, size, member.temperature, order, share, path, split, described))
    return teachers


def saw_validation(teachers: Sequence[Teacher], split_fingerprint: str) -> list[str]:
    """The names of teachers that may have trained on the student's validation images, because their split is different
    or unknown."""
    return list(dict.fromkeys(t.name for t in teachers if t.split_fingerprint != split_fingerprint))


@torch.no_grad()
def probabilities(teachers: Sequence[Teacher], images: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W) uint8 → (N, classes): the teachers' mean probabilities. Each teacher has its own image size,
    normalisation and temperature."""
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
