"""Runs as processes of this host, each under a `launcher exec` of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from launcher.engines.native.execute import DEVICES, FDS
from launcher.host.gpu_locks import GpuLock
from launcher.record import secret_files
from launcher.record.journal import mark_lost, read_status
from launcher.record.locks import is_locked
from launcher.record.states import ENDED

if TYPE_CHECKING:
    from docker import DockerClient


class NativeEngine:
    """Starts `launcher exec` in a session of its own, so that neither a terminal nor the supervisor ends it."""

    name = "native"
    trouble: str | None = None

    def __init__(self) -> None:
        self._children: dict[Path, subprocess.Popen[bytes]] = {}
        self._asked: set[Path] = set()
        self._containers: DockerClient | Literal["unknown"] | None = "unknown"

    def mark(self) -> dict[str, Any]:
        """See `Engine.mark`."""
        return {"engine": self.name}

    def start(self, run_dir: Path, attempt: int, devices: Sequence[str], held: Sequence[GpuLock]) -> None:
        """See `Engine.start`."""
        command = [sys.executable, "-m", "launcher", "exec", str(run_dir), "--attempt", str(attempt)]
        if sys.platform == "darwin" and shutil.which("caffeinate"):
            command = ["caffeinate", "-i", *command]  # a Mac that falls asleep trains nothing
        descriptors = [one.descriptor for one in held]
        with (run_dir / "log.txt").open("ab") as log:
            self._children[run_dir] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, FDS: ",".join(map(str, descriptors)), DEVICES: ",".join(devices)},
                pass_fds=descriptors,
                start_new_session=True,
            )

    def poll(self, run_dir: Path) -> bool:
        """See `Engine.poll`. Between its start and its lock, a run of this supervisor's is known by its process."""
        child = self._children.get(run_dir)
        if child is not None and child.poll() is None:
            return True
        return self.settle(run_dir)

    def settle(self, run_dir: Path) -> bool:
        """See `Engine.settle`."""
        # A request to stop may come before a starting process can hear it.
        if mark_lost(run_dir, "cancelled" if run_dir in self._asked else "lost"):
            secret_files.take_back(run_dir, read_status(run_dir).attempt)
        return read_status(run_dir).state not in ENDED

    def ready(self) -> bool:
        """See `Engine.ready`."""
        return True

    def close(self) -> None:
        """See `Engine.close`."""

    def wait(self, seconds: float) -> None:
        """See `Engine.wait`."""
        time.sleep(seconds)

    def taken(self) -> dict[str, str]:
        """See `Engine.taken`. Where no Docker engine answers there are no containers."""
        from launcher.base.errors import EngineError
        from launcher.engines.docker import client

        if self._containers == "unknown":
            self._containers = None
            with suppress(EngineError):
                self._containers = client.connect(timeout=3)
        with suppress(Exception):  # the GPU's own word on who uses it remains
            if self._containers is not None:
                return client.devices_in_use(self._containers)
        return {}

    def stop(self, run_dir: Path) -> None:
        """See `Engine.stop`."""
        self._asked.add(run_dir)
        self._signal(run_dir, signal.SIGTERM)

    def kill(self, run_dir: Path) -> None:
        """See `Engine.kill`. The second request makes `launcher exec` kill the trainer and record it."""
        self.stop(run_dir)
        self._signal(run_dir, signal.SIGINT)

    def _signal(self, run_dir: Path, number: signal.Signals) -> None:
        # Only while the lock is held: a process id alone may have become another process's.
        status = read_status(run_dir)
        if status.figures.get("host", os.uname().nodename) != os.uname().nodename:
            return  # its number is a process of another host
        pid = status.figures.get("exec_pid")
        if pid is None and run_dir in self._children and self._children[run_dir].poll() is None:
            pid = self._children[run_dir].pid
        elif not is_locked(run_dir / "exec.lock"):
            return
        with suppress(ProcessLookupError, PermissionError):
            if pid is not None:
                os.kill(int(pid), number)
