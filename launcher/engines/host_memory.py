"""Peak host memory of runs in progress. Read-only; an unknown figure is None."""

from __future__ import annotations

from pathlib import Path

from launcher.engines import registry
from launcher.record.journal import Status
from launcher.record.states import ENDED


class HostMemory:
    """Peak host memory of runs in progress in bytes, since this object was created or since the kernel counts.

    The engine defines the figure: for a process, the sum over all its descendants, see `usage.resident`; for a
    container, its control group, which includes file caches.
    """

    def __init__(self) -> None:
        self._peaks: dict[tuple[Path, int], int] = {}

    def peak(self, run_dir: Path, status: Status) -> int | None:
        """Peak in bytes; after the run's end, the journal's figure."""
        if status.state in ENDED:
            peak = status.figures.get("peak_host_memory_bytes")
            return int(peak) if peak else None
        if status.state != "running":
            return None
        key = (run_dir, status.attempt)
        now = registry.of_run(run_dir).host_memory(run_dir, status)
        if now is not None:
            self._peaks[key] = max(now, self._peaks.get(key, 0))
        return self._peaks.get(key)
