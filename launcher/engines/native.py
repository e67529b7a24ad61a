"""Runs as processes of this host, each under a `launcher exec` of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from launcher.execute import DEVICES, FDS
from launcher.gpus import Held
from launcher.runs import is_locked, read_status


class NativeEngine:
    """Starts `launcher exec` in a session of its own, so that neither a terminal nor the supervisor ends it."""

    name = "native"

    def __init__(self) -> None:
        self._children: dict[Path, subprocess.Popen[bytes]] = {}

    def start(self, run_dir: Path, attempt: int, devices: Sequence[str], held: Sequence[Held]) -> None:
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

    def alive(self, run_dir: Path) -> bool:
        """See `Engine.alive`. Between its start and its lock, a run of this supervisor's is known by its process."""
        child = self._children.get(run_dir)
        if child is not None and child.poll() is None:
            return True
        return is_locked(run_dir / "exec.lock")

    def stop(self, run_dir: Path) -> None:
        """See `Engine.stop`."""
        self._signal(run_dir, signal.SIGTERM)

    def kill(self, run_dir: Path) -> None:
        """See `Engine.kill`. The second request makes `launcher exec` kill the trainer and record it."""
        self._signal(run_dir, signal.SIGTERM)
        self._signal(run_dir, signal.SIGINT)

    def _signal(self, run_dir: Path, number: signal.Signals) -> None:
        # Only while the lock is held: a process id alone may have become another process's.
        status = read_status(run_dir)
        pid = status.figures.get("exec_pid")
        if pid is None and run_dir in self._children and self._children[run_dir].poll() is None:
            pid = self._children[run_dir].pid
        elif not is_locked(run_dir / "exec.lock"):
            return
        with suppress(ProcessLookupError, PermissionError):
            if pid is not None:
                os.kill(int(pid), number)
