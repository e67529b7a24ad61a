"""Runs as processes of this host, each under its own `launcher exec`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from launcher.base.errors import RunError
from launcher.engines import orphans, process, registry, secret_files
from launcher.engines.base import Choice, SupervisedEngine, Want
from launcher.engines.native import execute
from launcher.engines.orphans import Executor
from launcher.engines.outcome import GRACE
from launcher.engines.process import DEVICES, FDS, START
from launcher.host import checks, gpu_locks, processes
from launcher.host.gpu_locks import GpuLock
from launcher.host.machine import Machine
from launcher.host.processes import Process
from launcher.record import trainer_files
from launcher.record.folders import clear_stop, request_stop, stop_requested
from launcher.record.journal import Status, append_event, is_here, mark_lost, read_status
from launcher.record.locks import is_run_locked
from launcher.record.states import ENDED


class NativeEngine(SupervisedEngine):
    """Starts `launcher exec` in its own process session, so that neither a terminal nor the supervisor ends it."""

    name = execute.NAME
    where = "as a process"

    def __init__(self) -> None:
        self._children: dict[Path, subprocess.Popen[bytes]] = {}
        self._asked: set[Path] = set()
        self._ends: dict[Path, float] = {}
        """Runs without their `launcher exec`, and when what is left of them is killed, by the monotonic clock."""
        self._orphans: dict[Path, tuple[str, str]] = {}
        """The same runs, and what is done with them, before and after."""
        self._elsewhere: dict[Path, str] = {}
        """Runs that were started on another host, and that this host cannot see whether they go on."""
        self._left: dict[str, str] = {}
        """The names of the processes that outlive an executor, by its token."""
        self._trouble: str | None = None

    @property
    def trouble(self) -> str | None:
        """See `Engine.trouble`: what is wrong with the run that was settled last, or with the runs of a supervisor."""
        return self._trouble

    def offer(self, want: Want) -> Choice:
        """See `Engine.offer`."""
        choice, missing = Choice(self, want.host(), "native processes"), checks.missing_packages()
        if missing:
            also = f"; or use containers (auto: {'; '.join(want.refused)})" if want.refused else ""
            raise RunError(_not_installed(missing) + also)
        return choice

    def again(self, machine: Machine) -> Choice:
        """See `Engine.again`."""
        if missing := checks.missing_packages():
            raise RunError(_not_installed(missing))
        return Choice(self, machine, "native processes")

    def start(self, run_dir: Path, attempt: int, devices: Sequence[str], held: Sequence[GpuLock]) -> None:
        """See `SupervisedEngine.start`."""
        with suppress(OSError):  # of an earlier attempt
            clear_stop(run_dir)
        command = [sys.executable, "-m", "launcher", "exec", str(run_dir), "--attempt", str(attempt)]
        if sys.platform == "darwin" and shutil.which("caffeinate"):
            command = ["caffeinate", "-i", *command]  # a sleeping Mac does not train
        descriptors = [one.descriptor for one in held]
        names = gpu_locks.visible(devices, [one.gpu for one in held])
        chosen = [f"{device}={name}" for device, name in zip(devices, names, strict=True)]
        start = repr(read_status(run_dir).time)
        with trainer_files.append_log(run_dir) as log:
            self._children[run_dir] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, FDS: ",".join(map(str, descriptors)), DEVICES: ",".join(chosen), START: start},
                pass_fds=descriptors,
                start_new_session=True,
            )

    def poll(self, run_dir: Path) -> bool:
        """See `SupervisedEngine.poll`. A run of this supervisor without its lock yet is known by its process."""
        child = self._children.get(run_dir)
        if child is not None and child.poll() is None:
            return True
        under_way = self.settle(run_dir)
        if under_way and child is not None and read_status(run_dir).state == "starting":
            under_way = not self._ended_early(run_dir, child)
        if under_way and orphans.orphaned(run_dir):
            self._end_orphan(run_dir)
        told = [f"{one.name}: {self._orphans[one][0]}" for one in sorted(self._orphans)]
        told += [f"{one.name}: {self._elsewhere[one]}" for one in sorted(self._elsewhere)]
        self._trouble = "; ".join(told) or None
        return under_way

    def _ended_early(self, run_dir: Path, child: subprocess.Popen[bytes]) -> bool:
        """Record the end of a `launcher exec` that was killed before it had the run's lock: whoever holds it, this
        attempt does not run. Returns whether that was so."""
        executor = orphans.executor_of(run_dir)
        if not is_run_locked(run_dir) or (executor is not None and executor.process.pid == child.pid):
            return False
        stopped = run_dir in self._asked or _stop_requested(run_dir)
        how = "stopped while it started" if stopped else "its launcher exec was killed while it started"
        reason = f"{how}; {orphans.holder(run_dir)} holds the run's lock"
        with suppress(RunError):  # that process has just recorded something
            append_event(run_dir, "cancelled" if stopped else "lost", reason=reason)
        return True

    def settle(self, run_dir: Path) -> bool:
        """See `Engine.settle`."""
        self._trouble = None
        status = read_status(run_dir)
        self._elsewhere.pop(run_dir, None)
        if status.state in ENDED or (status.figures.get("engine") or self.name) != self.name:
            return status.state not in ENDED
        if status.state != "queued" and not is_here(status):
            self._trouble = self._elsewhere[run_dir] = _elsewhere(run_dir, status)
            return True
        executor = orphans.orphaned(run_dir) if status.state != "queued" else None
        if executor is not None:
            self._trouble = self._goes_on(run_dir, executor)
            return True
        # A request to stop may come before a starting process can receive it.
        stopped = run_dir in self._asked or _stop_requested(run_dir)
        _, ended = self._orphans.pop(run_dir, ("", ""))
        ended = f"stopped on request; {ended}" if stopped and ended else ended
        if mark_lost(run_dir, "cancelled" if stopped else "lost", ended):
            self._ends.pop(run_dir, None)
            with suppress(OSError):
                clear_stop(run_dir)
            secret_files.take_back(run_dir, read_status(run_dir).attempt)
        return read_status(run_dir).state not in ENDED

    def _goes_on(self, run_dir: Path, executor: Executor) -> str:
        """That processes of a run outlive its `launcher exec`. Looks for them once: a host may have thousands."""
        if executor.token not in self._left:
            left = orphans.processes_of(executor, run_dir)
            names = ", ".join(map(processes.describe, left[:3])) or orphans.holder(run_dir)
            self._left[executor.token] = names
        named = self._left[executor.token]
        return f"{_killed(executor)}, but processes of it go on: {named}; end them with: launcher stop"

    def end_orphans(self, run_dirs: Sequence[Path], say: Callable[[str], None]) -> None:
        """See `SupervisedEngine.end_orphans`."""
        left = [path for path in run_dirs if _is_under_way(path) and orphans.orphaned(path)]
        for run_dir in left:
            self._end_orphan(run_dir)
            say(f"{run_dir.name}: {self._orphans[run_dir][0]}")
        deadline = time.monotonic() + GRACE + orphans.KILLED
        while left and time.monotonic() < deadline:
            time.sleep(0.1)
            left = [path for path in left if orphans.orphaned(path)]
            for run_dir in left:
                self._end_orphan(run_dir)

    def _end_orphan(self, run_dir: Path, at_once: bool = False) -> None:
        """Ask the processes of a run whose `launcher exec` was killed to end, once, and kill them after the grace
        period. Returns immediately: call it again."""
        executor = orphans.orphaned(run_dir)
        if executor is None:
            return
        first = run_dir not in self._ends
        deadline = self._ends.setdefault(run_dir, time.monotonic() + GRACE)
        left = orphans.processes_of(executor, run_dir) if first or at_once or time.monotonic() > deadline else []
        if first:  # before the signals, while they have names
            self._orphans[run_dir] = _told(run_dir, executor, left)
        for one in left:
            if at_once or time.monotonic() > deadline:
                processes.send(one, signal.SIGKILL)
            else:
                orphans.request_end(one)

    def taken(self) -> dict[str, str]:
        """See `SupervisedEngine.taken`. Runs of other engines on this host use GPUs, too."""
        held: dict[str, str] = {}
        for name in registry.ENGINES:
            held |= registry.engine(name).holds()
        return held

    def host_memory(self, run_dir: Path, status: Status) -> int | None:
        """See `Engine.host_memory`: the run's process with all its descendants."""
        return process.host_memory(run_dir, status)

    def execute(self, run_dir: Path, attempt: int | None, ticket: str) -> int:
        """See `Engine.execute`."""
        return execute.execute(run_dir, attempt)

    def stop(self, run_dir: Path) -> None:
        """See `Engine.stop`. `launcher exec` sees the file in every state, also from another host."""
        self._asked.add(run_dir)
        with suppress(OSError):  # a full disk: the signal alone has to do
            request_stop(run_dir)
        self._signal(run_dir, signal.SIGTERM)
        self._end_orphan(run_dir)

    def kill(self, run_dir: Path) -> None:
        """See `Engine.kill`. The second request makes `launcher exec` kill the trainer and record it."""
        self.stop(run_dir)
        self._signal(run_dir, signal.SIGINT)
        self._end_orphan(run_dir, at_once=True)

    def _signal(self, run_dir: Path, number: signal.Signals) -> None:
        """Send a signal to the run's `launcher exec`, if it is on this host."""
        child = self._children.get(run_dir)
        if child is not None and child.poll() is None:
            child.send_signal(number)
            child.send_signal(signal.SIGCONT)
            return
        executor = orphans.executor_of(run_dir)
        if executor is not None and executor.token and is_run_locked(run_dir):
            processes.send(executor.process, number)
            processes.send(executor.process, signal.SIGCONT)


