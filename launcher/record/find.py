"""List submissions and runs on disk, and find one by the name that a user gives."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from launcher.base import fields
from launcher.base.errors import RecordError, RunError, UnknownNameError
from launcher.base.sizes import listed
from launcher.record import folders
from launcher.record.folders import STATE, is_old, is_run
from trainer.base.errors import nearest

BUILDING = ".new-"
"""Prefix of the folder's name while a submission is being created."""


def list_runs(submission_dir: Path) -> list[Path]:
    """The run directories of a submission, in the order of their index. Also those that are gone: its records name
    them. Raises OSError."""
    try:
        with os.scandir(submission_dir) as entries:
            names = {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}
    except (FileNotFoundError, NotADirectoryError):
        return []
    known, all_known = set(), set()
    with suppress(OSError), os.scandir(submission_dir / STATE) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                all_known.add(entry.name)
                if entry.is_dir(follow_symlinks=False):
                    known.add(entry.name)
    old = {name for name in names - all_known if not name.startswith(".") and is_old(submission_dir / name)}
    with suppress(RunError):
        submission = read_submission(submission_dir)
        known.update(submission.get("runs") or (), submission.get("steps") or ())
    return [submission_dir / name for name in sorted(known | old | names & all_known)]


_CHECKS: dict[str, fields.Check] = {
    "runs": fields.NAMES,
    "steps": fields.NAMES,
    "engine": fields.TEXT,
    "follows": fields.NAME,
    "max_parallel": fields.whole(1),
    "on_failure": fields.TEXT,
    "image": ((dict,), lambda value: isinstance(value.get("id"), str), "an image with its id"),
}
"""Types of the fields of submission.json that are read."""


def read_submission(submission: Path) -> dict[str, Any]:
    """submission.json. Raises RecordError if it cannot be used."""
    place = submission / "submission.json"
    try:
        with folders.opened(submission) as folder:
            content: object = fields.parsed(folders.read(folder, place.name).decode())
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise RecordError(f"{place}: cannot be read: {why}") from None
    if not isinstance(content, dict):
        raise RecordError(f"{place}: not a submission of this launcher: it is no mapping")
    section = {str(content.get("engine")): fields.MAPPING}  # the engine's section of the job file has its name
    if why := fields.wrong(content, _CHECKS) or fields.wrong(content, section):
        raise RecordError(f"{place}: not a submission of this launcher: {why}")
    return content


def list_submissions(runs_root: Path) -> list[Path]:
    """The submissions below `runs_root`, oldest first. Leaves out folders that this user may not read."""
    submissions = []
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(runs_root) as entries:
        # A name with a leading dot is a submission in creation, or one whose launcher was killed then.
        for name in [entry.name for entry in entries if not entry.name.startswith(".")]:
            with suppress(OSError):
                # By the time of a file that is written once: the folder's own time changes with every file in it.
                written = os.lstat(runs_root / name / "submission.json").st_mtime_ns
                submissions.append((written, name))
    return [runs_root / name for _, name in sorted(submissions)]


def hidden_folders(runs_root: Path, names: Sequence[str] | None = None) -> list[str]:
    """Those of these folders (None: of all) that this user may not look into."""
    hidden = []
    with suppress(OSError):
        for name in sorted(path.name for path in runs_root.iterdir()) if names is None else names:
            try:
                os.lstat(runs_root / name / "submission.json")
            except PermissionError:
                hidden += [] if name.startswith(".") else [name]
            except (OSError, ValueError):
                continue
    return hidden


def find_submission(runs_root: Path, name: str | None = None) -> Path:
    """The submission `name`, or the latest of the job `name`, or the only one whose name starts with `name`. Without a
    name, the latest submission.

    Raises UnknownNameError, which names the most similar one, and RunError if this user may not read its records.
    """
    if name == "":  # an unset variable of a script: not the latest one, and not every name
        raise UnknownNameError("the name of the submission is empty; for the latest one, leave it out")
    submission = _named(runs_root, name)
    folders.refuse_unreadable(submission)
    return submission


