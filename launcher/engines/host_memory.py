"""Host memory of runs, whatever executes them. Only looks; a figure that cannot be had is None."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from launcher.host import usage
from launcher.record.journal import Status
from launcher.record.locks import is_locked
from launcher.record.states import ENDED
from trainer.base import cgroup


class HostMemory:
    """Host memory of runs under way: the most that was seen, in bytes, since this watch began or the kernel counts.

    A native run is the process that executes it with all its descendants: see `usage.resident`. A container is its
    control group: file caches count there.
    """

    def __init__(self) -> None:
        self._peaks: dict[tuple[Path, int], int] = {}
        self._files: dict[str, list[Path]] = {}

    def peak(self, run_dir: Path, status: Status) -> int | None:
        """Bytes; what the journal says once the run is over."""
        if status.state in ENDED:
            peak = status.figures.get("peak_host_memory_bytes")
            return int(peak) if peak else None
        if status.state != "running":
            return None
        key = (run_dir, status.attempt)
        container = status.figures.get("container")
        now = self._of_container(str(container)) if container else _of_process(run_dir, status)
        if now is not None:
            self._peaks[key] = max(now, self._peaks.get(key, 0))
        return self._peaks.get(key)

    def _of_container(self, container: str) -> int | None:
        if container not in self._files:
            self._files[container] = []
            with suppress(Exception):  # no engine, or one on another host
                from launcher.engines.docker import client

                docker = client.connect(timeout=3)
                pid = int(docker.api.inspect_container(container)["State"]["Pid"])
                self._files[container] = cgroup.peak_files(pid)
        sizes = [size for path in self._files[container] if (size := cgroup.number(path)) is not None]
        return max(sizes, default=None)


def _of_process(run_dir: Path, status: Status) -> int | None:
    pid = status.figures.get("exec_pid")
    # Without the lock the process id may be another process's by now.
    if not pid or status.figures.get("host") != os.uname().nodename or not is_locked(run_dir / "exec.lock"):
        return None
    return usage.resident_with_descendants(int(pid))
