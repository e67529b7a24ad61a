"""The submission that must end before another one starts its runs (`follows` of a job file)."""

from __future__ import annotations

import time
from pathlib import Path

from launcher.engines import registry
from launcher.record.records import Records
from launcher.record.states import ENDED

INTERVAL = 2.0
"""Seconds between two checks, at least."""


class Followed:
    """Looks at the submission from time to time. Reads only journals that have changed."""

    def __init__(self, submission: Path, pause: float) -> None:
        """`pause` between two checks, as a multiple of the CPU time of one."""
        self.records = Records(submission)
        self._pause = pause
        self._next_look = 0.0
        self._why: str | None = None
        self._has_ended = False

    def close(self) -> None:
        """Close what was opened to look."""
        self.records.close()

    def why_waits(self) -> str | None:
        """Why the submission has not ended; None if it has."""
        now = time.monotonic()
        if not self._has_ended and now >= self._next_look:
            began = time.thread_time()
            self._why = self._look()
            self._has_ended = self._why is None
            self._next_look = now + max(INTERVAL, self._pause * (time.thread_time() - began))
        return self._why

    def _look(self) -> str | None:
        name = self.records.submission.name
        if registry.is_driven(self.records.submission):
            return f"{name} is in progress"
        if all(self._is_over(run_dir) for run_dir in self.records.run_dirs()):
            return None
        return f"{name} is unattended; continue it with: launcher resume {name}"

    def _is_over(self, run_dir: Path) -> bool:
        if self.records.look(run_dir.name).state not in ENDED:
            registry.settle(run_dir)
        return self.records.look(run_dir.name).state in ENDED
