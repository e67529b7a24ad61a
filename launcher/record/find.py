"""List submissions and runs on disk, and find one by the name that a user gives."""

from __future__ import annotations

import fnmatch
import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from launcher.base.errors import RunError
from launcher.record.folders import STATE, is_old, is_run
from trainer.base.errors import nearest

BUILDING = ".new-"
"""Prefix of the folder's name while a submission is being created."""


def list_runs(submission_dir: Path) -> list[Path]:
    """The run directories of a submission, in the order of their index."""
    try:
        with os.scandir(submission_dir) as entries:
            names = {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}
    except (FileNotFoundError, NotADirectoryError):
        return []
    known = set()
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(submission_dir / STATE) as entries:
        known = {entry.name for entry in entries if not entry.name.startswith(".")}
    old = {name for name in names - known if not name.startswith(".") and is_old(submission_dir / name)}
    return [submission_dir / name for name in sorted(names & (known | old))]


def read_submission(submission: Path) -> dict[str, Any]:
    """submission.json. Raises RunError."""
    try:
        content: dict[str, Any] = json.loads((submission / "submission.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{submission / 'submission.json'}: cannot be read: {error}") from None
    return content


def list_submissions(runs_root: Path) -> list[Path]:
    """The submissions below `runs_root`, oldest first."""
    # A name with a leading dot is a submission in creation, or one whose launcher was killed then.
    submissions = [path.parent for path in runs_root.glob("[!.]*/submission.json")]
    # By the time of a file that is written once: the folder's own time changes with every file in it.
    return sorted(submissions, key=lambda path: ((path / "submission.json").stat().st_mtime_ns, path.name))


def find_submission(runs_root: Path, name: str | None = None) -> Path:
    """The submission `name`, or the latest of the job `name`, or the only one whose name starts with `name`. Without a
    name, the latest submission.

    Raises RunError, which names the most similar one.
    """
    if name and (Path(name) / "submission.json").is_file():
        return Path(name)
    submissions = list_submissions(runs_root)
    if not submissions:
        start = "start one: launcher submit jobs/quickstart.yaml"
        if not Path("jobs/quickstart.yaml").is_file():
            start = "give the runs folder with --runs DIR, or cd to the project's checkout to start one"
        raise RunError(f"{runs_root}: no submission yet; {start}")
    if name is None:
        return max(submissions, key=lambda path: (path / "submission.json").stat().st_mtime_ns)
    names = [path.name for path in submissions]
    if name in names:
        return runs_root / name
    of_job = [candidate for candidate in names if re.fullmatch(re.escape(name) + r"-\d{8}-\d{6}(-\d+)?", candidate)]
    if of_job:
        return runs_root / of_job[-1]
    beginning = [candidate for candidate in names if candidate.startswith(name)]
    if len(beginning) == 1:
        return runs_root / beginning[0]
    if beginning:
        raise RunError(f"'{name}' is ambiguous; write one of: {', '.join(beginning)}")
    raise RunError(f"{runs_root}: no submission '{name}'; {nearest(name, names)}")


def fits(name: str, pattern: str) -> bool:
    """Whether a run's name, with or without its number, matches a glob."""
    return fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(name.partition("-")[2], pattern)


def find_run(runs_root: Path, name: str) -> Path:
    """The run `name`: a directory, `submission/run`, or the name, number or pattern of a run, in the latest submission
    that has such a run. Raises RunError."""
    if is_run(Path(name)):
        return Path(name)
    submission, _, run = name.rpartition("/")
    candidates = [find_submission(runs_root, submission)] if submission else list_submissions(runs_root)[::-1]
    if not candidates:
        find_submission(runs_root)
    for directory in candidates:
        paths = list_runs(directory)
        for matches in (
            [p for p in paths if p.name == run],
            [p for p in paths if p.name.partition("-")[0].lstrip("0") == run.lstrip("0") and run.isdigit()],
            [p for p in paths if p.name.partition("-")[2] == run],
            [p for p in paths if fits(p.name, run)],
        ):
            if len(matches) > 1:
                raise RunError(f"'{name}' is ambiguous; write one of: {', '.join(p.name for p in matches)}")
            if matches:
                return matches[0]
    names = [path.name for directory in candidates for path in list_runs(directory)]
    raise RunError(f"no run '{name}'; {nearest(run, names)}")


def own_cache(runs_root: Path) -> Path:
    """The folder for what the launcher itself keeps for all submissions. No run can write to it."""
    return runs_root / STATE


def cache_dir(runs_root: Path) -> Path:
    """The folder that all runs share: $CACHE_DIR, else .cache beside the submissions."""
    return Path(os.environ.get("CACHE_DIR") or runs_root / ".cache").expanduser().absolute()
