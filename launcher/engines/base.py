"""The interface of engines: an engine accepts a job, and executes the job's runs.

A new engine is a folder with a class derived from one of these, and a line in `registry`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from launcher.base.errors import RunError

if TYPE_CHECKING:  # what only looks at runs does not need the machine's modules
    from launcher.host.checks import Check
    from launcher.host.gpu_locks import GpuLock
    from launcher.host.machine import Machine
    from launcher.job.schema import SectionSpec
    from launcher.job.spec import Job
    from launcher.record.journal import Status
    from launcher.record.lease import Lease
    from launcher.record.request import RunRequest
    from launcher.record.reuse import TrainerImage


class UnofferedError(RunError):
    """An engine does not accept a job, with the reason. `--engine auto` then asks the next engine."""


@dataclass(frozen=True)
class Want:
    """The user's request to an engine: a job, and the options `--machine`, `--gpus` and `--cpu` as typed."""

    job: Job
    machine: str | None = None
    gpus: str | None = None
    cpu_only: bool = False
    auto: bool = False
    """Whether any engine is accepted (`--engine auto`)."""
    refused: tuple[str, ...] = ()
    """With `auto`: why the engines before this one do not accept the job."""

    def host(self) -> Machine:
        """The machine that `--machine` describes, else this host. Raises MachineError."""
        from launcher.host.machine import select

        return select(self.machine, self.gpus)

    def takes_gpus(self, machine: Machine) -> bool:
        """Whether the job's runs use GPUs of this machine."""
        return bool(machine.devices) and not self.cpu_only and self.job.spec.resources.gpus != 0


@dataclass(frozen=True)
class Choice:
    """An engine that accepts a job, the resources that it may use, and notes for the user."""

    engine: Engine
    machine: Machine
    said: str
    """A short text on how the runs are executed."""
    image: TrainerImage | None = None
    warnings: list[str] = field(default_factory=list)
    contained: bool = False
    """Whether the runs are containers, with enforced limits and an environment of their own."""
    why: str = ""
    """Why `--engine auto` uses this engine, if it is the first that was asked."""
    refused: tuple[str, ...] = ()
    """Why `--engine auto` uses none of the engines before this one."""


@dataclass(frozen=True)
class Waste:
    """Something to delete. `size` in bytes; `why` says why nobody needs it."""

    what: str
    size: int
    why: str
    free: Callable[[], object]


class Engine(ABC):
    """An engine; derive from `SupervisedEngine` or `QueueEngine`. Methods that are not abstract are optional.

    There is one object per process, which caches what it has asked for.
    """

    name: ClassVar[str]
    """Its name in `--engine NAME`, in records, and of its section in the job file."""
    where: ClassVar[str]
    """The place of its runs for messages, like `in a container`."""
    Section: ClassVar[type[SectionSpec] | None] = None
    """Its section of the job file, under its name."""

    @property
    def trouble(self) -> str | None:
        """Why the engine cannot work at the moment; None if it can."""
        return None

    # -- before a submission is created

    @abstractmethod
    def offer(self, want: Want) -> Choice:
        """The engine for this job, with the machine that its runs may use.

        Raises UnofferedError if it does not accept the job, and RunError or JobError if no other engine should either.
        """

    def check_data(self, data_dir: str, runs_root: Path) -> list[str]:
        """Notes on how runs read the data folder. Raises RunError if they could not read it."""
        return []  # by default runs have the launcher's user, who can read it

    def completed(self, requests: Sequence[RunRequest], job: Job, choice: Choice) -> list[RunRequest]:
        """The requests, completed with this engine's details before they are compared with earlier runs."""
        return list(requests)

    def check_requests(self, requests: Sequence[RunRequest], job: Job) -> None:
        """Raise JobError or RunError if the engine would refuse these runs. Called last, just before their creation."""
        return  # by default every checked job is accepted

    def created(self, submission: Path) -> None:
        """Called when a submission has been created or is about to continue: keep what its runs need on the engine."""
        return  # by default a run needs nothing that others could remove

    def remarks(self, requests: Sequence[RunRequest], runs_root: Path, choice: Choice) -> list[str]:
        """Notes to the user before these runs start."""
        return []

    # -- runs that have been started

    @abstractmethod
    def settle(self, run_dir: Path) -> bool:
        """Check a run that is in progress by its journal, for a read-only command. Returns True while it is in
        progress.

        On False its end is in the journal, even if it vanished without a message. Never takes a run over, never waits.
        """

    @abstractmethod
    def stop(self, run_dir: Path) -> None:
        """Ask the run to save its checkpoint and end."""

    @abstractmethod
    def kill(self, run_dir: Path) -> None:
        """End the run immediately."""

    def host_memory(self, run_dir: Path, status: Status) -> int | None:
        """Bytes of host memory of a run in progress, now or at its peak; None if unknown."""
        return None

    def holds(self) -> dict[str, str]:
        """GPUs (their index) that this engine's runs use on this host without a lock, and the run of each.

        Other engines ask for this. An engine that does not answer holds nothing."""
        return {}

    def still_runs(self, directories: Collection[str]) -> set[str] | None:
        """Those of these run directories whose run this engine executes now; None if it does not answer. Asked for
        runs whose launcher is gone."""
        return set()

    # -- commands

    def execute(self, run_dir: Path, attempt: int | None, ticket: str) -> int:
        """Execute the run in this process, a `launcher exec` that the engine has started. Returns the exit code.
        `attempt` None: started by hand. `ticket` is the engine's id for this call. Raises RunError."""
        raise RunError(f"{run_dir.name}: the engine {self.name} does not execute runs by launcher exec")

    def checks(self, runs_root: Path) -> list[Check]:
        """The engine's checks for `launcher doctor`."""
        return []

    def needs_no_packages(self, checks: Sequence[Check]) -> bool:
        """Whether runs work if the trainer is not installed here, judged by the result of `checks`."""
        return False

    def waste(self, runs_root: Path, remarks: list[str]) -> list[Waste]:
        """Items that `launcher prune` may delete. Adds to `remarks` what could not be checked."""
        return []


