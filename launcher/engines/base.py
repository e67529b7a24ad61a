"""What an engine is: it offers itself to a job, and executes the job's runs.

A new engine is a folder with a class derived from one of these, and a line in `registry`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from launcher.base.errors import RunError
from launcher.host.checks import Check
from launcher.host.gpu_locks import GpuLock
from launcher.host.machine import Machine
from launcher.host.machine import select as select_machine
from launcher.record.journal import Status
from launcher.record.request import RunRequest

if TYPE_CHECKING:
    from launcher.job.schema import SectionSpec
    from launcher.job.spec import Job
    from launcher.record.reuse import TrainerImage


class UnofferedError(RunError):
    """Why an engine does not take a job; `--engine auto` then asks the next one."""


@dataclass(frozen=True)
class Want:
    """What the user asks an engine for: a job, and the options `--machine`, `--gpus` and `--cpu` as they were typed."""

    job: Job
    machine: str | None = None
    gpus: str | None = None
    cpu_only: bool = False
    auto: bool = False
    """Whether any engine will do."""
    refused: tuple[str, ...] = ()
    """With `auto`: why the engines before this one do not take the job."""

    def host(self) -> Machine:
        """The machine that `--machine` describes, else this host. Raises MachineError."""
        return select_machine(self.machine, self.gpus)

    def takes_gpus(self, machine: Machine) -> bool:
        """Whether the job's runs take GPUs of this machine."""
        return bool(machine.devices) and not self.cpu_only and self.job.spec.resources.gpus != 0


@dataclass(frozen=True)
class Choice:
    """An engine that takes a job, what it may use, and what to tell the user."""

    engine: Engine
    machine: Machine
    said: str
    """How the runs are executed, in a few words."""
    image: TrainerImage | None = None
    warnings: list[str] = field(default_factory=list)
    contained: bool = False
    """Whether the runs are containers: held to their limits, with an environment of their own."""
    why: str = ""
    """Why `--engine auto` takes this engine, where it is the first that was asked."""


@dataclass(frozen=True)
class Waste:
    """One thing to free. `size` in bytes; `why` says what makes it needless."""

    what: str
    size: int
    why: str
    free: Callable[[], object]


class Engine:
    """An engine; use `SupervisedEngine` or `QueueEngine`. Methods that return nothing here are for those who need them.

    One object lives in a process, so that what it knows is asked for once.
    """

    name: ClassVar[str]
    """As in `--engine NAME`, in records, and of its section of the job file."""
    where: ClassVar[str]
    """Where its runs are, for messages, like `in a container`."""
    Section: ClassVar[type[SectionSpec] | None] = None
    """Its section of the job file, which is called by its name."""
    trouble: str | None = None
    """What keeps the engine from doing its work just now; None while it does."""

    # -- before a submission is made

    def offer(self, want: Want) -> Choice:
        """The engine for this job, with the machine that its runs may use.

        Raises UnofferedError where it does not take the job, and RunError or JobError where nothing else should.
        """
        raise NotImplementedError

    def again(self, machine: Machine) -> Choice:
        """The engine for a submission that was started with it, to go on with. Raises RunError."""
        raise NotImplementedError

    def check_data(self, data_dir: str, runs_root: Path) -> None:
        """Raise RunError where runs could not read the data folder."""

    def completed(self, requests: Sequence[RunRequest], job: Job, choice: Choice) -> list[RunRequest]:
        """The requests with what this engine knows of them before they are compared with earlier runs."""
        return list(requests)

    def check_requests(self, requests: Sequence[RunRequest], job: Job) -> None:
        """Raise JobError or RunError where the engine would refuse these runs. The last thing before they are made."""

    def remarks(self, requests: Sequence[RunRequest], runs_root: Path, choice: Choice) -> list[str]:
        """What a user should know before these runs start."""
        return []

    # -- runs that somebody has started

    def settle(self, run_dir: Path) -> bool:
        """Look after a run that is under way by its journal, for one who only looks: True while it is.

        On False its end is in the journal, also where it vanished without a word. Takes nothing over, and waits for
        nothing.
        """
        raise NotImplementedError

    def stop(self, run_dir: Path) -> None:
        """Ask the run to write its checkpoint and end."""
        raise NotImplementedError

    def kill(self, run_dir: Path) -> None:
        """End the run at once."""
        raise NotImplementedError

    def host_memory(self, run_dir: Path, status: Status) -> int | None:
        """Bytes of host memory that a run under way has now, or had at most; None where that is not known."""
        return None

    def holds(self) -> dict[str, str]:
        """GPUs (their index) that this engine's runs have on this host without holding a lock, and which run it is.

        Asked by other engines; an engine that does not answer holds nothing."""
        return {}

    # -- commands

    def execute(self, run_dir: Path, attempt: int | None, ticket: str) -> int:
        """`launcher exec`, which the engine itself has started: execute the run in this process, and return its exit
        code. `attempt` None: by hand. `ticket` is what the engine gave it to be known by. Raises RunError."""
        raise RunError(f"{run_dir.name}: the engine {self.name} does not execute runs by launcher exec")

    def checks(self, runs_root: Path) -> list[Check]:
        """What `launcher doctor` says of it."""
        return []

    def needs_no_packages(self, checks: Sequence[Check]) -> bool:
        """Whether runs work without the trainer being installed here, by what `checks` found."""
        return False

    def waste(self, runs_root: Path, remarks: list[str]) -> list[Waste]:
        """What `launcher prune` may free of it; adds to `remarks` what could not be looked at."""
        return []


