"""Parses the answers of squeue and scontrol about jobs. Pure functions of the text.

The text format of squeue is the same in all versions of Slurm, and squeue filters it by job and user. `squeue --json`
ignores these filters before Slurm 23.02: it prints all jobs of all users. A state is one word, and COMPLETING hides
the final state.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from trainer.base.brief import in_brief

SEPARATOR = "\x1f"
FIELDS = ("%A", "%F", "%K", "%T", "%l", "%N", "%P", "%j", "%Z", "%r")
FORMAT = SEPARATOR.join(FIELDS)
"""Id, array, its tasks, state, time limit, nodes, partition, name, folder, reason."""
HEADER = "JOBID" + SEPARATOR
"""How squeue's first line begins, which shows that squeue itself has answered."""
WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"})
OVER = frozenset(
    {
        "COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE",
        "OUT_OF_MEMORY", "REVOKED", "LAUNCH_FAILED", "RECONFIG_FAIL",
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
    nodes: str = ""
    partition: str = ""
    limit: float | None = None
    """Its time limit in seconds; None if it has none or that is unknown."""

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

    @property
    def words(self) -> str:
        """The job or the tasks for scancel: `12`, `12_3`, `12_[4-9]`."""
        if not self.tasks:
            return str(Key(self.array or self.id, self.task))
        parts = (f"{part[0]}-{part[-1]}" + (f":{part.step}" if part.step > 1 else "") for part in self.tasks)
        return f"{self.array}_[{','.join(parts)}]"


@dataclass(frozen=True)
class Snapshot:
    """Slurm's jobs at one moment."""

    jobs: tuple[SlurmJob, ...] = ()
    _single: dict[tuple[int, int | None], SlurmJob] = field(default_factory=dict, repr=False)
    _several: dict[int, list[SlurmJob]] = field(default_factory=dict, repr=False)
    _living: set[int] = field(default_factory=set, repr=False)
    _known: set[int] = field(default_factory=set, repr=False)

    def find(self, wanted: Key) -> SlurmJob | None:
        """The record of a job or of a task; None if Slurm does not know it (any more)."""
        job = self._single.get((wanted.job, wanted.task))
        if job is None and wanted.task is not None:
            several = self._several.get(wanted.job, ())
            job = next((record for record in several if any(wanted.task in part for part in record.tasks)), None)
        return job

    def vanished(self, wanted: Key) -> bool:
        """Whether Slurm has records of the array, but none of this task. That is how it forgets tasks that are
        cancelled while they wait."""
        return wanted.task is not None and wanted.job in self._known and self.find(wanted) is None

    def living(self, job: int) -> bool:
        """Whether a job, or any task of an array, has not ended."""
        return job in self._living

    def pending(self, job: int) -> bool:
        """Whether a job that is not an array waits."""
        record = self._single.get((job, None))
        return record is not None and record.waits


def snapshot(jobs: Iterable[SlurmJob]) -> Snapshot:
    """The records, indexed by key."""
    made = Snapshot(tuple(jobs))
    for job in made.jobs:
        made._known.add(job.array or job.id)
        if not job.over:
            made._living.update({job.id, job.array or job.id})
        if job.tasks:
            made._several.setdefault(job.array or job.id, []).append(job)
        elif job.array and job.task is not None:
            made._single[job.array, job.task] = job
        else:
            made._single[job.id, None] = job
    return made


def parse(text: str) -> Snapshot:
    """The jobs of `squeue --format=FORMAT`. Lines before squeue's header, of a wrapper or a login shell, are ignored.
    Raises ValueError for anything else."""
    lines = text.split("\n")  # not splitlines: a folder's name may have other line separators
    start = next((number for number, line in enumerate(lines) if line.startswith(HEADER)), None)
    if start is None:
        raise ValueError(f"not a list of jobs: {in_brief(lines[0], 200) or 'nothing'}")
    return snapshot(_job(line) for line in lines[start + 1 :] if line.strip())


def _job(line: str) -> SlurmJob:
    fields = line.split(SEPARATOR, len(FIELDS) - 1)
    if len(fields) < len(FIELDS):
        raise ValueError(f"not a job: {in_brief(line, 200)}")
    number, array, tasks, state, limit, nodes, partition, name, folder, reason = fields
    several = bool(re.search(r"[^0-9]", tasks)) and tasks != "N/A"
    return SlurmJob(
        id=int(number),
        array=None if tasks == "N/A" else int(array),
        task=int(tasks) if tasks.isdigit() else None,
        tasks=ranges(tasks) if several else (),
        name=name,
        folder=folder,
        states=frozenset([state]),
        reason="" if reason == "None" else reason,
        nodes=nodes,
        partition=partition,
        limit=seconds(limit),
    )


@dataclass(frozen=True)
class Detail:
    """One job in detail, as `scontrol -o show job` or sacct describe it."""

    states: frozenset[str] = frozenset()
    exit_code: int = 0
    signal: int = 0
    nodes: str = ""
    partition: str = ""
    limit: float | None = None
    """Its time limit in seconds; None if it has none."""
    elapsed: float | None = None
    """Seconds since its start."""
    preempted: bool = False
    """Whether Slurm ends it, or has ended it, for another job, and does not start it again by itself."""

    @property
    def end(self) -> str:
        """The state in which it ended; empty if it has not ended or that is hidden by COMPLETING."""
        return next(iter(sorted(self.states & OVER)), "")

    @property
    def left(self) -> float | None:
        """Seconds to its time limit; None without one."""
        return None if self.limit is None or self.elapsed is None else self.limit - self.elapsed


def detail(text: str) -> Detail:
    """A record of `scontrol -o show job`. Raises ValueError for anything else."""
    line = next((line for line in text.split("\n") if line.startswith("JobId=")), "")
    if not line:
        raise ValueError(f"not a job: {in_brief(text, 200)}")
    pairs = re.findall(r" (JobState|ExitCode|NodeList|Partition|TimeLimit|RunTime|PreemptTime)=(\S*)", line)
    values = dict(reversed(pairs))  # the folder, which may contain anything, comes last
    code, signal = (int(number) for number in re.findall(r"\d+", values.get("ExitCode", "") + ":0:0")[:2])
    return Detail(
        frozenset([values.get("JobState", "")]), code, signal, _named(values, "NodeList"), _named(values, "Partition"),
        seconds(values.get("TimeLimit", "")), seconds(values.get("RunTime", "")), bool(_named(values, "PreemptTime")),
    )  # fmt: skip


def _named(values: dict[str, str], name: str) -> str:
    value = values.get(name, "")
    return "" if value in ("(null)", "None", "N/A", "Unknown") else value


def longest(text: str, partition: str | None) -> float | None:
    """The longest time of a job in seconds, from `scontrol -o show partition`. `partition` may name several; None is
    Slurm's default."""
    names = partition.split(",") if partition else []
    limits = {}
    for name, rest in re.findall(r"^PartitionName=(\S+) (.*)", text, re.MULTILINE):
        limit = re.search(r" MaxTime=(\S+)", rest)
        if limit and (name in names or (not names and " Default=YES " in rest)):
            limits[name] = seconds(limit[1])
    return (
        max((limit for limit in limits.values() if limit is not None), default=None) if all(limits.values()) else None
    )


def seconds(text: str) -> float | None:
    """Slurm's `2-03:00:00`, `3:00:00`, `30:00` or `30:00.5`; None for UNLIMITED and the like.

    >>> seconds("1-00:00:30"), seconds("2:00"), seconds("infinite")
    (86430.0, 120.0, None)
    """
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)(?:\.\d+)?", text.strip())
    if match is None:
        return None
    days, hours, minutes, rest = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + rest)


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
