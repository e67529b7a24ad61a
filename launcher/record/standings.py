"""Ranking of a submission's runs: by one figure for all, with the folds of one configuration as one result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.base.errors import RunError
from launcher.record import trainer_files
from launcher.record.find import read_submission
from launcher.record.journal import Status
from launcher.record.records import Records
from launcher.record.request import Kind, RunRequest
from launcher.record.states import GOOD, UNKNOWN
from launcher.record.trainer_figures import Figures, read_metrics
from trainer.base.figures import DEFAULT_MONITOR, MAIN, columns

if TYPE_CHECKING:
    from launcher.record.predictions import Predictions


@dataclass(frozen=True)
class Result:
    """A run and its result. `figures` is empty until the run has succeeded."""

    run_dir: Path
    request: RunRequest
    status: Status
    figures: Figures = field(default_factory=dict)

    @property
    def good(self) -> bool:
        return self.status.state in GOOD


def results(submission: Path, *kinds: str) -> list[Result]:
    """The runs of these kinds, in the order of their index. One whose request cannot be used is `unknown`."""
    selected = []
    with Records(submission) as records:
        for run_dir in records.run_dirs():
            read, status = records.look_at_request(run_dir.name), records.look(run_dir.name)
            if isinstance(read, Status):
                request = RunRequest(run_dir.name, 0, _kind(run_dir), [])
                status = status if status.state == UNKNOWN else read
            else:
                request = read
            if request.kind in kinds:
                figures = read_metrics(run_dir) if status.state in GOOD else {}
                selected.append(Result(run_dir, request, status, figures))
    return selected


def _kind(run_dir: Path) -> Kind:
    """The kind of a run whose request cannot be used, as far as its submission says it."""
    with suppress(RunError):
        return "train" if run_dir.name in read_submission(run_dir.parent).get("runs", ()) else "ensemble"
    return "train"


def configurations(all_results: Iterable[Result]) -> list[list[Result]]:
    """The results by configuration: those that differ only in `data.fold` form one group, with the folds in order;
    every other result is a group of its own. Groups are in the order of their first results."""
    groups: dict[str, list[Result]] = {}
    for result in all_results:
        groups.setdefault(result.request.configuration or result.run_dir.name, []).append(result)
    return [sorted(group, key=fold_of) for group in groups.values()]


def fold_of(result: Result) -> int:
    return int(result.request.config.get("fold") or 0)


def out_of_fold(folds: Sequence[Result]) -> tuple[Predictions | None, str]:
    """The joined predictions of a configuration's folds, or None and the reason."""
    if missing := [f"fold {fold_of(fold)} {fold.status.state}" for fold in folds if not fold.good]:
        return None, f"incomplete: {', '.join(missing)}"
    parts = predictions_of([fold.run_dir for fold in folds])
    if parts is None:
        return None, "a fold has no val_predictions.npz that can be read"
    from launcher.record import predictions

    joint = predictions.joined(parts)
    return joint, "" if joint else "its folds do not fit together: the data changed between the runs"


def predictions_of(run_dirs: Sequence[Path]) -> list[Predictions] | None:
    """The predictions of each run; None if one has none that can be read. Loads numpy only if all have the file."""
    if not all(trainer_files.has(run_dir, trainer_files.PREDICTIONS) for run_dir in run_dirs):
        return None
    from launcher.record import predictions

    parts = [part for run_dir in run_dirs if (part := predictions.load(run_dir)) is not None]
    return parts if len(parts) == len(run_dirs) else None


def pooled(folds: Sequence[Result]) -> tuple[Figures, str]:
    """The figures of a configuration's folds together; or an empty mapping and the reason if they cannot be joined."""
    joint, why_not = out_of_fold(folds)
    if joint is None:
        return {}, why_not
    from launcher.record import predictions

    known: Figures = {key: folds[0].figures[key] for key in ("monitor", "groups") if key in folds[0].figures}
    return {**known, **predictions.scores(joint)}, ""


def judged_by(all_figures: Iterable[Figures]) -> str:
    """The figure to compare runs by: the one that all of them monitored, else `DEFAULT_MONITOR` if all have it, else
    `MAIN`."""
    judged, known = [figures for figures in all_figures if figures.get(MAIN) is not None], columns()
    monitored = {
        str(figures["monitor"]) if figures.get("monitor") in known and figures["monitor"] in figures else MAIN
        for figures in judged
    }
    if len(monitored) == 1:
        return monitored.pop()
    return DEFAULT_MONITOR if judged and all(DEFAULT_MONITOR in figures for figures in judged) else MAIN


def worth(of: Figures, figure: str) -> float:
    """Value of the figure for a ranking: higher is better; a run without the figure gets the lowest value."""
    value = score(of, figure)
    return float("-inf") if value is None else columns()[figure].worth(value)


def score(of: Figures, figure: str) -> float | None:
    """Value of the figure; None if the run does not have it."""
    value = of.get(figure)
    return float(value) if value is not None else None


def ranked(submission: Path) -> list[list[Result]]:
    """The configurations of training runs, each with all its folds, the best first. Leaves out those that lack a fold
    or a run."""
    complete = [group for group in configurations(results(submission, "train")) if all(result.good for result in group)]
    judged = [(group, group[0].figures if len(group) == 1 else pooled(group)[0]) for group in complete]
    figure = judged_by(figures for _, figures in judged)
    return [group for group, _ in sorted(judged, key=lambda pair: -worth(pair[1], figure))]
