"""A run as a container of the node's Docker engine, inside a job of Slurm.

The engine's containers are not processes of the job: Slurm neither counts nor ends them. So the container's standard
input is connected to `launcher exec`. When it closes, for any reason, the container saves its checkpoint and ends.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.engines.docker import create
from launcher.engines.docker.containers import Containers
from launcher.engines.docker.watched import ContainerAttempt, ending
from launcher.engines.outcome import EXIT_TAKEN, Overseer, StopSignals
from launcher.record.journal import read_status
from launcher.record.states import GOOD, State

LEASHED = """
exec 3<&0
"$@" >>"$RUN_DIR/log.txt" 2>&1 </dev/null 3<&- &
child=$!
trap 'kill -TERM "$child"' TERM
{ cat; kill -TERM "$child"; sleep 30; kill -KILL "$child"; } <&3 >/dev/null 2>&1 &
wait "$child"
code=$?
while kill -0 "$child" 2>/dev/null; do wait "$child"; code=$?; done
exit "$code"
"""
"""The container's shell script: runs the trainer, and ends it when standard input closes."""
POLL = 0.2
"""Seconds between two checks of the container."""


class SlurmContainers(Containers):
    """The Docker engine of a node, for one run of a job there."""

    def __init__(self, overseer: Overseer) -> None:
        super().__init__()
        self.overseer = overseer
        self.signals = 0
        self._leash: Any = None

    def mark(self) -> dict[str, Any]:
        """See `SupervisedEngine.mark`."""
        return {**super().mark(), **self.overseer.mark}

    def _adapted(self, options: dict[str, Any]) -> dict[str, Any]:
        return {**options, "entrypoint": ["/bin/sh", "-c", LEASHED, "sh"], "stdin_open": True}

    def _made(self, watched: ContainerAttempt) -> None:
        self._leash = self.client.api.attach_socket(watched.id, {"stdin": 1, "stream": 1})

    def _ending(self, watched: ContainerAttempt, state: Mapping[str, Any]) -> tuple[State, str, dict[str, Any]]:
        word, reason, figures = ending(watched, state, self.overseer.asked(self.signals) > 0)
        return (*self.overseer.judge(word, reason), figures)

    def end(self, run_dir: Path, at_once: bool) -> bool:
        """Send SIGTERM, or SIGKILL, to the run's container. Returns False if there is none yet."""
        watched = self._watched.get(run_dir)
        if watched is None or not watched.id:
            return False
        self._end(watched, at_once)
        return True

    def forget(self, run_dir: Path) -> None:
        """Remove the container of an attempt whose run a newer attempt has taken over."""
        watched = self._watched.get(run_dir)
        if watched is not None:
            create.remove(self.client, watched.id)


def run(run_dir: Path, attempt: int, devices: Sequence[str], overseer: Overseer) -> int:
    """Execute the attempt that the journal announces as `starting` in a container, and record how it ended. Returns its
    exit code, or 1."""
    signals = StopSignals()
    engine = SlurmContainers(overseer)
    engine.start(run_dir, attempt, devices, [])
    told_to_end = False
    while engine.poll(run_dir):
        engine.signals = signals.times
        if overseer.lost():
            engine.end(run_dir, at_once=True)
            engine.forget(run_dir)
            return EXIT_TAKEN
        if overseer.asked(signals.times) and not told_to_end:
            told_to_end = engine.end(run_dir, at_once=False)
        time.sleep(POLL)
    engine.close()
    status = read_status(run_dir)
    code = int(status.figures.get("exit_code") or 0)
    return 0 if status.state in GOOD else code if 0 < code < 256 else 1
