"""What the members of an ensemble say of the images that they held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from trainer.models.checkpoint import Checkpoint
from trainer.models.ensemble_file import Member
from trainer.scores.calibration import tempered


@dataclass(frozen=True)
class SharedValidation:
    """What M members say of the same N images: targets (N,), and of each member (N, classes) probabilities at its
    temperature, of the clean and, where there are, of the corrupted copies. Classes are in the first member's order."""

    ids: list[str]
    targets: torch.Tensor
    clean: list[torch.Tensor]
    corrupted: list[torch.Tensor] | None
    split_fingerprint: str
    """Of the split; where folds were joined to all training images, of the whole cut into folds."""
    folds_fingerprint: str | None


def validation(members: Sequence[Member]) -> tuple[SharedValidation | None, str]:
    """What the members say of the images that they held out, or None and the reason why it cannot be compared."""
    parts = [part.checkpoint for member in members for part in member.parts]
    if any(not part.validation for part in parts):
        return None, "a member carries no validation predictions"
    gaps = [
        f"fold {', '.join(map(str, member.missing()))} of {member.name} is missing (there is {member.parts[0].path})"
        for member in members
        if member.missing()
    ]
    joined = [member for member in members if member.folds]
    if len({part.validation.get("folds_fingerprint") for part in parts}) > 1 and joined:
        plain = next((member.name for member in members if not member.folds), None)
        other = f"{plain} is no fold of theirs" if plain else "they were made of other images or by another cut"
        return None, f"the members' folds do not belong together: {other}"
    if gaps:
        return None, "; ".join(gaps)
    if not joined and len({part.validation["split_fingerprint"] for part in parts}) > 1:
        return (
            None,
            "the members were validated on different splits: an image held out by one was trained on by another",
        )
    first = parts[0]
    held = [_pooled(member, first.class_names) for member in members]
    ids, targets = held[0].ids, held[0].targets
    for member, own in zip(members, held, strict=True):
        if set(own.ids) != set(ids):
            return None, f"{member.name} held out other images than {members[0].name}"
    clean = [own.of(own.clean, ids) for own in held]
    corrupted = [own.of(own.corrupted, ids) for own in held if own.corrupted is not None]
    name = first.validation["folds_fingerprint" if joined else "split_fingerprint"]
    return (
        SharedValidation(
            ids,
            targets,
            clean,
            corrupted if len(corrupted) == len(held) else None,
            name,
            first.validation.get("folds_fingerprint"),
        ),
        "",
    )


@dataclass(frozen=True)
class _Held:
    """The images that a member held out, and its probabilities (N, classes)."""

    ids: list[str]
    targets: torch.Tensor
    clean: torch.Tensor
    corrupted: torch.Tensor | None

    def of(self, probabilities: torch.Tensor, ids: Sequence[str]) -> torch.Tensor:
        position = {image_id: row for row, image_id in enumerate(self.ids)}
        return probabilities[[position[image_id] for image_id in ids]]


def _pooled(member: Member, class_names: Sequence[str]) -> _Held:
    """The parts' held-out images, one after another, with their classes in the order of `class_names`."""
    ids: list[str] = []
    targets, clean, corrupted = [], [], []
    for part in member.parts:
        held, order = part.checkpoint.validation, class_order(class_names, part.checkpoint)
        ids += held["ids"]
        targets.append(torch.tensor([order.index(int(target)) for target in held["targets"]], dtype=torch.int64))
        clean.append(tempered(held["probabilities"], part.checkpoint.temperature)[:, order])
        if "corrupted" in held:
            corrupted.append(tempered(held["corrupted"], part.checkpoint.temperature)[:, order])

    def whole(found: list[torch.Tensor]) -> torch.Tensor | None:
        return torch.cat(found) if len(found) == len(member.parts) else None

    return _Held(ids, torch.cat(targets), torch.cat(clean), whole(corrupted))


def class_order(class_names: Sequence[str], member: Checkpoint) -> list[int]:
    """Where each of `class_names` stands in the checkpoint."""
    return [member.class_names.index(name) for name in class_names]
