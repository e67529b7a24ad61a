"""Ensembles of checkpoints and of folds: their vote, their scores, and their test predictions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from trainer.base import figures
from trainer.base.errors import ConfigError
from trainer.base.files import sha256, write_json
from trainer.base.names import GROUPED
from trainer.base.plural import counted
from trainer.data.rows import Table
from trainer.data.table import content_fingerprint
from trainer.ensemble import members, voting
from trainer.ensemble.members import SharedValidation
from trainer.ensemble.voting import ballots, combine
from trainer.models import ensemble_file
from trainer.models.ensemble_file import Ensemble
from trainer.predict import predictions
from trainer.predict.inference import Options
from trainer.predict.predict import members_predictions, origin_of, say_classes, test_images
from trainer.predict.predictions import Origin, Predictions
from trainer.scores import intervals, val_predictions
from trainer.scores.calibration import tempered
from trainer.scores.validation import Outcome, certainty


@dataclass(frozen=True)
class Scored:
    """An ensemble with its validation: probabilities (N, classes) of clean and corrupted copies, and metrics."""

    ensemble: Ensemble
    validation: SharedValidation
    clean: torch.Tensor
    corrupted: torch.Tensor | None
    figures: dict[str, Any]


def predictions_of(ensemble: Ensemble, table: Table, fingerprint: str, options: Options) -> Predictions:
    """The ensemble's probabilities for the images of `table`, with classes in the first member's order. The
    probabilities of a member are the mean of its folds."""
    first = ensemble.parts[0].checkpoint
    predicted = iter(members_predictions(ensemble.parts, table, fingerprint, options))
    own = [
        torch.stack(
            [
                next(predicted).probabilities[:, members.class_order(first.class_names, p.checkpoint)]
                for p in member.parts
            ]
        ).mean(0)
        for member in ensemble.members
    ]
    voted = combine(ensemble.method, own, ensemble.weights, _references(ensemble))
    joined = tempered(voted, ensemble.temperature)
    return Predictions(table.ids, joined, first.class_names, first.labels)


def _references(ensemble: Ensemble) -> list[torch.Tensor]:
    return members.references(ensemble.members) if ensemble.method == "rank_averaging" else []


def predict(path: Path, root: Path, options: Options) -> tuple[Predictions, Origin]:
    """The predictions of the ensemble.json at `path` for `root`'s test images. Reads predictions.npz in its folder if
    it is for these images. Otherwise the members predict."""
    ensemble = ensemble_file.read(path)
    options = replace(options, tta=options.tta or ensemble.tta)
    say_classes(root, ensemble.parts[0].checkpoint)
    table = test_images(root, options.skip_unreadable)
    fingerprint = content_fingerprint(table.paths)
    origin = origin_of(sha256(path), fingerprint, options)
    reused = predictions.stored(path, table.ids, origin)
    if reused is not None:
        print(f"reused the ensemble's predictions of {counted(len(table), 'image')}: {reused[1]}")
        return reused[0], origin
    return predictions_of(ensemble, table, fingerprint, options), origin


def _monitor(ensemble: Ensemble) -> str:
    """The monitor of the members. If they have different monitors: the mean of clean and corrupted F1."""
    named = {str(part.checkpoint.config.get("training", {}).get("monitor", figures.MAIN)) for part in ensemble.parts}
    return named.pop() if len(named) == 1 and named <= set(figures.columns()) else figures.DEFAULT_MONITOR


def _figures(
    ensemble: Ensemble, validation: SharedValidation, clean: torch.Tensor, corrupted: torch.Tensor | None
) -> dict[str, Any]:
    """The same metrics as for a run: scores, the monitored score, intervals, calibration. For folds there is no
    temperature, and `ece` is for the out-of-fold votes."""
    monitor = _monitor(ensemble)
    outcome = Outcome(list(range(len(validation.ids))), validation.targets, clean, corrupted)
    values = figures.values(validation.targets.numpy(), outcome.copies)
    sureness = certainty(outcome, calibrated=not ensemble.averages_folds)
    return {**values, "monitor": monitor, "score": figures.score(values, monitor), **sureness}


def score(ensemble: Ensemble, validation: SharedValidation, how: str) -> Scored:
    """Vote on the validation images. If `how` is greedy, search weights on them.

    The metrics of searched weights come from cross-validation: the weights for an image were searched without it. If
    these metrics are worse than with equal weights, the weights stay equal.
    """
    against = _references(ensemble)
    vote = voting.Vote(
        ballots(ensemble.method, validation.clean, against),
        ballots(ensemble.method, validation.corrupted, against) if validation.corrupted is not None else None,
        validation.targets,
    )
    equal = vote.counted([1.0] * len(ensemble.members))
    equal_vote = _figures(ensemble, validation, *equal)
    more: dict[str, Any] = {"equal_vote": equal_vote}
    used, copies, values = "equal", equal, equal_vote
    if how == "given":
        used, copies = how, vote.counted(ensemble.weights)
        values = _figures(ensemble, validation, *copies)
    elif how == "greedy" and len(ensemble.members) > 1:
        monitored = figures.columns()[_monitor(ensemble)]
        chosen = voting.search(vote, monitored)
        honest = _figures(ensemble, validation, *chosen.held_out)
        more |= {"honest": honest, "found_weights": chosen.weights}
        if monitored.worth(honest["score"]) >= monitored.worth(equal_vote["score"]):
            used, copies, values = how, chosen.held_out, honest
            ensemble = replace(ensemble, weights=chosen.weights)
            more["in_sample"] = _figures(ensemble, validation, *vote.counted(chosen.weights))
    ensemble = replace(ensemble, temperature=values.get("temperature", 1.0))
    return Scored(ensemble, validation, *copies, {**values, "weighting": used, "weighting_asked": how, **more})


def ensemble(ensemble: Ensemble, how: str, root: Path | None, output: Path, options: Options) -> dict[str, Any]:
    """Write ensemble.json, validation metrics if the members have the same held-out images, and `root`'s test
    predictions. `how` is the weighting: equal, given (in `ensemble`) or greedy.

    Returns the content of metrics.json. Raises ConfigError or DataError.
    """
    ensemble = replace(ensemble, tta=options.tta or "none")
    validation, why_not = members.validation(ensemble.members)
    scored: Scored | None = None
    if validation is not None:
        scored = score(ensemble, validation, how)
        ensemble = scored.ensemble
    elif how == "greedy":
        raise ConfigError(f"--weights {how}: no validation images to search weights on: {why_not}; use equal")
    predicted: Predictions | None = None
    if root is not None:
        say_classes(root, ensemble.parts[0].checkpoint)
        table = test_images(root, options.skip_unreadable)
        fingerprint = content_fingerprint(table.paths)
        predicted = predictions_of(ensemble, table, fingerprint, options)

    output.mkdir(parents=True, exist_ok=True)
    if (output / "ensemble.json").exists():
        _clear(output, validated=scored is not None, predicted=predicted is not None)
    if scored is not None:
        _save_validation(scored, output / "val_predictions.npz")
    summary = _summary(ensemble, scored, why_not, how, output)
    write_json(output / "ensemble.json", {"format": ensemble_file.FORMAT, **summary})
    if predicted is not None:
        origin = origin_of(sha256(output / "ensemble.json"), fingerprint, options)
        predictions.write(predicted, output, origin)
    write_json(output / "metrics.json", summary)
    _say(summary, [part.path for part in ensemble.parts])
    return summary


def _clear(output: Path, validated: bool, predicted: bool) -> None:
    """Remove results of an earlier ensemble that this one does not replace, so that nobody mixes them up."""
    stale = [] if validated else ["val_predictions.npz"]
    stale += [] if predicted else ["submission.csv", "predictions.npz"]
    for name in stale:
        (output / name).unlink(missing_ok=True)


def _save_validation(scored: Scored, path: Path) -> None:
    """Write val_predictions.npz as for a run: before the ensemble's temperature."""
    shared = scored.validation
    stored = val_predictions.arrays(
        shared.ids, shared.targets, scored.clean, scored.corrupted, shared.split_fingerprint, shared.folds_fingerprint
    )
    val_predictions.write(path, stored, scored.ensemble.parts[0].checkpoint.class_names)


