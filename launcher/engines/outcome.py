"""What an attempt's end means, on every engine: by the contract's exit codes, its log, and who asked it to end."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from launcher.base.sizes import show_size
from launcher.record.request import RunRequest
from launcher.record.states import State

GRACE = 30.0
"""Seconds between SIGTERM and SIGKILL: for the step under way and last.ckpt."""
EXIT_TAKEN = 1
"""Exit code of an attempt when a newer attempt took over the run."""
STOP = "stop.requested"
"""In a run directory: somebody asked the run to end."""


class StopSignals:
    """Whether this process was asked to stop, and how often."""

    def __init__(self) -> None:
        self.times = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._count)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal that closes ends no run

    def _count(self, number: int, frame: FrameType | None) -> None:
        self.times += 1


class Overseer:
    """What beside the trainer's own end decides on an attempt. This one: nothing."""

    def __init__(self, mark: Mapping[str, Any], grace: float = GRACE) -> None:
        self.mark = mark
        """What events of the attempt carry."""
        self.grace = grace

    def lost(self, look: bool = False) -> bool:
        """Asked ten times a second: whether the run is another's by now, so that the trainer must end at once. `look`:
        not as it was a moment ago, but now."""
        return False

    def asked(self, signals: int) -> int:
        """How often somebody wanted the run to end, where this process was sent so many signals: twice means now."""
        return signals

    def judge(self, state: State, reason: str) -> tuple[State, str]:
        """The end of the attempt, where more is known of it."""
        return state, reason


def verdict(
    code: int, asked: bool, timed_out: bool, request: RunRequest, want_of_memory: str, run_dir: Path
) -> tuple[State, str]:
    """State and reason by the contract's exit codes (negative: the signal) and what is known beside them.

    `want_of_memory` is what to say where the kernel or the engine ended it for want of host memory, else empty.
    """
    kept = (
        "last.ckpt is kept" if (run_dir / "last.ckpt").exists() else "it starts from the beginning when it is resumed"
    )
    if code == 0:
        return "succeeded", ""
    if timed_out:
        return "timed_out", f"the time limit of {request.timeout:g} s was up (timeout: in the job file)"
    if asked:
        return "cancelled", f"stopped on request; {kept}"
    if want_of_memory:
        return "out_of_host_memory", want_of_memory
    if code == -signal.SIGKILL:
        return "lost", "killed by SIGKILL from outside"
    if code == 75:
        return "out_of_device_memory", ""
    if code == 143:
        return "lost", f"stopped from outside (docker stop, kill, or a host that went down); {kept}"
    words = {64: "bad configuration", 65: "bad data"}
    return "failed", words.get(code) or (f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}")


def last_error(log: Path, begin: int = 0) -> str:
    """The last message that the trainer wrote after byte `begin`: from its `error:` on, at most 500 characters."""
    try:
        descriptor = os.open(log, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    with os.fdopen(descriptor, "rb") as file:
        file.seek(begin)
        text = file.read()[-20_000:].decode(errors="replace")
    return last_message(text)


def last_message(text: str) -> str:
    """The last `error:` of a log, or else its last line; several faults on one line, with semicolons between them."""
    lines = text.splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    message = lines[starts[-1] :] if starts else lines[-1:]
    faults = [" ".join(line.removeprefix("error: ").split()) for line in message]
    return "; ".join(fault.rstrip(";") for fault in faults if fault)[:500]


def want_of_memory(request: RunRequest) -> str:
    """What to say of a run that the engine ended for want of host memory."""
    if not request.resources.memory:
        return "the host ran out of memory: ask for less at once by resources.memory or max_parallel"
    place = f" ({request.memory_place})" if request.memory_place else ""
    size = show_size(request.resources.memory)
    return f"it needs more than resources.memory: {size}{place}; raise that, or lower training.num_workers"
