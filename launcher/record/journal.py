"""The journal of a run: one line for each change of its state. It is the truth, and status.json is made from it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from launcher.base.errors import FencedError, RunError
from launcher.record.locks import is_locked, lock_journal, locked
from launcher.record.request import RunRequest, request_as_json
from launcher.record.states import TRANSITIONS, State
from trainer.base.files import write_json


@dataclass(frozen=True)
class Status:
    """The last event of a run."""

    state: State = "queued"
    attempt: int = 1
    reason: str = ""
    time: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)


def create_run(run_dir: Path, request: RunRequest) -> None:
    """A new run directory with its request and the first event of its journal.

    Not flushed to disk file by file: whoever shows it to others sees to that for all of them at once.
    """
    run_dir.mkdir(parents=True)
    event = {"time": time.time(), "state": "queued", "attempt": 1, "reason": ""}
    for name, text in (
        ("run.json", request_as_json(request)),
        ("status.json", json.dumps(event, indent=2) + "\n"),
        ("events.jsonl", json.dumps(event) + "\n"),
    ):
        (run_dir / name).write_text(text, encoding="utf-8")


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    """The journal, oldest first. A line that was cut short by a crash or a full disk is passed over."""
    try:
        text = (run_dir / "events.jsonl").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    events = []
    for line in text.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and event.get("state") in TRANSITIONS:
            events.append(event)
    return events


def append_event(run_dir: Path, state: State, attempt: int | None = None, reason: str = "", **figures: Any) -> Status:
    """Write the next event into the journal and status.json; `attempt` None is that of the last event.

    Order in the journal counts, not the clock. Raises RunError where `TRANSITIONS` does not allow the step, or where
    a later attempt has begun or a launcher with a higher `fence` than the one given has written: another process was
    faster.
    """
    with open(run_dir / "events.jsonl", "a+b", opener=_no_link) as journal:  # Path.open has no opener
        lock_journal(journal.fileno())
        events = read_events(run_dir)
        if events and state not in TRANSITIONS[events[-1]["state"]]:
            raise RunError(f"{run_dir.name}: {events[-1]['state']} already; it cannot become {state}")
        if events and attempt is not None and attempt < events[-1]["attempt"]:
            raise FencedError(f"{run_dir.name}: attempt {attempt} is over: {events[-1]['attempt']} has begun")
        if figures.get("fence") and any(event.get("fence", 0) > figures["fence"] for event in events):
            raise FencedError(f"{run_dir.name}: another launcher has taken over; this one writes no more")
        last = events[-1]["attempt"] if events else 1
        event = {"time": time.time(), "state": state, "attempt": attempt or last, "reason": reason, **figures}
        journal.seek(0, os.SEEK_END)
        if journal.tell():
            journal.seek(-1, os.SEEK_END)
            if journal.read(1) != b"\n":
                journal.write(b"\n")  # close what a crash cut short
        journal.write(json.dumps(event, ensure_ascii=False).encode() + b"\n")
        journal.flush()
        os.fsync(journal.fileno())
        with suppress(OSError):  # a full disk: the journal is the truth, and the next look puts this right
            write_json(run_dir / "status.json", event)
    return status_of(event)


def replay(events: Sequence[Mapping[str, Any]]) -> Status:
    """The status that a journal ends in. Raises RunError at the first step that `TRANSITIONS` does not allow."""
    status = Status()
    for number, event in enumerate(events, start=1):
        if (number == 1 and event["state"] != "queued") or (
            number > 1 and event["state"] not in TRANSITIONS[status.state]
        ):
            before = status.state if number > 1 else "nothing"
            raise RunError(f"line {number}: {event['state']} cannot follow {before}")
        status = status_of(dict(event))
    return status


def _no_link(path: str, flags: int) -> int:
    """The journal lies in a folder of the run's user: where this process is root, no link there may lead it astray."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)


def status_of(event: dict[str, Any]) -> Status:
    """A journal's event as the status that it made."""
    known = {key: event[key] for key in ("state", "attempt", "reason", "time") if key in event}
    return Status(**known, figures={key: value for key, value in event.items() if key not in known})


def read_status(run_dir: Path) -> Status:
    """The last event by the journal; status.json is put right where it says something else."""
    events = read_events(run_dir)
    if not events:
        return Status()
    try:
        recorded = json.loads((run_dir / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        recorded = None
    if recorded != events[-1] and os.access(run_dir, os.W_OK):
        with suppress(OSError):
            write_json(run_dir / "status.json", events[-1])
    return status_of(events[-1])


def mark_lost(run_dir: Path, state: Literal["lost", "cancelled"] = "lost") -> bool:
    """Record as lost (or as cancelled, where it was asked to stop) a run that is under way by its journal while no
    process holds it; True if that was so."""
    status = read_status(run_dir)
    if status.state not in ("starting", "running"):
        return False
    if status.figures.get("host", os.uname().nodename) != os.uname().nodename:
        return False  # locks of another host do not show here
    if is_locked(run_dir / "exec.lock"):
        return False
    with locked(run_dir / "exec.lock") as free:
        # Looked at again under the lock: it may have ended just now.
        if not free or read_status(run_dir).state not in ("starting", "running"):
            return False
        vanished = "its process vanished without a word (killed, or the machine went down)"
        append_event(run_dir, state, reason=vanished if state == "lost" else "stopped while it started")
        return True
