"""Steps of `after:`: select their runs when these have ended."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.base.errors import RunError
from launcher.base.sizes import listed
from launcher.record import standings
from launcher.record.find import find_submission, fits
from launcher.record.request import RunRequest, read_request
from launcher.record.states import ENDED, GOOD, State
from trainer.base.plural import counted

ONE_FOLD = (
    "the best configuration has several folds, each with its own model: give an ensemble with needs:, or one run with "
    "from: {runs: [name]}"
)


def succeeded(submission: Path) -> list[Path]:
    """The training runs that succeeded: the best configuration first, runs of incomplete folds last."""
    best = [result.run_dir for group in standings.ranked(submission) for result in group]
    others = [result.run_dir for result in standings.results(submission, "train") if result.good]
    return list(dict.fromkeys([*best, *others]))


@dataclass(frozen=True)
class Selection:
    """The run directories that a step takes."""

    members: list[Path]
    chosen: int
    """Number of members: configurations for `top`, else runs."""
    wanted: int
    """Number of members if every run had succeeded."""
    absent: dict[str, State]
    """The runs that could be members and have not succeeded, by name."""
    total: int
    """Number of runs that could be members."""


def selected(select: dict[str, Any], submission: Path) -> Selection:
    """The runs that `select` names: `top` counts configurations, and includes all folds of each. Raises RunError if
    there is none."""
    if select.get("submission"):
        submission = find_submission(submission.parent, str(select["submission"]))
    candidates = standings.results(submission, "train")
    if "top" in select:
        groups = standings.ranked(submission)[: int(select["top"])]
        members = [result.run_dir for group in groups for result in group]
        chosen, wanted = len(groups), min(int(select["top"]), len(standings.configurations(candidates)))
    else:
        candidates = [each for each in candidates if any(fits(each.run_dir.name, word) for word in select["runs"])]
        names = {each.run_dir for each in candidates}
        members = [path for path in succeeded(submission) if path in names]
        chosen, wanted = len(members), len(candidates)
    if not members:
        available = ", ".join(path.name for path in succeeded(submission)) or "none succeeded"
        raise RunError(f"no run of {submission.name} matches from: {json.dumps(select)}; available: {available}")
    absent = {each.run_dir.name: each.status.state for each in candidates if not each.good}
    return Selection(members, chosen, wanted, absent, len(candidates))


def selected_runs(select: dict[str, Any], submission: Path) -> list[Path]:
    """The run directories of `selected`. Raises RunError."""
    return selected(select, submission).members


def with_members(request: RunRequest, submission: Path) -> RunRequest:
    """The step with the currently available members in its command, as paths below `@runs`."""
    assert request.select is not None
    selection = selected(request.select, submission)
    members = selection.members
    if request.kind != "ensemble" and "top" in request.select and len(members) > 1 and _are_folds(members):
        raise RunError(f"{request.name}: {ONE_FOLD}")
    paths = [portable_path(path / "best.ckpt") for path in members]
    options = request.command if request.options is None else request.options
    own = not request.select.get("submission")
    return dataclasses.replace(
        request,
        command=step_command(request.kind, paths, options),
        options=options,
        absent=list(selection.absent) if own else [],
        remark=_remark(request, selection),
    )


def _remark(request: RunRequest, selection: Selection) -> str:
    """That a step has fewer members than it would have if every run had succeeded; empty if it has not."""
    absent = listed([f"{name} {state}" for name, state in selection.absent.items()])
    if request.kind == "ensemble":
        few = f"votes with {selection.chosen} of {selection.wanted}: {absent}"
        return few if selection.chosen < selection.wanted else ""
    succeeded_runs = selection.total - len(selection.absent)
    return f"takes the best of {succeeded_runs} of {counted(selection.total, 'run')}: {absent}" if absent else ""


def outdated(submission: Path, requests: Mapping[str, RunRequest], states: Mapping[str, State]) -> dict[str, str]:
    """The steps that have succeeded and would have other members now, because runs have succeeded since, and the steps
    that need them; each with the reason. None as long as one of the runs that it needs has not ended."""
    reasons: dict[str, str] = {}
    for name, request in requests.items():
        if request.kind == "train" or states.get(name) not in GOOD:
            continue
        if any(states.get(need, "succeeded") not in ENDED for need in request.needs):
            continue
        if late := [run for run in request.absent if states.get(run) in GOOD]:
            with contextlib.suppress(RunError):
                if with_members(request, submission).command != request.command:
                    reasons[name] = f"{listed(late)} {'has' if len(late) == 1 else 'have'} succeeded since"
        if name not in reasons and (again := [need for need in request.needs if need in reasons]):
            reasons[name] = f"{again[0]} is made again"
    return reasons


def _are_folds(members: Sequence[Path]) -> bool:
    first, second = (read_request(path).configuration for path in members[:2])
    return bool(first) and first == second


def portable_path(path: Path) -> str:
    """`<runs>/<submission>/<run>/file` → `@runs/<submission>/<run>/file`."""
    return "@runs/" + "/".join(path.parts[-3:])


def step_command(kind: str, paths: Sequence[str], rest: Sequence[str]) -> list[str]:
    """The trainer's words for a step on these checkpoints; `rest` are its further options."""
    if kind == "ensemble":
        return ["ensemble", "--checkpoints", *paths, *rest]
    return [kind, "--checkpoint", paths[0], *rest]
