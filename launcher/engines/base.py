"""What a supervisor needs of an engine, and nothing more: the run directory says how a run fares and how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from launcher.gpus import Held


class Engine(Protocol):
    """Executes runs. Whatever it starts outlives the supervisor, and records its own end in the journal."""

    name: str

    def start(self, run_dir: Path, attempt: int, devices: Sequence[str], held: Sequence[Held]) -> None:
        """Start the run that the journal announces as `starting`; returns at once.

        `held` are the locks of `devices`: they must be kept for as long as the run lasts. Raises OSError where the run
        cannot be started.
        """

    def alive(self, run_dir: Path) -> bool:
        """Whether the run is under way, whoever started it."""

    def stop(self, run_dir: Path) -> None:
        """Ask the run to write its checkpoint and end."""

    def kill(self, run_dir: Path) -> None:
        """End the run at once."""
