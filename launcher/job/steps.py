"""Steps of `after:`: select their runs when these have ended."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.base.errors import RunError
from launcher.record import standings
from launcher.record.find import find_submission, fits
from launcher.record.request import RunRequest, read_request

ONE_FOLD = (
    "the best configuration has several folds, each with its own model: give an ensemble with needs:, or one run with "
    "from: {runs: [name]}"
)


def succeeded(submission: Path) -> list[Path]:
    """The training runs that succeeded: the best configuration first, runs of incomplete folds last."""
    best = [result.run_dir for group in standings.ranked(submission) for result in group]
    others = [result.run_dir for result in standings.results(submission, "train") if result.good]
    return list(dict.fromkeys([*best, *others]))


def selected_runs(select: dict[str, Any], submission: Path) -> list[Path]:
    """The run directories that `select` names: `top` counts configurations, and includes all folds of each. Raises
    RunError if there is none."""
    if select.get("submission"):
        submission = find_submission(submission.parent, str(select["submission"]))
    if "top" in select:
        groups = standings.ranked(submission)[: int(select["top"])]
        wanted = [result.run_dir for group in groups for result in group]
    else:
        candidates = succeeded(submission)
        wanted = [path for path in candidates if any(fits(path.name, pattern) for pattern in select["runs"])]
    if not wanted:
        names = ", ".join(path.name for path in succeeded(submission)) or "none succeeded"
        raise RunError(f"no run of {submission.name} matches from: {json.dumps(select)}; available: {names}")
    return wanted


def with_members(request: RunRequest, submission: Path) -> RunRequest:
    """The step with the currently available members in its command, as paths below `@runs`."""
    assert request.select is not None
    members = selected_runs(request.select, submission)
    if request.kind != "ensemble" and "top" in request.select and len(members) > 1 and _are_folds(members):
        raise RunError(f"{request.name}: {ONE_FOLD}")
    paths = [portable_path(path / "best.ckpt") for path in members]
    options = request.command if request.options is None else request.options
    return dataclasses.replace(request, command=step_command(request.kind, paths, options), options=options)


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
