"""What the states of a run mean, as a table for docs/states.md: made from `runs.TRANSITIONS`, so that it stays true."""

from __future__ import annotations

from launcher.record.runs import GOOD, TRANSITIONS, State

MEANINGS: dict[State, tuple[str, str]] = {
    "queued": ("waits for its turn", "starts it"),
    "starting": ("its devices are locked; its process or container is being started", "adopts it, else it is `lost`"),
    "running": ("its trainer runs", "adopts it, else it is `lost`"),
    "succeeded": ("ended with exit code 0", "leaves it"),
    "failed": ("ended with an error, or could not be started", "queues it again, but for exit codes 64 and 65"),
    "out_of_device_memory": ("ended with exit code 75", "queues it again"),
    "out_of_host_memory": ("the kernel or the engine killed it for want of memory", "queues it again"),
    "timed_out": ("was stopped when `timeout` was up", "queues it again"),
    "cancelled": ("was stopped on request, or before it began", "queues it again"),
    "lost": ("ended, and nobody knows why: killed from outside, or its host went down", "queues it again"),
    "reused": ("an equal run of an earlier submission serves", "leaves it"),
}
"""What each state means, and what `launcher resume` does with a run in it."""
RETRIED: frozenset[State] = frozenset({"out_of_device_memory", "lost", "failed", "timed_out"})
"""What `retry.on` of a job file may name."""


def reference() -> str:
    """The states as a Markdown table."""
    lines = ["| state | what it means | may become | retried | `launcher resume` |", "| --- | --- | --- | --- | --- |"]
    for state in MEANINGS:  # TRANSITIONS is made from sets, which have no order
        after = TRANSITIONS[state]
        meaning, resumed = MEANINGS[state]
        nexts = ", ".join(f"`{each}`" for each in MEANINGS if each in after) or "nothing: it is final"
        retried = "by `retry.on`" if state in RETRIED else "–" if state in GOOD or not _ended(state) else "never"
        lines.append(f"| `{state}` | {meaning} | {nexts} | {retried} | {resumed} |")
    return "\n".join(lines)


def _ended(state: State) -> bool:
    return state not in ("queued", "starting", "running")
