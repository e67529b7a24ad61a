"""The engines by name, and the engine of a run or a submission.

No code outside this folder names an engine. A new engine is a folder beside this file and a line in ENGINES.
Imports almost nothing: the command line asks it for names.
"""

from __future__ import annotations

import errno
import importlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.base.errors import RunError
from trainer.base.errors import nearest

if TYPE_CHECKING:
    from launcher.engines.base import Engine, QueueEngine, SupervisedEngine
    from launcher.job.schema import SectionSpec
    from launcher.record.journal import Status


READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
"""Error numbers of a change to another user's files, or on a file system that cannot be changed."""


@dataclass(frozen=True)
class Entry:
    """Location of an engine's class (`module:Class`), and the fields of its section that are also options of `submit`.
    `has_queue`: whether it is a `QueueEngine`; None: its class is imported to know it, which commands that only look
    would notice."""

    place: str
    options: tuple[str, ...] = ()
    has_queue: bool | None = None


ENGINES: dict[str, Entry] = {
    "docker": Entry("launcher.engines.docker.engine:DockerEngine", has_queue=False),
    "native": Entry("launcher.engines.native.engine:NativeEngine", has_queue=False),
    "slurm": Entry("launcher.engines.slurm.engine:SlurmEngine", ("partition", "account", "qos"), has_queue=True),
}
"""Engines in the order in which `--engine auto` asks them."""
AUTO = "auto"
BY_HAND = "native"
"""The engine of a `launcher exec` by the user, and of runs whose journal names no engine."""


@cache
def engine(name: str) -> Engine:
    """The engine `name`: one object per process. Raises RunError if there is none."""
    if name not in ENGINES:
        raise RunError(f"no engine '{name}'; {nearest(name, ENGINES)}")
    module, _, attribute = ENGINES[name].place.partition(":")
    made: Engine = getattr(importlib.import_module(module), attribute)()
    return made


def supervised(name: str) -> SupervisedEngine:
    """The engine `name`, for a supervisor. Raises RunError if there is none, or if it needs no supervisor."""
    from launcher.engines.base import SupervisedEngine

    named = engine(name)
    if not isinstance(named, SupervisedEngine):
        raise RunError(f"the engine {name} has its own queue and needs no supervisor")
    return named


def sections() -> dict[str, type[SectionSpec]]:
    """The engines' sections of the job file, by their names."""
    models = {name: engine(name).Section for name in ENGINES}
    return {name: model for name, model in models.items() if model is not None}


def of_submission(submission: Path) -> Engine:
    """The engine that the submission was started with. Raises RunError if this launcher does not have it."""
    return _known(_named_by(submission.absolute()) or BY_HAND, submission / "submission.json")


def _known(name: str, place: Path) -> Engine:
    """The engine that a file names. Raises RunError with the place."""
    try:
        return engine(name)
    except RunError as error:
        raise RunError(f"{place}: engine: {error}") from None


@cache
def _named_by(submission: Path) -> str:
    """The name in submission.json; empty if it names none. Raises RunError if the file cannot be read."""
    from launcher.record.find import read_submission

    place = submission / "submission.json"
    if not place.exists():
        return ""
    content: object = read_submission(submission)
    if not isinstance(content, dict):
        raise RunError(f"{place}: not a submission of this launcher")
    return str(content.get("engine", ""))


def of_run(run_dir: Path) -> Engine:
    """The engine that the run's last event names; for a run that was never started, the submission's. Raises
    RunError."""
    from launcher.record.journal import read_status

    return _of_run(run_dir, read_status(run_dir))


def _of_run(run_dir: Path, status: Status) -> Engine:
    from launcher.record.folders import JOURNAL, state_folder

    named = status.figures.get("engine")
    return _known(str(named), state_folder(run_dir) / JOURNAL) if named else of_submission(run_dir.parent)


def queue_of(submission: Path) -> QueueEngine | None:
    """The submission's engine if it has its own queue, else None. Raises RunError."""
    entry = ENGINES.get(_named_by(submission.absolute()) or BY_HAND)
    if entry is not None and entry.has_queue is False:
        return None
    from launcher.engines.base import QueueEngine

    named = of_submission(submission)
    return named if isinstance(named, QueueEngine) else None


def is_driven(submission: Path) -> bool:
    """Whether a launcher is running the submission, or an engine's queue has jobs of it."""
    from launcher.record import lease

    if lease.is_driven(submission):
        return True
    queue = queue_of(submission)
    return queue is not None and queue.drives(submission)


def release(submissions: Iterable[Path]) -> None:
    """Remove jobs from the engines' queues that wait for runs that were ended here."""
    for submission in submissions:
        if queue := queue_of(submission):
            queue.release(submission)


def why_waits(submission: Path) -> str | None:
    """Why the submission's queued runs wait for something else than each other, by the launcher that is running it.
    None if they do not, and for an engine with its own queue, whose `why_waits` knows it for each run."""
    from launcher.record import lease, waiting

    try:
        if queue_of(submission) is not None:
            return None
    except RunError:
        return None
    return waiting.read(submission) if lease.is_driven(submission) else None


def settle(run_dir: Path, driving: bool = False) -> str | None:
    """Record the end of the run if it has ended and nobody has recorded it. Returns why that is unknown, or why the run
    waits in the engine's queue, or None.

    Leaves the run alone if a launcher is running its submission (`driving`: the caller is that launcher).
    """
    from launcher.record import lease
    from launcher.record.journal import read_status

    try:
        status = read_status(run_dir)
        waits = status.state == "queued" and queue_of(run_dir.parent) is not None
        if not (waits or status.state in ("starting", "running")):
            return None
        if not driving and lease.is_driven(run_dir.parent):
            return None
        from launcher.engines.base import QueueEngine

        its = _of_run(run_dir, status)
        its.settle(run_dir)
        return its.trouble or (its.why_waits(run_dir) if isinstance(its, QueueEngine) else None)
    except RunError as error:
        return str(error)
    except OSError as error:
        is_ours = error.errno is None or error.strerror != os.strerror(error.errno)  # of a file that is not one
        if error.errno not in READ_ONLY or is_ours:
            return f"{error.filename or run_dir}: {error.strerror}"
        return (
            "it is not running any more, as far as another user can see; only its owner's launcher can record its end"
        )
