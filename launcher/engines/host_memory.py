"""The most host memory that runs under way were seen with. Only looks; a figure that cannot be had is None."""

from __future__ import annotations

from pathlib import Path

from launcher.engines import registry
from launcher.record.journal import Status
from launcher.record.states import ENDED


class HostMemory:
    """Host memory of runs under way: the most that was seen, in bytes, since this watch began or the kernel counts.

    Each engine says what that is: of a process with all its descendants, see `usage.resident`; of a container, whose
    control group counts file caches, too.
    """

    def __init__(self) -> None:
        self._peaks: dict[tuple[Path, int], int] = {}

    def peak(self, run_dir: Path, status: Status) -> int | None:
        """Bytes; what the journal says once the run is over."""
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
