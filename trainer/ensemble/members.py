"""Members of an ensemble: what has one vote is a checkpoint, or all folds of one model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.base.errors import ConfigError
from trainer.base.files import sha256
from trainer.models import checkpoint
from trainer.models.checkpoint import Checkpoint
from trainer.predict.inference import tempered

UNIMPORTANT = (
    "data.root",
    "data.fold",
    "device",
    "devices",
    "resume",
    "training.num_workers",
    "training.pin_memory",
    "training.micro_batch",
)
"""Keys in which the folds of one model may differ."""


@dataclass(frozen=True)
class Loaded:
    """A checkpoint and its file, by path and SHA-256."""

    path: Path
    sha256: str
    checkpoint: Checkpoint


@dataclass(frozen=True)
class Member:
    """A single checkpoint, or those of the folds of one model."""

    name: str
    parts: list[Loaded]
    folds: int | None = None
    """How many folds there should be; None for a single checkpoint."""

    def missing(self) -> list[int]:
        """The folds that are not there."""
        return sorted(set(range(self.folds or 0)) - {fold_of(part.checkpoint) for part in self.parts})


@dataclass(frozen=True)
class Validation:
    """What M members say of the same N images: targets (N,), and of each member (N, classes) probabilities at its
    temperature, of the clean and, where there are, of the corrupted copies. Classes are in the first member's order."""

    ids: list[str]
    targets: torch.Tensor
    clean: list[torch.Tensor]
    corrupted: list[torch.Tensor] | None
    split_fingerprint: str
    """Of the split; where folds were joined to all training images, of the whole cut into folds."""
    folds_fingerprint: str | None


def load(path: Path) -> Loaded:
    """Raises ConfigError where it is no checkpoint."""
    member = checkpoint.load(path, mapped=True)
    return Loaded(path, sha256(path), member)


def fold_of(member: Checkpoint) -> int:
    """Which fold a checkpoint held out, from 0."""
    return int(member.config["data"]["fold"])


def group(loaded: Sequence[Loaded]) -> list[Member]:
    """One member a model: checkpoints that differ in their fold alone belong together, unless all held out the same
    images. In the order in which their first parts are named.

    Raises ConfigError where a fold of a model stands twice.
    """
    splits = {part.checkpoint.validation.get("split_fingerprint") for part in loaded}
    groups: dict[str, list[Loaded]] = {}
    for place, part in enumerate(loaded):
        folds = part.checkpoint.validation.get("folds_fingerprint") if len(splits) > 1 else None
        key = json.dumps([folds, _important(part.checkpoint.config)], sort_keys=True) if folds else str(place)
        groups.setdefault(key, []).append(part)
    return [_member(parts, key[0] == "[") for key, parts in groups.items()]


def _member(parts: list[Loaded], folded: bool) -> Member:
    if not folded:
        return Member(str(parts[0].path), parts)
    by_fold: dict[int, Loaded] = {}
    for part in parts:
        other = by_fold.setdefault(fold_of(part.checkpoint), part)
        if other is not part:
            raise ConfigError(
                f"{part.path}: fold {fold_of(part.checkpoint)} of the same model as {other.path}: name one of them"
            )
    config = parts[0].checkpoint.settings
    chosen = [config.choices[key] for key in ("data", "training") if key in config.choices]
    name = f"{config.model.name} ({', '.join([*chosen, f'{config.data.img_size} px', f'seed {config.seed}'])})"
    return Member(name, [by_fold[fold] for fold in sorted(by_fold)], config.data.folds)


def _important(config: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= {f"{key}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {key: value}
    return {key: value for key, value in flat.items() if key not in UNIMPORTANT}


def validation(members: Sequence[Member]) -> tuple[Validation | None, str]:
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
        Validation(
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
