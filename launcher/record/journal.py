"""The journal of a run: one line per change of state. The journal is authoritative; status.json is a copy of its
end."""

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
from trainer.base.files import json_text, write_json


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

    The files are not flushed to disk here: the caller flushes all runs at once before it publishes them.
    """
    run_dir.mkdir(parents=True)
    event = {"time": time.time(), "state": "queued", "attempt": 1, "reason": ""}
    for name, text in (
        ("run.json", request_as_json(request)),
        ("status.json", json_text(event, indent=2) + "\n"),
        ("events.jsonl", json_text(event) + "\n"),
    ):
        (run_dir / name).write_text(text, encoding="utf-8")


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    """The journal, oldest first. Skips a line that a crash or a full disk cut short."""
    try:
        text = (run_dir / "events.jsonl").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    events = []
    for line in text.split("\n"):  # not splitlines: JSON may have other line separators in a text
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and event.get("state") in TRANSITIONS:
            events.append(event)
    return events


def append_event(run_dir: Path, state: State, attempt: int | None = None, reason: str = "", **figures: Any) -> Status:
    """Write the next event into the journal and status.json. `attempt` None: the attempt of the last event.

    The order in the journal counts, not the clock. Raises RunError if `TRANSITIONS` does not allow the step. Raises
    FencedError if another process was faster: a later attempt has started, or a launcher with a higher `fence` than
    the given one has written.
    """
    with open(run_dir / "events.jsonl", "a+b", opener=_no_link) as journal:  # Path.open has no opener
        lock_journal(journal.fileno())
        events = read_events(run_dir)
        if events and state not in TRANSITIONS[events[-1]["state"]]:
            raise RunError(f"{run_dir.name}: is {events[-1]['state']} already and cannot become {state}")
        if events and attempt is not None and attempt < events[-1]["attempt"]:
            raise FencedError(
                f"{run_dir.name}: attempt {attempt} has ended: attempt {events[-1]['attempt']} has started"
            )
        if figures.get("fence") and any(event.get("fence", 0) > figures["fence"] for event in events):
            raise FencedError(f"{run_dir.name}: another launcher has taken over this submission; this launcher stops")
        last = events[-1]["attempt"] if events else 1
        event = {"time": time.time(), "state": state, "attempt": attempt or last, "reason": reason, **figures}
        journal.seek(0, os.SEEK_END)
        if journal.tell():
            journal.seek(-1, os.SEEK_END)
            if journal.read(1) != b"\n":
                journal.write(b"\n")  # end the line that a crash cut short
        journal.write(json_text(event).encode() + b"\n")
        journal.flush()
        os.fsync(journal.fileno())
        with suppress(OSError):  # a full disk: the next read repairs status.json from the journal
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
    """Opens no symbolic link: the run's user owns the folder and could redirect the writes of a launcher run by
    root."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)


def status_of(event: dict[str, Any]) -> Status:
    """The status after a journal's event."""
    known = {key: event[key] for key in ("state", "attempt", "reason", "time") if key in event}
    return Status(**known, figures={key: value for key, value in event.items() if key not in known})


def read_status(run_dir: Path) -> Status:
    """The status after the journal's last event. Repairs status.json if it differs."""
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
    """Record a run as lost (or as cancelled, if a stop was requested) if its journal says that it is in progress and no
    process holds it. Returns whether that was so."""
    status = read_status(run_dir)
    if status.state not in ("starting", "running"):
        return False
    if status.figures.get("host", os.uname().nodename) != os.uname().nodename:
        return False  # this host cannot see the locks of another host
    if is_locked(run_dir / "exec.lock"):
        return False
    with locked(run_dir / "exec.lock") as free:
        # Read again under the lock: the run may have ended just now.
        if not free or read_status(run_dir).state not in ("starting", "running"):
            return False
        vanished = "its process ended without a message (it was killed, or the machine went down)"
        append_event(run_dir, state, reason=vanished if state == "lost" else "stopped while it started")
        return True
