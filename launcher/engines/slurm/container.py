"""A run as a container of the node's Docker engine, inside a job of Slurm.

The engine's containers are not processes of the job: Slurm neither counts nor ends them. So the container's standard
input is connected to `launcher exec`. When it closes, for any reason, the container saves its checkpoint and ends.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.engines.docker.connection import Connection
from launcher.engines.docker.containers import Containers, Hooks
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


def run(run_dir: Path, attempt: int, devices: Sequence[str], overseer: Overseer) -> int:
    """Execute the attempt that the journal announces as `starting` in a container, and record how it ended. Returns its
    exit code, or 1."""
    signals = StopSignals()
    connection = Connection()
    leash: list[Any] = []

    def hold_leash(container: str) -> None:
        leash.append(connection.client.api.attach_socket(container, {"stdin": 1, "stream": 1}))

    def judge(watched: ContainerAttempt, state: Mapping[str, Any]) -> tuple[State, str, dict[str, Any]]:
        word, reason, figures = ending(watched, state, overseer.asked(signals.times) > 0)
        return (*overseer.judge(word, reason), figures)

    containers = Containers(connection, Hooks(overseer.mark, _leashed, hold_leash, judge))
    containers.start(run_dir, attempt, devices, [])
    told_to_end = False
    while containers.poll(run_dir):
        if overseer.lost():
            containers.end(run_dir, at_once=True)
            containers.forget(run_dir)
            return EXIT_TAKEN
        if overseer.asked(signals.times) and not told_to_end:
            told_to_end = containers.end(run_dir, at_once=False)
        time.sleep(POLL)
    containers.close()
    status = read_status(run_dir)
    code = int(status.figures.get("exit_code") or 0)
    return 0 if status.state in GOOD else code if 0 < code < 256 else 1


def _leashed(options: dict[str, Any]) -> dict[str, Any]:
    """The container's options with `LEASHED` around its command."""
    return {**options, "entrypoint": ["/bin/sh", "-c", LEASHED, "sh"], "stdin_open": True}
