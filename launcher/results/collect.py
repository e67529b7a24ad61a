"""The results of a submission: the leaderboard, and the best model so far in `champion/`."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.base.text import relative
from launcher.record import folders, standings, trainer_figures, trainer_files
from launcher.record.journal import Status
from launcher.record.records import Records
from launcher.record.standings import Result
from launcher.record.states import GOOD, UNKNOWN
from launcher.record.trainer_figures import Figures
from launcher.results import champion
from launcher.results.champion import Row
from trainer.base import figures
from trainer.base.errors import os_error
from trainer.base.files import csv_bytes
from trainer.base.plural import counted

if TYPE_CHECKING:
    from launcher.record.predictions import Predictions

_FIRST_COLUMNS = (
    "rank",
    "run",
    "kind",
    "state",
    "model",
    "data",
    "training",
    "img_size",
    "batch_size",
    "seed",
)
_RUN_COLUMNS = (
    "best_epoch",
    "epochs",
    "minutes",
    "images_per_second",
    "params",
    "members",
    "checkpoint",
    "reason",
    *(LOW := f"{figures.MAIN}_low", HIGH := f"{figures.MAIN}_high"),
)
_LAST_COLUMNS = (
    "score",
    "monitor",
    "distinguishable",
    "val_images",
    "fold",
    "voters",
    "groups",
)
_OF_METRICS = ("best_epoch", "epochs", "images_per_second", "params", "groups")
NO_FIGURE = "no training run of this submission has succeeded"
NO_TRAINING = "the champion is one training run, and this submission has none"
FOLDS_ALONE = "a fold cannot become the champion, because each fold has other validation images; "
ADD_ENSEMBLE = "add a step {step: ensemble, from: {top: 1}}, and use its ensemble.json with predict"


def columns() -> tuple[str, ...]:
    """The columns of leaderboard.csv."""
    clean, corrupted = figures.on_leaderboard("clean"), figures.on_leaderboard("corrupted")
    return (*_FIRST_COLUMNS, *clean, *_RUN_COLUMNS, *corrupted, *_LAST_COLUMNS)


@dataclass(frozen=True)
class _Block:
    """One ranked entry: a run, an ensemble, or the joined folds of one configuration with the folds' own rows."""

    row: Row
    scores: Figures
    runs: tuple[Path, ...]
    below: tuple[_Block, ...] = ()


def leaderboard_rows(submission: Path) -> list[Row]:
    """A row for each training run, each configuration of several folds and each ensemble: first those with a score,
    best first, then the others. A row of kind `folds` has out-of-fold figures; the rows of its folds follow it and
    have no rank."""
    blocks = []
    for group in standings.configurations(standings.results(submission, "train", "ensemble")):
        blocks.append(_block(group[0]) if len(group) == 1 else _joined(group))
    figure = standings.judged_by(block.scores for block in blocks)
    for block in (each for head in blocks for each in (head, *head.below)):
        value = standings.score(block.scores, figure)
        block.row.update({} if value is None else {"score": value, "monitor": figure})
    blocks.sort(key=lambda block: (-standings.worth(block.scores, figure), block.row["run"]))
    for rank, block in enumerate(blocks, start=1):
        block.row["rank"] = rank if block.row["score"] != "" else ""
    _compare([block for block in blocks if block.row["score"] != ""], figure)
    return [each.row for block in blocks for each in (block, *block.below)]


def _block(result: Result) -> _Block:
    """The entry of one run or ensemble."""
    request, scores, name = result.request, result.figures, result.run_dir.name
    row = _row(request.config, scores)
    row |= {"run": name, "kind": request.kind, "state": result.status.state, "reason": result.status.reason}
    if result.good and request.kind == "train":
        row["minutes"] = round(scores.get("seconds", 0) / 60, 2)
        row["checkpoint"] = f"{name}/best.ckpt"
    if result.good and request.kind == "ensemble":
        members = scores.get("members", [])
        row["members"] = " ".join(Path(member["checkpoint"]).parent.name for member in members)
        row["voters"] = len({member.get("member", place) for place, member in enumerate(members)})
        row["checkpoint"] = f"{name}/ensemble.json"
        row["model"] = scores.get("method", "")
        row["reason"] = "; ".join(part for part in (result.status.reason, scores.get("why_no_val")) if part)
    return _Block(row, scores, (result.run_dir,))


