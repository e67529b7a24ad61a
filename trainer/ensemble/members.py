"""Validation predictions of the members of an ensemble on common held-out images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from trainer.models.checkpoint import Checkpoint
from trainer.models.ensemble_file import Member
from trainer.scores.calibration import tempered


@dataclass(frozen=True)
class SharedValidation:
    """Predictions of M members on the same N images: targets (N,), and per member calibrated probabilities (N, classes)
    of the clean and perhaps the corrupted copies. Classes are in the first member's order."""

    ids: list[str]
    targets: torch.Tensor
    clean: list[torch.Tensor]
    corrupted: list[torch.Tensor] | None
    split_fingerprint: str
    """Fingerprint of the split. For joined folds: of the whole cut into folds."""
    folds_fingerprint: str | None


def validation(members: Sequence[Member]) -> tuple[SharedValidation | None, str]:
    """The members' predictions on their held-out images, or None and the reason if they cannot be compared."""
    parts = [part.checkpoint for member in members for part in member.parts]
    if any(not part.validation for part in parts):
        return None, "a member has no validation predictions"
    gaps = [
        f"fold {', '.join(map(str, member.missing()))} of {member.name} is missing (found: {member.parts[0].path})"
        for member in members
        if member.missing()
    ]
    joined = [member for member in members if member.folds]
    if len({part.validation.get("folds_fingerprint") for part in parts}) > 1 and joined:
        plain = next((member.name for member in members if not member.folds), None)
        other = f"{plain} is not one of their folds" if plain else "they have other images or another cut into folds"
        return None, f"the members' folds do not match: {other}"
    if gaps:
        return None, "; ".join(gaps)
    if not joined and len({part.validation["split_fingerprint"] for part in parts}) > 1:
        return (
            None,
            "the members have different splits: one member trained on images that another held out",
        )
    first = parts[0]
    held = [_pooled(member, first.class_names) for member in members]
    ids, targets = held[0].ids, held[0].targets
    for member, own in zip(members, held, strict=True):
        if set(own.ids) != set(ids):
            return None, f"{member.name} and {members[0].name} held out different images"
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
    """The held-out images of a member, and its probabilities (N, classes)."""

    ids: list[str]
    targets: torch.Tensor
    clean: torch.Tensor
    corrupted: torch.Tensor | None

    def of(self, probabilities: torch.Tensor, ids: Sequence[str]) -> torch.Tensor:
        position = {image_id: row for row, image_id in enumerate(self.ids)}
        return probabilities[[position[image_id] for image_id in ids]]


def _pooled(member: Member, class_names: Sequence[str]) -> _Held:
    """The held-out images of all parts in sequence, with classes in the order of `class_names`."""
    ids: list[str] = []
    targets, clean, corrupted = [], [], []
    for part in member.parts:
        held, order = part.checkpoint.validation, class_order(class_names, part.checkpoint)
        ids += held["ids"]
        targets.append(torch.tensor([order.index(int(target)) for target in held["targets"]], dtype=torch.int64))
        clean.append(tempered(held["probabilities"], part.checkpoint.temperature)[:, order])
        if "corrupted" in held:
            corrupted.append(tempered(held["corrupted"], part.checkpoint.temperature)[:, order])

    def whole(parts: list[torch.Tensor]) -> torch.Tensor | None:
        return torch.cat(parts) if len(parts) == len(member.parts) else None

    return _Held(ids, torch.cat(targets), torch.cat(clean), whole(corrupted))


def class_order(class_names: Sequence[str], member: Checkpoint) -> list[int]:
    """The index of each of `class_names` in the checkpoint."""
    return [member.class_names.index(name) for name in class_names]


def references(members: Sequence[Member]) -> list[torch.Tensor]:
    """The calibrated validation probabilities of each member, of all images, copies and classes, (K,). `rank_averaging`
    ranks against them."""
    found = []
    for member in members:
        parts = [part.checkpoint for part in member.parts]
        copies = [
            tempered(part.validation[copy], part.temperature).flatten()
            for part in parts
            for copy in ("probabilities", "corrupted")
            if copy in part.validation
        ]
        found.append(torch.cat(copies))
    return found