class SupervisedEngine(Engine):
    """Executes runs for a supervisor of this launcher. Its runs outlive that supervisor."""

    inherits_locks: ClassVar[bool] = True
    """Whether the processes of a run hold the locks that `start` is given. If not, the launcher holds them, and
    `still_runs` is asked once it is gone."""

    @abstractmethod
    def again(self, machine: Machine) -> Choice:
        """The engine, to continue a submission that was started with it. Raises RunError."""

    def mark(self) -> dict[str, Any]:
        """Fields for the events of its runs, which tell others whom to ask about them: `engine`, and its address."""
        return {"engine": self.name}

    @abstractmethod
    def start(self, run_dir: Path, attempt: int, devices: Sequence[str], held: Sequence[GpuLock]) -> None:
        """Start the run that the journal announces as `starting`. Returns immediately.

        `held` are the locks of `devices`, which must be held as long as the run lasts. Raises OSError if the run
        cannot be started.
        """

    def poll(self, run_dir: Path) -> bool:
        """Like `settle`, but for the supervisor: may take over a run that another launcher started."""
        return self.settle(run_dir)

    def end_orphans(self, run_dirs: Sequence[Path], say: Callable[[str], None]) -> None:
        """End runs in progress whose end nobody could record, because what executes them was killed. Waits for that,
        and calls `say` for each of them before."""

    def wait(self, seconds: float) -> None:
        """Return after `seconds`, or earlier if a run has changed."""
        time.sleep(seconds)

    def taken(self) -> dict[str, str]:
        """GPUs (their index) that runs use, and the run of each. Needed because locks die with the launcher that held
        them."""
        return self.holds()

    def ready(self) -> bool:
        """Whether runs can be started now. If not, `trouble` says why."""
        return True

    def close(self) -> None:
        """Wait for a limited time until the leftovers of ended runs are removed."""


Say = Callable[[str], None]
Collect = Callable[[Path], str]
"""Collects a submission that has ended, and returns a line about its champion."""


class QueueEngine(Engine):
    """An engine with its own queue, which continues a submission without a process of this launcher."""

    title: ClassVar[str]
    """Its name for people."""

    @abstractmethod
    def advance(
        self, directory: Path, say: Say, prepare: Callable[[Lease], None] | None = None, take_over: bool = False
    ) -> bool:
        """Submit all runs that can be submitted now. Returns whether every run has ended. Calls `prepare` first, when
        it holds the submission's lease. `take_over`: see `lease.hold`. Raises RunError."""

    @abstractmethod
    def come_back(self, directory: Path, say: Say, collect: Collect) -> None:
        """The work of a `launcher advance` that the engine has started: `advance`, then `collect` once all runs have
        ended. Raises RunError."""

    @abstractmethod
    def drives(self, submission: Path) -> bool:
        """Whether a job of the submission waits or runs in the queue. True if unknown."""

    def why_waits(self, run_dir: Path) -> str | None:
        """Why a queued run has not started; None if unknown."""
        return None

    @abstractmethod
    def release(self, submission: Path) -> None:
        """Remove jobs from the queue that wait for runs that have ended."""
