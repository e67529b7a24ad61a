"""The states of a run, their meanings and their transitions; also as a table for docs/states.md."""

from __future__ import annotations

from typing import Literal, get_args

State = Literal[
    "queued",
    "starting",
    "running",
    "succeeded",
    "failed",
    "out_of_device_memory",
    "out_of_host_memory",
    "timed_out",
    "cancelled",
    "lost",
    "reused",
    "unknown",
]
UNKNOWN: State = "unknown"
"""Never in a journal: a file of the run's records, or its directory, is missing or cannot be used."""
ENDED: frozenset[State] = frozenset(get_args(State)) - {"queued", "starting", "running"}
"""States in which nobody waits for the run any more."""
GOOD: frozenset[State] = frozenset({"succeeded", "reused"})
# Allowed next states. An ended run may be queued again as another attempt; `reused` is final, and `succeeded`, too, but
# for a step whose members have changed.
TRANSITIONS: dict[State, frozenset[State]] = {
    "queued": frozenset({"starting", "cancelled", "failed", "reused"}),
    "starting": frozenset({"running", "queued", "failed", "cancelled", "lost"}),
    "running": ENDED - {"reused", UNKNOWN},
    "succeeded": frozenset({"queued"}),
    "reused": frozenset(),
    **{state: frozenset({"queued"}) for state in ENDED - GOOD - {UNKNOWN}},
}

MEANINGS: dict[State, tuple[str, str]] = {
    "queued": ("waits for its turn", "starts it"),
    "starting": ("its devices are locked; its process or container is being started", "adopts it, else it is `lost`"),
    "running": ("its trainer runs", "adopts it, else it is `lost`"),
    "succeeded": ("ended with exit code 0", "leaves it; queues a step again whose members would be others now"),
    "failed": ("ended with an error, or could not be started", "queues it again, except after exit codes 64 and 65"),
    "out_of_device_memory": ("ended with exit code 75", "queues it again"),
    "out_of_host_memory": ("the kernel or the engine killed it for lack of memory", "queues it again"),
    "timed_out": ("was stopped at its `timeout`", "queues it again"),
    "cancelled": ("was stopped on request, or before it started", "queues it again"),
    "lost": ("ended for an unknown reason: killed from outside, or its host went down", "queues it again"),
    "reused": ("an equal run of an earlier submission is used instead", "leaves it"),
    "unknown": (
        "its directory or a file of its records is missing or cannot be used: the reason names it; no journal has this "
        "state",
        "leaves it",
    ),
}
"""Meaning of each state, and the action of `launcher resume` on a run in it."""
RETRIED: frozenset[State] = frozenset({"out_of_device_memory", "lost", "failed", "timed_out"})
"""States that `retry.on` of a job file may list."""


def reference() -> str:
    """The states as a Markdown table."""
    lines = ["| state | meaning | may become | retried | `launcher resume` |", "| --- | --- | --- | --- | --- |"]
    for state in MEANINGS:  # TRANSITIONS is made from sets, which have no order
        after = TRANSITIONS.get(state, frozenset())
        meaning, resumed = MEANINGS[state]
        nexts = ", ".join(f"`{following}`" for following in MEANINGS if following in after) or "nothing: it is final"
        nexts = "–" if state == UNKNOWN else nexts
        retried = (
            "by `retry.on`" if state in RETRIED else "–" if state in GOOD | {UNKNOWN} or state not in ENDED else "never"
        )
        lines.append(f"| `{state}` | {meaning} | {nexts} | {retried} | {resumed} |")
    return "\n".join(lines)
