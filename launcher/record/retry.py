"""The retry policy: whether a failed attempt is repeated, and with which changes. Pure functions of the journal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from launcher.record.request import RunRequest
from trainer.base.errors import EXIT_DATA, EXIT_USAGE

MICRO_BATCH = "training.micro_batch"
HOPELESS = (EXIT_USAGE, EXIT_DATA)
"""Exit codes of runs that would fail again with the same command and files."""


@dataclass(frozen=True)
class NextAttempt:
    """Another attempt: after `wait` seconds, and with this micro-batch (None: as before)."""

    why: str
    wait: float = 0.0
    micro_batch: int | None = None


def decide(request: RunRequest, events: Sequence[Mapping[str, Any]]) -> NextAttempt | str | None:
    """The policy's decision after an attempt: another attempt, the reason against one, or None if there is nothing to
    say.

    `events` is the run's journal. After out_of_device_memory the run starts again at once, with the largest micro-batch
    that divides the effective batch and is at most half as large. A lost or failed run waits first, twice as long each
    time. Out of host memory is never repeated: the limit would be the same.
    """
    if not events:  # the journal was removed meanwhile
        return None
    last = events[-1]
    state, retry = str(last["state"]), request.retry
    if state == "out_of_host_memory" and "failed" in retry.on:
        return "not repeated: the memory limit would be the same"
    if state not in retry.on or last.get("exit_code") in HOPELESS:
        return None
    done = retries(events)
    micro = None
    if state == "out_of_device_memory":
        now, batch = micro_batch(request, events), int(request.config.get("batch_size") or 0)
        micro = smaller_micro_batch(now, batch, request.resources.gpus)
        if micro is None:
            return None if now is None else f"not repeated: micro-batch {now} cannot be halved"
    if done + 1 >= retry.attempts:
        return f"not repeated: {retry.attempts} attempts were made" if retry.attempts > 1 else None
    if micro is not None:
        return NextAttempt(
            f"again with micro-batch {micro}, the effective batch stays {request.config['batch_size']}", 0, micro
        )
    wait = retry.backoff * 2**done
    return NextAttempt(f"again in {wait:g} s" if wait else "again", wait)


def retries(events: Sequence[Mapping[str, Any]]) -> int:
    """Number of attempts that the policy has added since the run was submitted or resumed."""
    queued = [event for event in events if event["state"] == "queued"]
    return int(queued[-1].get("retry") or 0) if queued else 0


def micro_batch(request: RunRequest, events: Sequence[Mapping[str, Any]]) -> int | None:
    """The micro-batch of the next or current attempt: the last one in the journal, else the run's own setting or its
    whole batch. None for a step that trains nothing."""
    if request.kind != "train":
        return None
    if named := latest(events, "micro_batch"):
        return int(named)
    for word in reversed(request.command):
        key, _, value = word.partition("=")
        if key == MICRO_BATCH and value.isdecimal() and len(value) < 10:
            return int(value)
    batch = request.config.get("batch_size")
    return int(batch) if batch else None


def latest(events: Sequence[Mapping[str, Any]], figure: str) -> Any:
    """The last value of a figure in the journal; None if it has none."""
    return next((event[figure] for event in reversed(events) if event.get(figure)), None)


def smaller_micro_batch(now: int | None, batch: int, devices: int = 1) -> int | None:
    """The largest divisor of `batch` that is at most half of `now` and that `devices` can share; None if there is
    none.

    >>> smaller_micro_batch(16, 16), smaller_micro_batch(15, 15), smaller_micro_batch(1, 16)
    (8, 5, None)
    """
    return next(
        (size for size in range((now or 0) // 2, 0, -1) if batch % size == 0 and size % max(1, devices) == 0), None
    )


def command(request: RunRequest, events: Sequence[Mapping[str, Any]]) -> list[str]:
    """The trainer's words of the current attempt: those of the request, with the journal's micro-batch and the kind of
    the assigned device instead of `auto`. So a run whose GPU is missing fails and does not compute on the CPU."""
    words = list(request.command)
    if named := latest(events, "micro_batch"):
        words = [word for word in words if not word.startswith(f"{MICRO_BATCH}=")] + [f"{MICRO_BATCH}={named}"]
    starts = [event for event in events if event["state"] == "starting"]
    devices = starts[-1].get("devices") if starts else None
    return _on_device(request.kind, words, "mps" if devices == ["mps"] else "cuda") if devices else words


def _on_device(kind: str, words: list[str], device: str) -> list[str]:
    """The words with this device, unless they name another one than `auto`."""
    if kind == "train":
        if any(word.startswith("device=") and word != "device=auto" for word in words):
            return words
        return [*(word for word in words if word != "device=auto"), f"device={device}"]
    named = dict(pairwise(words)).get("--device", "auto")
    return [*words, "--device", device] if kind in ("ensemble", "predict") and named == "auto" else words
