"""The subject of an analysis: validation predictions, and facts about their model or ensemble."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.base.errors import ConfigError
from trainer.base.files import sha256
from trainer.base.plural import counted
from trainer.models import checkpoint, trained_on
from trainer.scores import val_predictions
from trainer.scores.val_predictions import Validation


@dataclass(frozen=True)
class MemberRow:
    """A member of an ensemble, or another vote of the same members."""

    name: str
    share: float | None
    """Share of the vote, 0 to 1."""
    figures: dict[str, Any]
    """The known values of `figures.F1` by column, and the interval (or None)."""


@dataclass(frozen=True)
class Subject:
    path: Path
    validation: Validation
    config: dict[str, Any] = field(default_factory=dict)
    """Configuration of the run, or of an ensemble's first member. Empty if unknown."""
    metrics: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    temperature: float | None = None
    """The temperature of predictions, if known."""
    history: list[dict[str, float]] = field(default_factory=list)
    method: str | None = None
    """Voting method of an ensemble. None: a single model."""
    weighting: str | None = None
    """Weighting of the ensemble."""
    members: list[MemberRow] = field(default_factory=list)
    """Members of an ensemble. First, if scored, the same members with equal weights."""
    folds: bool = False
    """Whether the ensemble has folds. Its validation is the out-of-fold votes, without a temperature."""
    tta: str = "none"
    """Views of an ensemble's predictions. Its validation is without them."""
    sha256: str = ""
    origin: dict[str, str] = field(default_factory=dict)
    """Where a checkpoint comes from, by name: run, git_sha, data_fingerprint, data_folder, groups. Without what is
    unknown; of an ensemble only the groups."""

    @property
    def corruption_seed(self) -> int | None:
        """The seed of the corrupted copies, if known."""
        known = self.config.get("data", {})
        return known.get("split_seed") if known.get("val_corruption") == "document" else None


def read(path: Path) -> Subject:
    """Read `path` (a best.ckpt, an ensemble.json or a val_predictions.npz) and the files in its folder. Raises
    ConfigError if there are no validation predictions."""
    if path.suffix in (".json", ".npz"):
        validation = val_predictions.read(path)
        return _ensemble(path, validation) if path.suffix == ".json" else Subject(path, validation, sha256=sha256(path))
    loaded = checkpoint.load(path)
    return Subject(
        path,
        val_predictions.of(loaded, path),
        loaded.config,
        loaded.metrics,
        loaded.versions,
        loaded.calibration.get("temperature"),
        read_history(path.parent / "history.csv"),
        sha256=sha256(path),
        origin=loaded.provenance | trained_on.champion(path),
    )


def read_history(path: Path) -> list[dict[str, float]]:
    """The validations of a run, each with its metrics by name. Empty without a readable file."""
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            return [{key: float(value) for key, value in line.items()} for line in csv.DictReader(lines)]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError):
        print(f"note: {path} is not the history of a run, so the report has no training curves")
        return []


def _ensemble(path: Path, validation: Validation) -> Subject:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        method, members = content["method"], _members(content)
        parts = [path.parent / entry["checkpoint"] for entry in content["members"]]
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise ConfigError(f"{path}: not an ensemble.json of this trainer: {error}") from None
    folds = bool(content.get("out_of_fold"))
    there = next((part for part in parts if part.is_file()), None)
    first = checkpoint.load(there) if there else None
    return Subject(
        path,
        validation,
        first.config if first else {},
        versions=first.versions if first else {},
        temperature=None if folds else content.get("temperature"),
        method=method,
        weighting=content.get("weighting"),
        members=members,
        folds=folds,
        tta=str(content.get("tta", "none")),
        sha256=sha256(path),
        origin={"groups": content["groups"]} if content.get("groups") else {},
    )


def _members(content: dict[str, Any]) -> list[MemberRow]:
    """One row per model. A model with several folds has its out-of-fold metrics."""
    entries = {entry.get("member", place): entry for place, entry in enumerate(content["members"])}
    pooled = {entry["member"]: entry for entry in content.get("out_of_fold", [])}
    total = sum(float(entry["weight"]) for entry in entries.values())
    members = [
        MemberRow(
            f"{pooled[number]['name']}, {counted(pooled[number]['folds'], 'fold')}"
            if number in pooled
            else entry["checkpoint"],
            float(entry["weight"]) / total,
            pooled.get(number, entry),
        )
        for number, entry in entries.items()
    ]
    equal = content.get("equal_vote")
    return [MemberRow("equal weights", None, equal), *members] if equal else members
