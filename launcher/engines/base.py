"""What a supervisor needs of an engine, and nothing more: the run directory says how a run fares and how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from launcher.host.gpu_locks import GpuLock


class Watcher(Protocol):
    """Knows how runs fare that somebody has started."""

    name: str
    trouble: str | None
    """What keeps the engine from doing its work just now; None while it does."""

    def settle(self, run_dir: Path) -> bool:
        """Look after a run that is under way by its journal, for one who only looks: True while it is.

        On False its end is in the journal, also where it vanished without a word. Takes nothing over, and waits for
        nothing.
        """

    def stop(self, run_dir: Path) -> None:
        """Ask the run to write its checkpoint and end."""

    def kill(self, run_dir: Path) -> None:
        """End the run at once."""


class Engine(Watcher, Protocol):
    """Executes runs for a supervisor. Whatever it starts outlives that."""

    def mark(self) -> dict[str, Any]:
        """What events of its runs carry, so that others know whom to ask about them: `engine`, and which one."""

    def start(self, run_dir: Path, attempt: int, devices: Sequence[str], held: Sequence[GpuLock]) -> None:
        """Start the run that the journal announces as `starting`; returns at once.

        `held` are the locks of `devices`: they must be kept for as long as the run lasts. Raises OSError where the run
        cannot be started.
        """

    def poll(self, run_dir: Path) -> bool:
        """The same as `settle` for the supervisor, whoever started the run: it may be taken over."""

    def wait(self, seconds: float) -> None:
        """Return when the time is up, or sooner when a run has changed."""

    def taken(self) -> dict[str, str]:
        """GPUs (their index) that containers hold, and which run it is: locks die with the launcher that held them."""

    def ready(self) -> bool:
        """Whether runs can be started now; where not, `trouble` says why."""

    def close(self) -> None:
        """Wait, within reason, until what ended runs leave is cleared away."""