def _is_under_way(run_dir: Path) -> bool:
    return read_status(run_dir).state in ("starting", "running")


def _elsewhere(run_dir: Path, status: Status) -> str:
    run = f"{run_dir.parent.name}/{run_dir.name}"
    return (
        f"it was started on {status.figures['host']}, and this host ({os.uname().nodename}) cannot see whether it goes "
        f"on there; if that host is gone: launcher stop --now {run}, then launcher resume"
    )


def _stop_requested(run_dir: Path) -> bool:
    with suppress(OSError):
        return stop_requested(run_dir)
    return False


def _killed(executor: Executor) -> str:
    return f"its launcher exec (process {executor.process.pid}) was killed"


def _told(run_dir: Path, executor: Executor, left: Sequence[Process]) -> tuple[str, str]:
    """What is done with the processes `left` of a run without its `launcher exec`, before and after. Names those that
    may hold the run's lock and are not ended."""
    more = f" and {len(left) - 3} more" if len(left) > 3 else ""
    names, was = ", ".join(map(processes.describe, left[:3])) + more, _killed(executor)
    now = [was, *([f"ending what is left of it (at the latest in {GRACE:g} s): {names}"] if left else [])]
    others = orphans.unfamiliar(run_dir, left)
    if others or not left:
        others = others or "a process that this user may not see"
        now.append(f"not ended, because it may be none of this run's: {others}, which has the run's lock open")
    return "; ".join(now), f"{was}; ended what was left of it: {names}" if left else was


def _not_installed(missing: Sequence[str]) -> str:
    return f"runs need packages that are not installed: {', '.join(missing)}\ninstall them: {checks.INSTALL}"
