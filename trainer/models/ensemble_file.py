"""ensemble.json: members that vote together. What has one vote is a checkpoint, or all folds of one model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer.base.errors import ConfigError, nearest
from trainer.base.files import sha256
from trainer.base.names import METHODS
from trainer.models import checkpoint
from trainer.models.checkpoint import Checkpoint

FORMAT = 2
READABLE = (1, 2)
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
class Ensemble:
    """Members, and how their probabilities are joined."""

    members: list[Member]
    method: str
    weights: list[float]
    """One a member; only their ratios count."""
    temperature: float = 1.0
    tta: str = "none"

    @property
    def parts(self) -> list[Loaded]:
        return [part for member in self.members for part in member.parts]

    @property
    def averages_folds(self) -> bool:
        """Whether it predicts by means of folds. Its validation knows only the single fold that held an image out; a
        temperature that is fitted on such votes does not suit the mean, which is less sure."""
        return any(len(member.parts) > 1 for member in self.members)

    @property
    def shares(self) -> list[float]:
        """Each part's share of the whole: the folds of a member have its weight in equal shares. They add up to 1."""
        total = sum(self.weights)
        pairs = zip(self.members, self.weights, strict=True)
        return [weight / total / len(member.parts) for member, weight in pairs for _ in member.parts]


def make(paths: Sequence[Path], method: str, given: Sequence[float] | None = None) -> Ensemble:
    """Load and check the checkpoints, and join those that are folds of one model.

    Raises ConfigError: an unknown method, weights that do not fit, members whose classes are not the same set, a fold
    that stands twice.
    """
    if method not in METHODS:
        raise ConfigError(f"--method {method}: there is no such method; {nearest(method, METHODS)}")
    if not paths:
        raise ConfigError("--checkpoints: name at least one best.ckpt")
    loaded = [load(path) for path in paths]
    classes = set(loaded[0].checkpoint.class_names)
    for part in loaded:
        if set(part.checkpoint.class_names) != classes:
            odd = sorted(set(part.checkpoint.class_names) ^ classes)
            raise ConfigError(f"{part.path}: its classes are not those of {paths[0]}: they differ in {', '.join(odd)}")
    grouped = group(loaded)
    if given is not None and len(given) != len(grouped):
        folds = " (the folds of a model are one)" if len(grouped) < len(paths) else ""
        raise ConfigError(f"--weights: {len(given)} for {len(grouped)} members{folds}; give one a member, or none")
    return Ensemble(grouped, method, [float(w) for w in given or [1.0] * len(grouped)])


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


def read(path: Path) -> Ensemble:
    """The ensemble that an ensemble.json describes. Raises ConfigError where it or a member is not what it was."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] not in READABLE:
            raise ConfigError(f"{path}: written by another version (format {content['format']}, not {FORMAT})")
        parts = [path.parent / entry["checkpoint"] for entry in content["members"]]
        sums = [entry["sha256"] for entry in content["members"]]
        # Files of format 1 have a weight a checkpoint, as all members were single ones.
        by_member = {entry.get("member", place): entry["weight"] for place, entry in enumerate(content["members"])}
        method, temperature, tta = content["method"], content.get("temperature", 1.0), content.get("tta", "none")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file; name a best.ckpt or an ensemble.json") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not an ensemble.json of this trainer: {error}") from None
    ensemble = make(parts, method, list(by_member.values()))
    expected = dict(zip(parts, sums, strict=True))
    for part in ensemble.parts:
        if part.sha256 != expected[part.path]:
            raise ConfigError(f"{part.path}: has changed since {path.name} was made; make the ensemble again")
    return replace(ensemble, temperature=1.0 if ensemble.averages_folds else temperature, tta=tta)