def _joined(folds: Sequence[Result]) -> _Block:
    """The entry of the folds of one configuration."""
    scores, why_not = standings.pooled(folds)
    below = tuple(_block(fold) for fold in folds)
    states = dict.fromkeys(fold.status.state for fold in folds if not fold.good)
    config = {key: value for key, value in folds[0].request.config.items() if key != "fold"}
    row = _row(config, scores)
    row |= {
        "run": _name(folds),
        "kind": "folds",
        "state": next(iter(states), "succeeded"),
        "members": " ".join(fold.run_dir.name for fold in folds),
        "minutes": round(sum(block.row["minutes"] or 0 for block in below), 2) if not states else "",
        "reason": why_not,
    }
    return _Block(row, scores, tuple(fold.run_dir for fold in folds), below)


def _row(config: dict[str, Any], scores: Figures) -> Row:
    row: Row = {key: config.get(key, "") for key in columns()}
    measured = (*figures.on_leaderboard("clean"), *figures.on_leaderboard("corrupted"), *_OF_METRICS)
    row |= {key: scores[key] for key in measured if scores.get(key) is not None}
    if scores.get(f"{figures.MAIN}_interval"):
        row[LOW], row[HIGH] = scores[f"{figures.MAIN}_interval"]
    return row


def _name(folds: Sequence[Result]) -> str:
    """`003-resnet34-fold0` → `resnet34-folds`."""
    words = [word for word in folds[0].run_dir.name.split("-")[1:] if not re.fullmatch(r"fold\d+", word)]
    return "-".join([*(words or [str(folds[0].request.config.get("model", ""))]), "folds"])


def _compare(ranked: Sequence[_Block], figure: str) -> None:
    """Fill in `distinguishable` and `val_images` of the blocks with a score, which are sorted, best first."""
    by_block = [_predicted(block) for block in ranked]
    for block, predicted in zip(ranked, by_block, strict=True):
        block.row["val_images"] = len(predicted.ids) if predicted else ""
    if not by_block or (best := by_block[0]) is None:
        return
    from launcher.record import predictions

    ranked[0].row["distinguishable"] = "no"
    compared = predictions.distinguishable(best, by_block[1:], figures.columns()[figure])
    for block, apart in zip(ranked[1:], compared, strict=True):
        block.row["distinguishable"] = "" if apart is None else "yes" if apart else "no"


def _predicted(block: _Block) -> Predictions | None:
    parts = standings.predictions_of(block.runs)
    if parts is None:
        return None
    from launcher.record import predictions

    return predictions.joined(parts)


