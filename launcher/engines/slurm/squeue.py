"""Parses `squeue --json` in the formats of several Slurm versions. Pure functions of the text.

Slurm 22.05 prints plain numbers and one state per job (COMPLETING hides the final state). From 23.02 on numbers are
`{"set": …, "infinite": …, "number": …}`, from 23.11 on states are lists, and an exit code is a structure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"})
OVER = frozenset(
    {
        "COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE",
        "OUT_OF_MEMORY", "REVOKED", "LAUNCH_FAILED",
    }
)  # fmt: skip
"""States of a job that has ended. COMPLETING with one of them: some of its processes still live."""


@dataclass(frozen=True)
class Key:
    """A job, or a task of a job array: `12`, `12_3`."""

    job: int
    task: int | None = None

    def __str__(self) -> str:
        return str(self.job) if self.task is None else f"{self.job}_{self.task}"


def key(text: str) -> Key:
    """The reverse of `str`. Raises ValueError."""
    job, _, task = text.partition("_")
    return Key(int(job), int(task) if task else None)


@dataclass(frozen=True)
class SlurmJob:
    """One record: a job, a task of an array, or several tasks of an array that wait or were cancelled together."""

    id: int
    array: int | None = None
    task: int | None = None
    tasks: tuple[range, ...] = ()
    name: str = ""
    folder: str = ""
    states: frozenset[str] = frozenset()
    reason: str = ""
    exit_code: int = 0
    signal: int = 0
    nodes: str = ""
    end_time: int = 0
    """Seconds since 1970 of its end, or of its time limit; 0 if unknown."""
    preempted: bool = False

    @property
    def over(self) -> bool:
        """Whether it has ended, with all its processes that Slurm knows."""
        return bool(self.states & OVER) and "COMPLETING" not in self.states

    @property
    def waits(self) -> bool:
        """Whether it has not started, or will be started again."""
        return bool(self.states & WAITING) and "COMPLETING" not in self.states

    @property
    def end(self) -> str:
        """The state in which it ended; empty if it has not ended."""
        return next(iter(sorted(self.states & OVER)), "")


@dataclass(frozen=True)
class Snapshot:
    """Slurm's jobs at one moment."""

    jobs: tuple[SlurmJob, ...] = ()
    _single: dict[tuple[int, int | None], SlurmJob] = field(default_factory=dict, repr=False)
    _several: dict[int, list[SlurmJob]] = field(default_factory=dict, repr=False)

    def find(self, wanted: Key) -> SlurmJob | None:
        """The record of a job or of a task; None if Slurm does not know it (any more)."""
        job = self._single.get((wanted.job, wanted.task))
        if job is None and wanted.task is not None:
            several = self._several.get(wanted.job, ())
            job = next((record for record in several if any(wanted.task in part for part in record.tasks)), None)
        return job

    def living(self, job: int) -> bool:
        """Whether a job, or any task of an array, has not ended."""
        return any(not each.over for each in self.jobs if job in (each.id, each.array))

    def pending(self, job: int) -> bool:
        """Whether a job that is not an array waits."""
        record = self._single.get((job, None))
        return record is not None and record.waits


def snapshot(jobs: Iterable[SlurmJob]) -> Snapshot:
    """The records, indexed by key."""
    made = Snapshot(tuple(jobs))
    for job in made.jobs:
        if job.tasks:
            made._several.setdefault(job.array or job.id, []).append(job)
        elif job.array and job.task is not None:
            made._single[job.array, job.task] = job
        else:
            made._single[job.id, None] = job
    return made


def parse(text: str) -> Snapshot:
    """The jobs of `squeue --json`. Raises ValueError for anything else."""
    content = json.loads(text)
    if not isinstance(content, dict) or not isinstance(content.get("jobs"), list):
        raise ValueError("it has no jobs")
    return snapshot(_job(entry) for entry in content["jobs"])


def _job(entry: dict[str, Any]) -> SlurmJob:
    states = entry.get("job_state") or []
    code, signal = _exit(entry.get("exit_code"))
    tasks = str(entry.get("array_task_string") or "")
    return SlurmJob(
        id=_number(entry.get("job_id")) or 0,
        array=_number(entry.get("array_job_id")) or None,
        task=None if tasks else _number(entry.get("array_task_id")),
        tasks=ranges(tasks),
        name=str(entry.get("name") or ""),
        folder=str(entry.get("current_working_directory") or ""),
        states=frozenset([states] if isinstance(states, str) else [str(each) for each in states]),
        reason="" if entry.get("state_reason") in (None, "None") else str(entry["state_reason"]),
        exit_code=code,
        signal=signal,
        nodes=str(entry.get("nodes") or ""),
        end_time=_number(entry.get("end_time")) or 0,
        preempted=bool(_number(entry.get("preempt_time"))),
    )


def _number(value: Any) -> int | None:
    """A number in either format; None if it is not set."""
    if isinstance(value, dict):
        return int(value.get("number") or 0) if value.get("set") else None
    return None if value is None or isinstance(value, bool) else int(value)


def _exit(value: Any) -> tuple[int, int]:
    """Exit code and signal: from the status of wait(2) in 22.05, from a structure in newer versions."""
    if isinstance(value, dict) and ("return_code" in value or "signal" in value):
        signal = value.get("signal") or {}
        return _number(value.get("return_code")) or 0, _number(signal.get("id", signal.get("signal_id"))) or 0
    status = _number(value) or 0
    return status >> 8, status & 0x7F


def ranges(text: str) -> tuple[range, ...]:
    """The tasks of an array's `3,5-9,20-40:10%4`. `…` at the end of a text that Slurm has truncated stands for all
    later tasks.

    >>> [list(part) for part in ranges("1,4-6%2")]
    [[1], [4, 5, 6]]
    """
    tasks: list[range] = []
    listed, dots, _ = text.partition("...")
    for first, last, step in re.findall(r"(\d+)(?:-(\d+))?(?::(\d+))?", re.sub(r"%\d+", "", listed)):
        tasks.append(range(int(first), int(last or first) + 1, int(step or 1)))
    if dots and tasks:
        tasks.append(range(tasks[-1].stop, 2**32))
    return tuple(tasks)
