"""The processes of an attempt that is executed on this host: whoever executes it, and all that its trainer has started.

Whoever executes an attempt writes into the run's lock file who it is, and gives its trainer a variable with a random
value. All that the trainer starts inherits it. So the processes of an attempt can be found when `launcher exec` was
killed, and no other process can be mistaken for one of them.
"""

from __future__ import annotations

import json
import os
import signal
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from launcher.host import processes
from launcher.host.processes import Process
from launcher.record import folders
from launcher.record.locks import is_run_locked, run_locked

VARIABLE = "LAUNCHER_ATTEMPT"
"""Environment variable of the trainer and all that it starts."""
LINGER = 1.0
"""Seconds that the trainer's processes have to end by themselves after its end."""
TERM = 3.0
"""Seconds between their SIGTERM and SIGKILL."""
KILLED = 5.0
"""Seconds after SIGKILL from which a process counts as one that the kernel cannot end."""
PATIENCE = 30.0
"""Seconds that an attempt waits for the run's lock."""


@dataclass(frozen=True)
class Executor:
    """Whoever executes a run, or did so last: the text in the run's lock file. Without a `token`, it is no `launcher
    exec` but a launcher that watches a container."""

    process: Process
    host: str = field(default_factory=processes.place)
    token: str = ""
    trainer: Process | None = None


def new_executor() -> Executor:
    """This process, which is about to execute an attempt."""
    return Executor(processes.this(), token=uuid.uuid4().hex)


def sign(lock: int, executor: Executor) -> None:
    """Write the executor into the lock file that it holds."""
    with suppress(OSError):  # a full disk: then nobody knows its name
        os.ftruncate(lock, 0)
        os.pwrite(lock, json.dumps(asdict(executor)).encode(), 0)


def executor_of(run_dir: Path) -> Executor | None:
    """Whoever executes the run on this host, or did so last; None if unknown."""
    try:
        with folders.state(run_dir) as folder:
            content = json.loads(folders.read(folder, folders.LOCK))
        trainer = content["trainer"]
        read = Executor(
            _process(content["process"]), str(content["host"]), str(content["token"]),
            None if trainer is None else _process(trainer),
        )  # fmt: skip
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return read if read.host == processes.place() else None


def _process(content: Mapping[str, Any]) -> Process:
    """Raises KeyError, TypeError and ValueError."""
    pid, started = content["pid"], content["started"]
    if type(pid) is not int or not 0 < pid < 2**31 or not isinstance(started, str):
        raise ValueError("no process")
    return Process(pid, started)


def orphaned(run_dir: Path) -> Executor | None:
    """The executor of a run whose `launcher exec` was killed while processes of its trainer go on; None if that is not
    so. They hold the run's lock."""
    executor = executor_of(run_dir)
    if executor is None or not executor.token or processes.lives(executor.process) or not is_run_locked(run_dir):
        return None
    return executor


def processes_of(executor: Executor, run_dir: Path) -> list[Process]:
    """The living processes of an attempt, without its executor and this process: by the variable, and by the run's
    lock, which they may have inherited even if they threw the variable away."""
    roots = [executor.trainer] if executor.trainer is not None and processes.lives(executor.trainer) else []
    if roots and not processes.LINUX:
        roots += processes.of_group(roots[0].pid)
    if executor.token:
        roots += processes.with_variable(VARIABLE, executor.token)
        roots += processes.lock_holders(_lock_of(run_dir), executor.process.pid)
    every = dict.fromkeys([*roots, *processes.descendants(roots)])
    return [process for process in every if process not in (executor.process, processes.this())]


def _lock_of(run_dir: Path) -> Path:
    return folders.state_folder(run_dir) / folders.LOCK


def end(
    remaining: Callable[[], Sequence[Process]], linger: float, term: float, at_once: Callable[[], bool] = lambda: False
) -> tuple[list[str], list[str]]:
    """End processes: after `linger` seconds by SIGTERM, after `term` more (or as soon as `at_once`) by SIGKILL.

    Returns descriptions of those that were signalled, and of those that do not end.
    """
    began, killed = time.monotonic(), 0.0
    asked: dict[Process, str] = {}
    while left := remaining():
        now = time.monotonic()
        if at_once() or now - began >= linger + term:
            killed = killed or now
            if now - killed > KILLED:
                return list(asked.values()), [processes.describe(process) for process in left]
            for process in left:
                asked.setdefault(process, processes.describe(process))
                processes.send(process, signal.SIGKILL)
        elif now - began >= linger:
            for process in left:
                if process not in asked:
                    asked[process] = processes.describe(process)
                    request_end(process)
        time.sleep(max(0.03, 2 * (time.monotonic() - now)))  # a host may have thousands of processes
    return list(asked.values()), []


def request_end(process: Process) -> None:
    """SIGTERM, also for a process that is stopped (Ctrl-Z)."""
    processes.send(process, signal.SIGTERM)
    processes.send(process, signal.SIGCONT)


def end_descendants(
    before: Collection[Process], group: int, at_once: Callable[[], bool]
) -> tuple[list[str], list[str]]:
    """End all that this process's trainer, which has ended, has left. On Linux these are the descendants of this
    process, which has adopted them, but those of `before`. On macOS it is the trainer's process group. See `end`."""
    me = processes.this()

    def remaining() -> list[Process]:
        processes.reap_adopted(0)
        left = processes.descendants([me], before)
        return left if processes.LINUX else list({*left, *processes.of_group(group)} - {me})

    return end(remaining, LINGER, TERM, at_once)


@contextmanager
def executed(
    run_dir: Path, patience: float, stopped: Callable[[], bool], say: Callable[[str], None]
) -> Iterator[int | None]:
    """Hold the run's lock, and end the processes that earlier attempts on this host have left. Yields the lock's
    descriptor, or None if another process holds it for `patience` seconds, or once `stopped`. Calls `say` before it
    waits or ends a process."""
    former = executor_of(run_dir)
    deadline = time.monotonic() + patience
    told = False
    while True:
        with ExitStack() as stack:
            mine = stack.enter_context(run_locked(run_dir))
            if former is not None and (mine is not None or not processes.lives(former.process)):
                _end_former(former, run_dir, stopped, say)
                former = None
            if mine is not None or stopped() or time.monotonic() >= deadline:
                yield mine
                return
        if not told:
            told = True
            say(f"waiting for the run's lock, which {holder(run_dir)} holds")


def _end_former(former: Executor, run_dir: Path, stopped: Callable[[], bool], say: Callable[[str], None]) -> None:
    left = processes_of(former, run_dir)
    if not left:
        return
    say(f"ending what an earlier attempt has left: {', '.join(map(processes.describe, left))}")
    _, still = end(lambda: processes_of(former, run_dir), 0, TERM, stopped)
    if still:
        say(f"these do not end: {', '.join(still)}")


def unfamiliar(run_dir: Path, known: Collection[Process]) -> str:
    """The processes that may hold the run's lock and are none of the `known` ones, for people; empty if there are
    none."""
    others = [process for process in processes.holders(_lock_of(run_dir)) if process not in known]
    return ", ".join(processes.describe(process) for process in others if process.pid != os.getpid())


def holder(run_dir: Path) -> str:
    """Who holds the run's lock, for people."""
    others = [process for process in processes.holders(_lock_of(run_dir)) if process.pid != os.getpid()]
    executor = executor_of(run_dir)
    if executor is not None and executor.process in others:
        others = [executor.process]
    if not others and executor is not None and processes.lives(executor.process):
        others = [executor.process]
    return ", ".join(map(processes.describe, others[:3])) or "another process"