OWN_FIGURES = tuple(map(figures.F1.column, figures.F1.copies))


def _summary(ensemble: Ensemble, scored: Scored | None, why_not: str, how: str, output: Path) -> dict[str, Any]:
    values: dict[str, Any] = dict.fromkeys([figure.column() for figure in figures.FIGURES] + ["score"])
    values |= {"weighting": how, "weighting_asked": how}
    if scored is not None:
        values = scored.figures
    entries: list[dict[str, Any]] = []
    for number, (member, weight) in enumerate(zip(ensemble.members, ensemble.weights, strict=True)):
        for part in member.parts:
            own = {key: part.checkpoint.metrics.get(key) for key in OWN_FIGURES}
            where = (
                {"member": number, "fold": ensemble_file.fold_of(part.checkpoint)}
                if member.folds
                else {"member": number}
            )
            path = os.path.relpath(part.path.resolve(), output.resolve())
            entries.append({"checkpoint": path, "sha256": part.sha256, **own, "weight": weight, **where})
    return {
        **values,
        "why_no_val": why_not or None,
        "split_fingerprint": scored.validation.split_fingerprint if scored else None,
        "folds_fingerprint": scored.validation.folds_fingerprint if scored else None,
        "val_images": len(scored.validation.ids) if scored else None,
        "groups": ensemble.parts[0].checkpoint.provenance.get("groups"),
        "method": ensemble.method,
        "tta": ensemble.tta,
        "val_tta": "none" if scored else None,
        "temperature": ensemble.temperature,
        "members": entries,
        "out_of_fold": _out_of_fold(ensemble, scored),
        "class_names": ensemble.parts[0].checkpoint.class_names,
    }


