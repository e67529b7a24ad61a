"""Runs as processes of this host, each under its own `launcher exec`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from launcher.base.errors import RunError
from launcher.engines import process, registry
from launcher.engines.base import Choice, SupervisedEngine, Want
from launcher.engines.native import execute
from launcher.engines.process import DEVICES, FDS
from launcher.host import checks, gpu_locks
from launcher.host.gpu_locks import GpuLock
from launcher.host.machine import Machine
from launcher.record import secret_files, trainer_files
from launcher.record.journal import Status, mark_lost, read_status
from launcher.record.locks import is_run_locked
from launcher.record.states import ENDED


class NativeEngine(SupervisedEngine):
    """Starts `launcher exec` in its own process session, so that neither a terminal nor the supervisor ends it."""

    name = execute.NAME
    where = "as a process"

    def __init__(self) -> None:
        self._children: dict[Path, subprocess.Popen[bytes]] = {}
        self._asked: set[Path] = set()

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
        command = [sys.executable, "-m", "launcher", "exec", str(run_dir), "--attempt", str(attempt)]
        if sys.platform == "darwin" and shutil.which("caffeinate"):
            command = ["caffeinate", "-i", *command]  # a sleeping Mac does not train
        descriptors = [one.descriptor for one in held]
        names = gpu_locks.visible(devices, [one.gpu for one in held])
        chosen = [f"{device}={name}" for device, name in zip(devices, names, strict=True)]
        with trainer_files.append_log(run_dir) as log:
            self._children[run_dir] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, FDS: ",".join(map(str, descriptors)), DEVICES: ",".join(chosen)},
                pass_fds=descriptors,
                start_new_session=True,
            )

    def poll(self, run_dir: Path) -> bool:
        """See `SupervisedEngine.poll`. A run of this supervisor without its lock yet is known by its process."""
        child = self._children.get(run_dir)
        if child is not None and child.poll() is None:
            return True
        return self.settle(run_dir)

    def settle(self, run_dir: Path) -> bool:
        """See `Engine.settle`."""
        # A request to stop may come before a starting process can receive it.
        ours = read_status(run_dir).figures.get("engine", self.name) == self.name
        if ours and mark_lost(run_dir, "cancelled" if run_dir in self._asked else "lost"):
            secret_files.take_back(run_dir, read_status(run_dir).attempt)
        return read_status(run_dir).state not in ENDED

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
        """See `Engine.stop`."""
        self._asked.add(run_dir)
        self._signal(run_dir, signal.SIGTERM)

    def kill(self, run_dir: Path) -> None:
        """See `Engine.kill`. The second request makes `launcher exec` kill the trainer and record it."""
        self.stop(run_dir)
        self._signal(run_dir, signal.SIGINT)

    def _signal(self, run_dir: Path, number: signal.Signals) -> None:
        # Only while the lock is held: a process id alone may belong to another process now.
        status = read_status(run_dir)
        if status.figures.get("host", os.uname().nodename) != os.uname().nodename:
            return  # the process is on another host
        pid = status.figures.get("exec_pid")
        if pid is None and run_dir in self._children and self._children[run_dir].poll() is None:
            pid = self._children[run_dir].pid
        elif not is_run_locked(run_dir):
            return
        with suppress(ProcessLookupError, PermissionError):
            if pid is not None:
                os.kill(int(pid), number)


def _not_installed(missing: Sequence[str]) -> str:
    return f"runs need packages that are not installed: {', '.join(missing)}\ninstall them: {checks.INSTALL}"
