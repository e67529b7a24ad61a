"""The outcome of an attempt, on every engine: judged by the contract's exit codes, its log, and requests to end it."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from launcher.base.errors import RunFileError
from launcher.base.sizes import show_size
from launcher.base.text import printable
from launcher.record import trainer_figures, trainer_files
from launcher.record.request import Kind, RunRequest
from launcher.record.states import State
from launcher.record.trainer_files import RESUME
from trainer.base.errors import EXIT_DATA, EXIT_DEVICE_MEMORY, EXIT_OK, EXIT_STOPPED, EXIT_USAGE
from trainer.base.figures import MAIN

MOST = 500
"""Characters of a reason."""
GRACE = 30.0
"""Seconds between SIGTERM and SIGKILL: time to finish the current step and save last.ckpt."""
EXIT_TAKEN = 1
"""Exit code of an attempt when a newer attempt took over the run."""


class StopSignals:
    """Counts the requests to stop this process: each SIGINT, and SIGTERM once, because several may ask for the same
    (`launcher stop`, the supervisor, the system)."""

    def __init__(self) -> None:
        self._interrupts = 0
        self._terminated = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._count)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # closing the terminal does not end the run

    @property
    def times(self) -> int:
        """The number of requests."""
        return self._interrupts + self._terminated

    def _count(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self._interrupts += 1
        else:
            self._terminated = True


class Overseer:
    """External influences on an attempt beside the trainer's own end. This base class has none."""

    def __init__(self, mark: Mapping[str, Any], grace: float = GRACE) -> None:
        self.mark = mark
        """Fields for the events of the attempt."""
        self.grace = grace

    def lost(self, look: bool = False) -> bool:
        """Whether another process has taken over the run, so that the trainer must end immediately. Called 10 times per
        second. `look`: do not use a cached answer."""
        return False

    def asked(self, signals: int) -> int:
        """Number of requests to end the run, given the `signals` that this process has received. Two mean
        immediately."""
        return signals

    def judge(self, state: State, reason: str) -> tuple[State, str]:
        """State and reason of the attempt's end, corrected by further knowledge."""
        return state, reason


def verdict(
    code: int, asked: bool, timed_out: bool, request: RunRequest, lack_of_memory: str, run_dir: Path
) -> tuple[State, str]:
    """State and reason of an attempt, from its exit code (negative: the signal) and further knowledge.

    `lack_of_memory` is the reason if the kernel or the engine ended it for lack of host memory, else empty.
    """
    kept = (
        "last.ckpt is kept"
        if trainer_files.has(run_dir, RESUME)
        else "no checkpoint: a resume starts from the beginning"
    )
    missing = missing_results(request, run_dir) if code == EXIT_OK else ""
    if code == EXIT_OK and not missing:
        return "succeeded", request.remark
    if timed_out:
        return "timed_out", f"the time limit of {request.timeout:g} s was reached (timeout: in the job file)"
    if asked:
        return "cancelled", f"stopped on request; {kept}"
    if lack_of_memory:
        return "out_of_host_memory", lack_of_memory
    if missing:
        return "failed", f"ended with exit code 0, but {missing}"
    if code == -signal.SIGKILL:
        return "lost", "killed by SIGKILL from outside"
    if code == EXIT_DEVICE_MEMORY:
        return "out_of_device_memory", ""
    if code == EXIT_STOPPED:
        return "lost", f"stopped from outside (docker stop, kill, or a shutdown of the host); {kept}"
    words = {EXIT_USAGE: "bad configuration", EXIT_DATA: "bad data"}
    return "failed", words.get(code) or (f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}")


RESULTS: Mapping[Kind, tuple[str, ...]] = {
    "train": ("metrics.json", "best.ckpt"),
    "ensemble": ("metrics.json", "ensemble.json"),
    "predict": ("submission.csv",),
    "analyze": ("analysis_results/report.html",),
}
"""The files that a run of each kind leaves if it has succeeded: what later steps, `collect` and people read."""


def forget_result(request: RunRequest, run_dir: Path) -> None:
    """Before an attempt: remove the result of an earlier attempt, so that it cannot pass for one of this attempt.
    Checkpoints stay."""
    with suppress(RunFileError):
        trainer_files.remove(run_dir, RESULTS[request.kind][0])


def heading(request: RunRequest, attempt: int) -> str:
    """The first lines of an attempt in the run's log."""
    note = f"--- note: {request.remark}\n" if request.remark else ""
    return f"--- attempt {attempt}, {time.strftime('%Y-%m-%d %H:%M:%S')}\n{note}"


def missing_results(request: RunRequest, run_dir: Path) -> str:
    """Which of its results a run has not left, for a message; empty if it has left all."""
    bad = [name for name in RESULTS[request.kind] if not trainer_files.size(run_dir, name)]
    if bad:
        return f"left no {' and no '.join(bad)}"
    if request.kind == "train" and trainer_figures.read_metrics(run_dir).get(MAIN) is None:
        return f"its metrics.json has no number {MAIN}"
    return ""


def last_error(run_dir: Path, begin: int = 0) -> str:
    """The trainer's last message after byte `begin` of the run's log, from `error:` on, at most 500 characters."""
    return last_message(printable(trainer_files.log_end(run_dir, begin)))


def last_message(text: str) -> str:
    """The last `error:` of a log, else its last line. Joins several errors by semicolons on one line."""
    lines = text.splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    message = lines[starts[-1] :] if starts else lines[-1:]
    errors = [" ".join(line.removeprefix("error: ").split()) for line in message]
    joined = "; ".join(error.rstrip(";") for error in errors if error)
    return joined if len(joined) <= MOST else joined[: MOST - 1].rsplit(" ", 1)[0] + "…"


def lack_of_memory(request: RunRequest) -> str:
    """The reason for a run that the engine ended for lack of host memory."""
    if not request.resources.memory:
        return "the host ran out of memory: run fewer at once with resources.memory or max_parallel"
    place = f" ({request.memory_place})" if request.memory_place else ""
    size = show_size(request.resources.memory)
    return f"it needs more than resources.memory: {size}{place}; raise it, or lower training.num_workers"