def _out_of_fold(ensemble: Ensemble, scored: Scored | None) -> list[dict[str, Any]]:
    """Each member with folds, and the metrics of its pooled out-of-fold predictions."""
    entries = []
    for number, (member, weight) in enumerate(zip(ensemble.members, ensemble.weights, strict=True)):
        if member.folds is None:
            continue
        values: dict[str, Any] = dict.fromkeys(OWN_FIGURES)
        if scored is not None:
            worse = scored.validation.corrupted[number] if scored.validation.corrupted is not None else None
            values = _figures(ensemble, scored.validation, scored.validation.clean[number], worse)
        entries.append({"member": number, "name": member.name, "folds": member.folds, "weight": weight, **values})
    return entries


def _say(summary: dict[str, Any], paths: Sequence[Path]) -> None:
    """Print the figures. `paths` are the checkpoints as the user named them, in the order of the summary's members: the
    paths there are relative to the output folder."""
    images = summary["val_images"]
    folded = {entry["member"] for entry in summary["out_of_fold"]}
    for entry, path in zip(summary["members"], paths, strict=True):
        if entry["member"] not in folded:
            print(f"  member {path}: {_figure(entry, images)}, weight {entry['weight']:g}")
    for entry in summary["out_of_fold"]:
        folds = counted(entry["folds"], "fold")
        print(f"  member {entry['name']}, {folds}: {_figure(entry, images)}, weight {entry['weight']:g}")
    if summary["weighting"] != "equal" and "equal_vote" in summary:
        print(f"  equal weights: {_figure(summary['equal_vote'], images)}")
    elif "honest" in summary:
        print(
            f"  {summary['weighting_asked']} weights: {_figure(summary['honest'], images)} in cross-validation, "
            f"equal weights: {_figure(summary['equal_vote'], images)}; the equal weights are kept"
        )
    count, checkpoints = len({entry["member"] for entry in summary["members"]}), len(summary["members"])
    if count == 1 and summary["weighting_asked"] == "greedy":
        print(f"note: --weights {summary['weighting_asked']}: not searched, because there is only one member")
    of = f"{count} ({checkpoints} checkpoints)" if checkpoints > count else f"{count}"
    if summary["val_tta"] and summary["tta"] != summary["val_tta"]:
        print(f"note: the validation figures and the temperature are without --tta {summary['tta']}")
    if summary["groups"] and summary["val_images"]:
        print(f"note: intervals are too narrow here: {GROUPED}")
    why = f" ({summary['why_no_val']})" if summary["why_no_val"] else ""
    print(f"{summary['method']} of {of}, {summary['weighting']} weights: {_figure(summary, images)}{why}")


def _figure(values: dict[str, Any], images: int) -> str:
    main = figures.MAIN
    if values.get(main) is None:
        return f"{main} unknown"
    sure = ""
    if f"{main}_interval" in values:
        sure = f" ({intervals.in_words(values[f'{main}_interval'], values[main], images)})"
    worse = values.get(figures.F1.column("corrupted"))
    return f"{main} {values[main]:.4f}{sure}" + (f", {worse:.4f} corrupted" if worse is not None else "")
