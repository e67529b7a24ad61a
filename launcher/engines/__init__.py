"""How and where a run is executed: one folder per engine behind one protocol, and the choice among them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.base.errors import RunError
from launcher.engines.base import Engine, Watcher
from launcher.record import lease
from launcher.record.journal import Status, read_status

if TYPE_CHECKING:
    from launcher.engines.slurm.engine import SlurmEngine


@cache
def engine(name: str) -> Engine:
    """The engine of that name: one in a process, so that what it knows is asked for once."""
    if name == "docker":
        from launcher.engines.docker.engine import DockerEngine

        return DockerEngine()
    from launcher.engines.native.engine import NativeEngine

    return NativeEngine()


@cache
def slurm_engine() -> SlurmEngine:
    """The engine of runs that Slurm starts: no supervisor drives it."""
    from launcher.engines.slurm.engine import SlurmEngine

    return SlurmEngine()


def watcher(name: str) -> Watcher:
    """The engine of that name, for one who only looks or stops."""
    return slurm_engine() if name == "slurm" else engine(name)


def of(run_dir: Path) -> Watcher:
    """The engine that the run's last event names; of a run that nobody has started, the submission's."""
    return _of(run_dir, read_status(run_dir))


def _of(run_dir: Path, status: Status) -> Watcher:
    named = status.figures.get("engine") or ("slurm" if is_slurm(run_dir.parent) else "native")
    return watcher(str(named))


def is_slurm(submission: Path) -> bool:
    """Whether the submission's runs are handed to Slurm."""
    return _engine_of(submission.absolute()) == "slurm"


@cache
def _engine_of(submission: Path) -> str:
    try:
        return str(json.loads((submission / "submission.json").read_text(encoding="utf-8")).get("engine"))
    except (OSError, ValueError, AttributeError):
        return ""


def is_driven(submission: Path) -> bool:
    """Whether somebody goes on with the submission: a launcher, or Slurm, which has jobs of it."""
    return lease.is_driven(submission) or (is_slurm(submission) and slurm_engine().drives(submission))


def release(submissions: Iterable[Path]) -> None:
    """Take back what waits elsewhere for runs that were ended here."""
    for submission in submissions:
        if is_slurm(submission):
            slurm_engine().release(submission)


def settle(run_dir: Path, driving: bool = False) -> str | None:
    """Record how the run ended, where it has ended and nobody did so; why that cannot be known, why Slurm lets it wait,
    or None.

    A run whose submission is driven is left to the launcher that drives it (`driving`: that is the caller).
    """
    status = read_status(run_dir)
    waits = status.state == "queued" and is_slurm(run_dir.parent)
    if not (waits or status.state in ("starting", "running")) or (not driving and lease.is_driven(run_dir.parent)):
        return None
    its = _of(run_dir, status)
    try:
        its.settle(run_dir)
    except RunError as error:
        return str(error)
    return its.trouble or (slurm_engine().why_waits(run_dir) if its.name == "slurm" else None)
