"""ensemble.json: members that vote together. A member is one checkpoint, or all folds of one model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer.base.errors import ConfigError, nearest
from trainer.base.files import sha256
from trainer.base.names import METHODS
from trainer.base.plural import counted
from trainer.models import checkpoint
from trainer.models.checkpoint import Checkpoint

FORMAT = 3
READABLE = (1, 2, 3)
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
"""Keys that may differ between the folds of one model."""


@dataclass(frozen=True)
class Loaded:
    """A checkpoint with path and SHA-256 of its file."""

    path: Path
    sha256: str
    checkpoint: Checkpoint


@dataclass(frozen=True)
class Member:
    """A single checkpoint, or the checkpoints of the folds of one model."""

    name: str
    parts: list[Loaded]
    folds: int | None = None
    """The expected number of folds. None for a single checkpoint."""

    def missing(self) -> list[int]:
        """The missing folds."""
        return sorted(set(range(self.folds or 0)) - {fold_of(part.checkpoint) for part in self.parts})


@dataclass(frozen=True)
class Ensemble:
    """Members, and the method that joins their probabilities."""

    members: list[Member]
    method: str
    weights: list[float]
    """One per member. Only their ratios matter."""
    temperature: float = 1.0
    tta: str = "none"

    @property
    def parts(self) -> list[Loaded]:
        return [part for member in self.members for part in member.parts]

    @property
    def averages_folds(self) -> bool:
        """Whether a member has folds and predicts with their mean. In validation only one fold predicts an image. So a
        temperature from validation does not fit the mean of the folds, which is less confident."""
        return any(len(member.parts) > 1 for member in self.members)

    @property
    def shares(self) -> list[float]:
        """The share of each part. The folds of a member have equal shares of its weight. The sum is 1."""
        total = sum(self.weights)
        pairs = zip(self.members, self.weights, strict=True)
        return [weight / total / len(member.parts) for member, weight in pairs for _ in member.parts]

    def repeated(self) -> list[list[Loaded]]:
        """The parts that are one checkpoint in several files (or one file that is named twice)."""
        by_content: dict[str, list[Loaded]] = {}
        for part in self.parts:
            by_content.setdefault(part.sha256, []).append(part)
        return [same for same in by_content.values() if len(same) > 1]


def make(paths: Sequence[Path], method: str, weights: Sequence[float] | None = None) -> Ensemble:
    """Load and check the checkpoints, and join the folds of one model to a member.

    Raises ConfigError for an unknown method, a wrong number of weights, members with different classes, and a repeated
    fold.
    """
    if method not in METHODS:
        raise ConfigError(f"--method {method}: unknown method; {nearest(method, METHODS)}")
    if not paths:
        raise ConfigError("--checkpoints: give at least one best.ckpt")
    loaded = _named([load(path) for path in paths])
    classes = set(loaded[0].checkpoint.class_names)
    for part in loaded:
        if set(part.checkpoint.class_names) != classes:
            odd = sorted(set(part.checkpoint.class_names) ^ classes)
            raise ConfigError(f"{part.path}: its classes differ from {paths[0]} in {', '.join(odd)}")
    if method == "rank_averaging":
        bare = next((part.path for part in loaded if not part.checkpoint.validation), None)
        if bare:
            raise ConfigError(
                f"--method rank_averaging: {bare} has no validation predictions to rank against; "
                "use --method soft_voting"
            )
    grouped = group(loaded)
    if weights is not None and len(weights) != len(grouped):
        folds = " (all folds of a model are one member)" if len(grouped) < len(paths) else ""
        raise ConfigError(
            f"--weights: {counted(len(weights), 'weight')} for {counted(len(grouped), 'member')}{folds}; give one "
            "weight per member, or none"
        )
    return Ensemble(grouped, method, [float(w) for w in weights or [1.0] * len(grouped)])


def load(path: Path) -> Loaded:
    """Load one checkpoint. Raises ConfigError if it is not a checkpoint."""
    member = checkpoint.load(path, mapped=True)
    return Loaded(path, sha256(path), member)


def _named(loaded: list[Loaded]) -> list[Loaded]:
    """The checkpoints; those of Lightning, which have no names of classes, with the names that another one has for the
    same labels."""
    ours = next((part.checkpoint for part in loaded if "lightning" not in part.checkpoint.versions), None)
    if ours is None:
        return loaded
    names = dict(zip(ours.labels, ours.class_names, strict=True))
    return [
        replace(
            part, checkpoint=replace(part.checkpoint, class_names=[names[label] for label in part.checkpoint.labels])
        )
        if "lightning" in part.checkpoint.versions and set(part.checkpoint.labels) == set(names)
        else part
        for part in loaded
    ]


def fold_of(member: Checkpoint) -> int:
    """The fold that a checkpoint held out, from 0."""
    return int(member.config["data"]["fold"])


def group(loaded: Sequence[Loaded]) -> list[Member]:
    """One member per model: checkpoints that differ only in the fold are one member, unless all held out the same
    images. The order is that of their first parts.

    Raises ConfigError if a fold of a model is repeated.
    """
    splits = {part.checkpoint.validation.get("split_fingerprint") for part in loaded}
    groups: dict[str, list[Loaded]] = {}
    for place, part in enumerate(loaded):
        folds = part.checkpoint.validation.get("folds_fingerprint") if len(splits) > 1 else None
        key = json.dumps([folds, _recipe(part.checkpoint)], sort_keys=True) if folds else str(place)
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
                f"{part.path}: fold {fold_of(part.checkpoint)} of the same model as {other.path}; give only one of them"
            )
    config = parts[0].checkpoint.settings
    chosen = [config.choices[key] for key in ("data", "training") if key in config.choices]
    name = f"{config.model.name} ({', '.join([*chosen, f'{config.data.img_size} px', f'seed {config.seed}'])})"
    return Member(name, [by_fold[fold] for fold in sorted(by_fold)], config.data.folds)


def _recipe(part: Checkpoint) -> dict[str, Any]:
    """What the folds of one model have in common. Their teachers are described by `taught_by`, if that is known."""
    recipe = _important(part.config)
    taught = part.provenance.get("teachers")
    return recipe | {"training.teachers": taught} if taught else recipe


def taught_by(teacher: Checkpoint, sha256: str, split_fingerprint: str) -> str:
    """A description of a teacher for `_recipe`. Each fold of a student may have another file as its teacher: one that
    held out the same fold is described by its own configuration, any other by its file."""
    own = teacher.validation
    if own.get("folds_fingerprint") and own.get("split_fingerprint") == split_fingerprint:
        text = json.dumps([own["folds_fingerprint"], _recipe(teacher)], sort_keys=True)
        return f"fold of {hashlib.sha256(text.encode()).hexdigest()[:16]}"
    return sha256[:16]


def _important(config: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= {f"{key}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {key: value}
    return {key: value for key, value in flat.items() if key not in UNIMPORTANT}


def read(path: Path) -> Ensemble:
    """The ensemble in an ensemble.json. Raises ConfigError if the file is wrong or a member has changed."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] not in READABLE:
            raise ConfigError(f"{path}: written by another version (format {content['format']}, not {FORMAT})")
        parts = [path.parent / entry["checkpoint"] for entry in content["members"]]
        sums = [entry["sha256"] for entry in content["members"]]
        # Files of format 1 have one weight per checkpoint: all members were single checkpoints.
        by_member = {entry.get("member", place): entry["weight"] for place, entry in enumerate(content["members"])}
        if content["method"] == "rank_averaging" and content["format"] < 3:
            raise ConfigError(
                f"{path}: rank_averaging of an earlier version, which ranked otherwise; run the ensemble command "
                "again, or use --method soft_voting"
            )
        method, temperature, tta = content["method"], content.get("temperature", 1.0), content.get("tta", "none")
    except FileNotFoundError:
        raise ConfigError(f"{path}: file not found; give a best.ckpt or an ensemble.json") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not an ensemble.json of this trainer: {error}") from None
    ensemble = make(parts, method, list(by_member.values()))
    expected = dict(zip(parts, sums, strict=True))
    for part in ensemble.parts:
        if part.sha256 != expected[part.path]:
            raise ConfigError(f"{part.path}: changed after {path.name} was written; run the ensemble command again")
    return replace(ensemble, temperature=1.0 if ensemble.averages_folds else temperature, tta=tta)
