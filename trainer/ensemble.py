"""Ensembles of checkpoints: soft voting, hard voting, rank averaging."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from trainer import checkpoint, data, metrics
from trainer.errors import ConfigError, nearest
from trainer.files import write_json
from trainer.keep import save_validation
from trainer.predict import Options, Predictions, run_model, test_images, write

METHODS = ("soft_voting", "hard_voting", "rank_averaging")
FORMAT = 1


@dataclass(frozen=True)
class Ensemble:
    """Members by their checkpoints, and how their probabilities are joined."""

    members: list[Path]
    method: str
    weights: list[float]
    """One a member; only their ratios count."""
    checkpoints: list[checkpoint.Checkpoint] = field(repr=False, default_factory=list)


def make(members: Sequence[Path], method: str, weights: Sequence[float] | None) -> Ensemble:
    """Load and check the members.

    Raises ConfigError: an unknown method, weights that do not fit, members whose classes are not the same set.
    """
    if method not in METHODS:
        raise ConfigError(f"--method {method}: there is no such method; {nearest(method, METHODS)}")
    if not members:
        raise ConfigError("--checkpoints: name at least one best.ckpt")
    if weights is not None and len(weights) != len(members):
        raise ConfigError(f"--weights: {len(weights)} for {len(members)} members; give one a member, or none")
    if weights is not None and (min(weights) < 0 or sum(weights) <= 0):
        raise ConfigError(f"--weights {' '.join(map(str, weights))}: none may be negative, and one must be positive")
    loaded = [checkpoint.load(path) for path in members]
    classes = set(loaded[0].class_names)
    for path, member in zip(members, loaded, strict=True):
        if set(member.class_names) != classes:
            odd = sorted(set(member.class_names) ^ classes)
            raise ConfigError(f"{path}: its classes are not those of {members[0]}: they differ in {', '.join(odd)}")
    return Ensemble(list(members), method, [float(w) for w in weights or [1.0] * len(members)], loaded)


def combine(method: str, probabilities: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """Join the members' (N, classes) probabilities into one (N, classes) distribution.

    soft_voting: the weighted mean. hard_voting: the weighted share of votes; a tie goes to the larger mean probability.
    rank_averaging: the weighted mean of each class's ranks over the images, so that members that are sure of
    themselves by different measures count alike.
    """
    share = torch.tensor(list(weights), dtype=torch.float64)
    share = (share / share.sum()).view(-1, 1, 1)
    stack = torch.stack([p.double() for p in probabilities])
    mean = (share * stack).sum(0)
    if method == "hard_voting":
        votes = torch.nn.functional.one_hot(stack.argmax(2), stack.shape[2]).double()
        joined = (share * votes).sum(0) + 1e-6 * mean
    elif method == "rank_averaging":
        from scipy.stats import rankdata

        ranks = torch.from_numpy(rankdata(stack.numpy(), axis=1)) / stack.shape[1]
        joined = (share * ranks).sum(0)
    else:
        joined = mean
    return (joined / joined.sum(1, keepdim=True)).float()


def run(made: Ensemble, table: data.Table, options: Options) -> Predictions:
    """The ensemble's probabilities for the images of `table`, in the first member's order of classes."""
    first = made.checkpoints[0]
    parts = []
    for member in made.checkpoints:
        own = run_model(member, table, options)
        parts.append(own.probabilities[:, _order(first, member)])
    joined = combine(made.method, parts, made.weights)
    return Predictions(table.ids, joined, first.class_names, first.labels)


def _order(first: checkpoint.Checkpoint, member: checkpoint.Checkpoint) -> list[int]:
    """Where the classes of `first` stand in `member`."""
    return [member.class_names.index(name) for name in first.class_names]


def validate(made: Ensemble) -> tuple[dict[str, Any], str]:
    """The ensemble's validation arrays (as in a checkpoint), or an empty dict and the reason why there are none."""
    first = made.checkpoints[0]
    if any(not member.validation for member in made.checkpoints):
        return {}, "a member carries no validation predictions"
    prints = {member.validation["split_fingerprint"] for member in made.checkpoints}
    if len(prints) > 1:
        return {}, "the members were validated on different splits: an image held out by one was trained on by another"
    parts = []
    for member in made.checkpoints:
        position = {image_id: row for row, image_id in enumerate(member.validation["ids"])}
        rows = [position[image_id] for image_id in first.validation["ids"]]
        parts.append(member.validation["probabilities"][rows][:, _order(first, member)])
    return {**first.validation, "probabilities": combine(made.method, parts, made.weights)}, ""


def ensemble(made: Ensemble, root: Path | None, output: Path, options: Options) -> dict[str, Any]:
    """Write ensemble.json, validation figures where the members share a split, and `root`'s test predictions.

    Returns what metrics.json holds. Raises ConfigError or DataError.
    """
    validation, why_not = validate(made)
    first = made.checkpoints[0]
    figures: dict[str, Any] = {"val_f1": None, "val_accuracy": None, "val_loss": None}
    if validation:
        figures = metrics.scores(validation["probabilities"], validation["targets"])
    table = test_images(root) if root is not None else None
    predictions = run(made, table, options) if table is not None else None

    output.mkdir(parents=True, exist_ok=True)
    if validation:
        whole = checkpoint.Checkpoint({}, first.class_names, first.labels, {}, {}, validation=validation)
        save_validation(output / "val_predictions.npz", whole)
    members: list[dict[str, Any]] = [
        {
            "checkpoint": os.path.relpath(path.resolve(), output.resolve()),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "val_f1": member.metrics.get("val_f1"),
            "weight": weight,
        }
        for path, member, weight in zip(made.members, made.checkpoints, made.weights, strict=True)
    ]
    summary = {
        **figures,
        "why_no_val": why_not or None,
        "split_fingerprint": validation.get("split_fingerprint"),
        "method": made.method,
        "members": members,
        "class_names": first.class_names,
    }
    write_json(output / "ensemble.json", {"format": FORMAT, **summary})
    if table is not None and predictions is not None:
        write(predictions, output, data.content_fingerprint(table.paths))
    write_json(output / "metrics.json", summary)
    for member_entry in members:
        print(f"  member {member_entry['checkpoint']}: val_f1 {_figure(member_entry['val_f1'])}")
    print(
        f"{made.method} of {len(members)}: val_f1 {_figure(figures['val_f1'])}" + (f" ({why_not})" if why_not else "")
    )
    return summary


def _figure(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"


def read(path: Path) -> Ensemble:
    """The ensemble that an ensemble.json describes. Raises ConfigError where it or a member is not what it was."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ConfigError(f"{path}: written by another version (format {content['format']}, not {FORMAT})")
        members = [path.parent / member["checkpoint"] for member in content["members"]]
        sums = [member["sha256"] for member in content["members"]]
        method, weights = content["method"], [member["weight"] for member in content["members"]]
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file; name a best.ckpt or an ensemble.json") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not an ensemble.json of this trainer: {error}") from None
    made = make(members, method, weights)
    for member_path, expected in zip(members, sums, strict=True):
        if hashlib.sha256(member_path.read_bytes()).hexdigest() != expected:
            raise ConfigError(f"{member_path}: has changed since {path.name} was made; make the ensemble anew")
    return made
