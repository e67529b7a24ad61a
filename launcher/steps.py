"""Steps of `after:`: which runs they take, once these are over."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher import runs
from launcher.runs import RunError, RunRequest


def figures(run_dir: Path) -> dict[str, Any]:
    """What metrics.json of a run holds; empty where there is none yet."""
    try:
        content = json.loads((run_dir / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def succeeded(submission: Path, kind: str = "train") -> list[Path]:
    """The runs of that kind that succeeded, the best validation F1 first."""
    found = [
        path
        for path in runs.list_runs(submission)
        if runs.read_request(path).kind == kind and runs.read_status(path).state in runs.GOOD
    ]
    return sorted(found, key=lambda path: -float(figures(path).get("val_f1") or 0))


def members(select: dict[str, Any], submission: Path) -> list[Path]:
    """The run directories that `select` names. Raises RunError where there is none."""
    if select.get("submission"):
        submission = runs.find_submission(submission.parent, str(select["submission"]))
    found = succeeded(submission)
    wanted = found
    if "top" in select:
        wanted = found[: int(select["top"])]
    elif "runs" in select:
        wanted = [path for path in found if any(runs.fits(path.name, pattern) for pattern in select["runs"])]
    if not wanted:
        names = ", ".join(path.name for path in found) or "none succeeded"
        raise RunError(
            f"no run of {submission.name} is left to work on: from: {json.dumps(select)} finds none of: {names}"
        )
    return wanted


def resolve(request: RunRequest, submission: Path) -> RunRequest:
    """The step with its members in the command, as paths below `@runs`: those that serve now."""
    assert request.select is not None
    found = members(request.select, submission)
    paths = [reference(path / "best.ckpt") for path in found]
    options = request.command if request.options is None else request.options
    return dataclasses.replace(request, command=command(request.kind, paths, options), options=options)


def reference(path: Path) -> str:
    """`<runs>/<submission>/<run>/file` → `@runs/<submission>/<run>/file`."""
    return "@runs/" + "/".join(path.parts[-3:])


def command(kind: str, paths: Sequence[str], rest: Sequence[str]) -> list[str]:
    """The trainer's words for a step on these checkpoints; `rest` are its further options."""
    if kind == "ensemble":
        return ["ensemble", "--checkpoints", *paths, *rest]
    return [kind, "--checkpoint", paths[0], *rest]