def collect(
    submission: Path, place: Path | None = None, replace: bool = False, say: Callable[[str], None] = lambda line: None
) -> tuple[list[Row], str]:
    """Write leaderboard.csv. Copy the best run's checkpoint into the champion's folder (default `<runs>/champion`) if
    it beats the present champion. Returns the rows and a line about the champion. Calls `say` before a wait.

    `replace` copies it also if the two were validated on different splits and so are not comparable. A fold is never
    champion, even if it was trained alone: its validation images differ from those of the others.
    """
    rows = leaderboard_rows(submission)
    out = io.StringIO()
    writer = csv.DictWriter(out, columns(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    failed = _attempt(lambda: folders.write(submission / "leaderboard.csv", csv_bytes(out.getvalue())))
    ranked = [row for row in rows if row["rank"] != ""]
    trained = (row for row in ranked if row["kind"] == "train" and row["fold"] == "")
    best = next((row for row in trained if trainer_files.has(submission / row["run"], trainer_files.BEST)), None)
    folds = any(row["kind"] == "folds" or row["fold"] != "" for row in ranked)
    place = place or submission.parent / "champion"
    lines: list[str] = []
    why_none = ""
    if best is None:
        why_none = FOLDS_ALONE + _joined_folds(submission, rows) if folds else _no_figure(submission, rows)
    kept = _attempt(lambda: lines.append(champion.crown(submission, best, place, replace, why_none, say)))
    lines += [f"leaderboard.csv is not written: {failed}"] if failed else []
    lines += [f"the champion is not updated: {kept}; another folder: --champion DIR"] if kept else []
    return rows, "\n".join(lines)


def _joined_folds(submission: Path, rows: Sequence[Row]) -> str:
    """What to predict with instead of a fold: the submission's ensemble, or one that has to be added."""
    ensembles = [row for row in rows if row["kind"] == "ensemble"]
    if not ensembles:
        return ADD_ENSEMBLE
    first = ensembles[0]  # the best
    if first["checkpoint"]:
        return f"predict with {submission.name}/{first['checkpoint']}"
    return f"their ensemble, {first['run']}, is {first['state']}"


def _no_figure(submission: Path, rows: Sequence[Row]) -> str:
    """Why no training run can become the champion."""
    if not any(row["kind"] in ("train", "folds") or row["state"] == UNKNOWN for row in rows):
        return NO_TRAINING
    return NO_FIGURE + _unusable(rows) + _best_so_far(submission, rows)


def _unusable(rows: Sequence[Row]) -> str:
    """That runs without a result may have succeeded, because their records cannot be used; empty if there are none."""
    unknown = [row for row in rows if row["state"] == UNKNOWN]
    if not unknown:
        return ""
    return f", as far as is known: the records of {counted(len(unknown), 'run')} cannot be used: {unknown[0]['reason']}"


def _best_so_far(submission: Path, rows: Sequence[Row]) -> str:
    """The best figure of a run that was stopped or has failed, as `status` shows it; empty if there is none."""
    unfinished = (row for row in rows if row["kind"] == "train" and row["state"] not in GOOD)
    so_far = []
    for row in unfinished:
        beaten = trainer_figures.read_progress(submission / row["run"])
        if beaten is not None and beaten.best_f1 is not None:
            so_far.append((beaten.best_f1, row))
    if not so_far:
        return ""
    value, row = max(so_far, key=lambda pair: pair[0])
    return f" (so far {row['run']}, {row['state']}, has {figures.MAIN} {value:.4f})"


def _attempt(write: Callable[[], object]) -> str | None:
    """Why the results cannot be written: they may be another user's, or the disk full. None if they were."""
    try:
        write()
    except OSError as error:
        return os_error(error)
    return None


def places(submission: Path) -> tuple[list[tuple[str, str]], str | None]:
    """The results' files, pairs of a title and a path; and the one submission.csv that is meant for upload: that of the
    last predict step, or without one that of the last ensemble. None if there is none, or if a predict step has not
    succeeded."""
    labelled = [("leaderboard", submission / "leaderboard.csv"), ("runs", submission)]
    tables: dict[str, list[Path]] = {"ensemble": [], "predict": []}
    predicted_again: set[str] = set()
    unfinished = False
    with Records(submission) as records:
        for run_dir in records.run_dirs():
            request = records.look_at_request(run_dir.name)
            if isinstance(request, Status) or request.kind == "train":
                continue
            if records.look(run_dir.name).state not in GOOD:
                unfinished = unfinished or request.kind == "predict"
                continue
            predicted_again |= set(request.needs) if request.kind == "predict" else set()
            for name in ("ensemble.json", "submission.csv", "analysis_results/report.html"):
                if trainer_files.has(run_dir, name):
                    labelled.append((request.kind, run_dir / name))
                    if name == "submission.csv":
                        tables.setdefault(request.kind, []).append(run_dir / name)
    upload = (
        None if unfinished else next((found[-1] for found in (tables["predict"], tables["ensemble"]) if found), None)
    )
    if upload is not None:  # a vote's own table is without the arguments of the step that predicts with it
        hidden = {upload, *(path for path in tables["ensemble"] if path.parent.name in predicted_again)}
        labelled = [(what, path) for what, path in labelled if path not in hidden]
    best = submission.parent / "champion" / "best_model.ckpt"
    labelled += [("champion", best)] if best.exists() else []
    return [(what, relative(path)) for what, path in labelled], None if upload is None else relative(upload)