class SupervisedEngine(Engine):
    """Executes runs for a supervisor of ours. Whatever it starts outlives that supervisor."""

    def mark(self) -> dict[str, Any]:
        """What events of its runs carry, so that others know whom to ask about them: `engine`, and which one."""
        return {"engine": self.name}

    def start(self, run_dir: Path, attempt: int, devices: Sequence[str], held: Sequence[GpuLock]) -> None:
        """Start the run that the journal announces as `starting`; returns at once.

        `held` are the locks of `devices`: they must be kept for as long as the run lasts. Raises OSError where the run
        cannot be started.
        """
        raise NotImplementedError

    def poll(self, run_dir: Path) -> bool:
        """The same as `settle` for the supervisor, whoever started the run: it may be taken over."""
        return self.settle(run_dir)

    def wait(self, seconds: float) -> None:
        """Return when the time is up, or sooner when a run has changed."""
        time.sleep(seconds)

    def taken(self) -> dict[str, str]:
        """GPUs (their index) that runs hold, and which run it is: locks die with the launcher that held them."""
        return self.holds()

    def ready(self) -> bool:
        """Whether runs can be started now; where not, `trouble` says why."""
        return True

    def close(self) -> None:
        """Wait, within reason, until what ended runs leave is cleared away."""


Say = Callable[[str], None]
Collect = Callable[[Path], str]
"""Collects a submission that is over, and returns a line on its champion."""


class QueueEngine(Engine):
    """Has a queue of its own, which goes on with a submission while no process of ours does."""

    title: ClassVar[str]
    """What people call it."""

    def advance(self, directory: Path, say: Say, prepare: Callable[[], None] | None = None) -> bool:
        """Hand over whatever of the submission can be handed over now; True where every run has ended. `prepare` is
        done first, when nobody else drives the submission. Raises RunError."""
        raise NotImplementedError

    def come_back(self, directory: Path, say: Say, collect: Collect) -> None:
        """`launcher advance`, which the engine itself has started: `advance`, and `collect` once all runs have ended.
        Raises RunError."""
        raise NotImplementedError

    def drives(self, submission: Path) -> bool:
        """Whether something of the submission waits or runs in the queue; True where that cannot be known."""
        raise NotImplementedError

    def why_waits(self, run_dir: Path) -> str | None:
        """Why a queued run has not begun; None where that is not known."""
        return None

    def release(self, submission: Path) -> None:
        """Take out of the queue what waits there for runs that have ended."""