def _named(runs_root: Path, name: str | None) -> Path:
    if name and os.path.lexists(Path(name) / "submission.json"):
        return Path(name)
    submissions = list_submissions(runs_root)
    if hidden := hidden_folders(runs_root, [name] if name else []) or (
        [] if submissions else hidden_folders(runs_root)
    ):
        raise RunError(
            f"{runs_root}: you may not look into {listed(hidden)}; ask the owner, or name another submission"
        )
    if not submissions:
        start = "start one: launcher submit jobs/quickstart.yaml"
        if not Path("jobs/quickstart.yaml").is_file():
            start = "give the runs folder with --runs DIR, or cd to the project's checkout to start one"
        message = f"{runs_root}: no submission yet; {start}"
        raise UnknownNameError(message) if name else RunError(message)
    if name is None:
        return submissions[-1]
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
        raise UnknownNameError(f"'{name}' is ambiguous; write one of: {listed(beginning[::-1])}")
    raise UnknownNameError(f"{runs_root}: no submission '{name}'; {nearest(name, names)}", names)


def is_glob(pattern: str) -> bool:
    """Whether a pattern can match other names than itself."""
    return any(character in pattern for character in "*?[")


def fits(name: str, pattern: str) -> bool:
    """Whether a run's name, with or without its number, matches a glob."""
    if not is_glob(pattern):
        return pattern in (name, name.partition("-")[2])
    return fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(name.partition("-")[2], pattern)


def find_run(runs_root: Path, name: str) -> Path:
    """The run `name`: a directory, `submission/run`, or the name, number or pattern of a run, in the latest submission
    that has such a run. Raises RunError."""
    if is_run(Path(name)):
        return Path(name)
    submission, _, run = name.rpartition("/")
    candidates = [find_submission(runs_root, submission)] if submission else list_submissions(runs_root)[::-1]
    if not candidates:
        find_submission(runs_root, name)
    known: list[Path] = []
    for directory in candidates:
        try:
            paths = list_runs(directory)
        except OSError:  # another user's, and not readable
            if submission:
                raise
            continue
        known += paths
        for matches in (
            [p for p in paths if p.name == run],
            [p for p in paths if p.name.partition("-")[0].lstrip("0") == run.lstrip("0") and run.isdigit()],
            [p for p in paths if p.name.partition("-")[2] == run],
            [p for p in paths if fits(p.name, run)],
        ):
            if len(matches) > 1:
                raise UnknownNameError(f"'{name}' is ambiguous; write one of: {listed([p.name for p in matches])}")
            if matches:
                folders.refuse_unreadable(directory)
                return matches[0]
    names = [path.name for path in known]
    raise UnknownNameError(f"no run '{name}'; {nearest(run, names)}", names)


def find_submission_or_run(runs_root: Path, name: str | None = None) -> tuple[Path, str | None]:
    """The submission that the name means, or the submission of the run that it means, and that run's name. Raises
    RunError, with one message if it means neither."""
    try:
        return find_submission(runs_root, name), None
    except UnknownNameError as no_submission:
        if name is None or not no_submission.known:
            raise
        try:
            found = find_run(runs_root, name)
        except UnknownNameError as no_run:
            if "/" in name or not no_run.known:
                raise
            names = [*no_submission.known, *no_run.known]
            message = f"{runs_root}: no submission and no run '{name}'; {nearest(name, names)}"
            raise UnknownNameError(message, names) from None
        return found.parent, found.name


def own_cache(runs_root: Path) -> Path:
    """The folder for what the launcher itself keeps for all submissions. No run can write to it."""
    return runs_root / STATE


def cache_dir(runs_root: Path) -> Path:
    """The folder that all runs share: $CACHE_DIR, else .cache beside the submissions."""
    return Path(os.environ.get("CACHE_DIR") or runs_root / ".cache").expanduser().absolute()
