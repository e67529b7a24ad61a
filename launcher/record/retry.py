"""Whether an attempt that ended badly is worth another one, and how that one differs: pure functions of the journal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.record.request import RunRequest

MICRO_BATCH = "training.micro_batch"
NEVER = (64, 65)
"""Exit codes of configuration and data errors: the same words and files would fail again."""


@dataclass(frozen=True)
class NextAttempt:
    """Another attempt: after `wait` seconds, and with this micro-batch (None: as before)."""

    why: str
    wait: float = 0.0
    micro_batch: int | None = None


def decide(request: RunRequest, events: Sequence[Mapping[str, Any]]) -> NextAttempt | str | None:
    """What follows on the end of an attempt by the run's policy: another one, why there is none, or None where there is
    nothing to say.

    `events` is the run's journal. Out of device memory: at once, with the largest micro-batch of at most half the
    images that still divides the effective batch. What was lost or failed waits first, twice as long each time. Out of
    host memory is never repeated: the limit would be the same.
    """
    last = events[-1]
    state, retry = str(last["state"]), request.retry
    if state == "out_of_host_memory" and "failed" in retry.on:
        return "not repeated: it would meet the same limit again"
    if state not in retry.on or last.get("exit_code") in NEVER:
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
    """How many attempts the policy has added since somebody submitted or resumed the run."""
    queued = [event for event in events if event["state"] == "queued"]
    return int(queued[-1].get("retry", 0)) if queued else 0


def micro_batch(request: RunRequest, events: Sequence[Mapping[str, Any]]) -> int | None:
    """The micro-batch of the next or present attempt: the journal's last word on it, else the run's own setting or its
    whole batch. None for what trains nothing."""
    if request.kind != "train":
        return None
    if named := latest(events, "micro_batch"):
        return int(named)
    for word in reversed(request.command):
        key, _, value = word.partition("=")
        if key == MICRO_BATCH and value.isdigit():
            return int(value)
    batch = request.config.get("batch_size")
    return int(batch) if batch else None


def latest(events: Sequence[Mapping[str, Any]], figure: str) -> Any:
    """The journal's last word on a figure; None where it has none."""
    return next((event[figure] for event in reversed(events) if event.get(figure)), None)


def smaller_micro_batch(now: int | None, batch: int, devices: int = 1) -> int | None:
    """The largest divisor of `batch` that is at most half of `now` and that `devices` can share; None where there is
    none.

    >>> smaller_micro_batch(16, 16), smaller_micro_batch(15, 15), smaller_micro_batch(1, 16)
    (8, 5, None)
    """
    return next(
        (size for size in range((now or 0) // 2, 0, -1) if batch % size == 0 and size % max(1, devices) == 0), None
    )


def command(request: RunRequest, events: Sequence[Mapping[str, Any]]) -> list[str]:
    """The trainer's words of the present attempt: the request's, with the micro-batch that the journal names, and with
    the kind of device that it was given, so that a run whose GPU is missing fails instead of training on the CPU."""
    words = list(request.command)
    if named := latest(events, "micro_batch"):
        words = [word for word in words if not word.startswith(f"{MICRO_BATCH}=")] + [f"{MICRO_BATCH}={named}"]
    starts = [event for event in events if event["state"] == "starting"]
    devices = starts[-1].get("devices") if starts else None
    if request.kind == "train" and devices and not any(word.startswith("device=") for word in words):
        words.append("device=mps" if devices == ["mps"] else "device=cuda")
    return words
