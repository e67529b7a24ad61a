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
from launcher.record import folders
from launcher.record.folders import JOURNAL, REQUEST, STATUS, Folder
from launcher.record.locks import is_run_locked, lock_journal, run_locked
from launcher.record.request import RunRequest, request_as_json
from launcher.record.states import ENDED, TRANSITIONS, State
from trainer.base.files import json_text


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
    folders.create_state(run_dir)
    event = {"time": time.time(), "state": "queued", "attempt": 1, "reason": ""}
    for name, text in (
        (REQUEST, request_as_json(request)),
        (JOURNAL, json_text(event) + "\n"),
        (STATUS, status_text(event)),
    ):
        (folders.state_folder(run_dir) / name).write_text(text, encoding="utf-8")


def status_text(event: Mapping[str, Any]) -> str:
    """The content of status.json after this event."""
    return json_text(event, indent=2) + "\n"


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    """The journal, oldest first. Skips a line that a crash or a full disk cut short."""
    try:
        with folders.state(run_dir) as folder:
            return _parsed(folders.read(folder, JOURNAL))
    except FileNotFoundError:
        return []


def _parsed(content: bytes) -> list[dict[str, Any]]:
    events = []
    for line in content.decode(errors="replace").split("\n"):  # not splitlines: a text may have other line separators
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and _is_event(event):
            events.append(event)
    return events


def _is_event(event: Mapping[str, Any]) -> bool:
    """Whether the fields that every event has are of their types: another user may have written an old journal."""
    state, attempt, at, reason = (event.get(key) for key in ("state", "attempt", "time", "reason"))
    return (
        isinstance(state, str)
        and state in TRANSITIONS
        and isinstance(attempt, int | None)
        and isinstance(at, int | float | None)
        and isinstance(reason, str | None)
    )


def last_event(content: bytes) -> tuple[dict[str, Any] | None, int]:
    """The last event of a journal of this content (None if there is none), and the length of its status.json."""
    for line in reversed(content.split(b"\n")):
        if events := _parsed(line):
            event = events[-1]
            if any(isinstance(value, list | dict) for value in event.values()):
                return event, len(status_text(event).encode())
            # One line per field in place of one line for all: indenting every text to measure it takes too long.
            return event, len(line) + 2 * (len(event) - 1) + len("{\n  \n}\n") - len("{}")
    return None, 0


def append_event(
    run_dir: Path, state: State, attempt: int | None = None, reason: str = "", durable: bool = True, **figures: Any
) -> Status:
    """Write the next event into the journal and status.json. `attempt` None: the attempt of the last event. Not
    `durable`: the caller flushes the events of many runs at once with `folders.flush`.

    The order in the journal counts, not the clock. Raises RunError if `TRANSITIONS` does not allow the step. Raises
    FencedError if another process was faster: a later attempt has started, or a launcher with a higher `fence` than
    the given one has written.
    """
    with (
        folders.own_state(run_dir) as folder,
        os.fdopen(folders.open_own(folder, JOURNAL, os.O_RDWR | os.O_APPEND | os.O_CREAT), "a+b") as journal,
    ):
        lock_journal(journal.fileno())
        events = _parsed(folders.read(folder, JOURNAL))
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
        if durable:
            os.fsync(journal.fileno())
        with suppress(OSError):  # a full disk: the next read repairs status.json from the journal
            (folders.replace if durable else folders.overwrite)(folder, STATUS, status_text(event).encode())
        started = any(before["state"] == "starting" for before in events)
        if state in ENDED and (started or state != "cancelled"):  # else there is nothing to look at
            copy_to_run_dir(folder, run_dir)
    return status_of(event)


def copy_to_run_dir(folder: Folder, run_dir: Path) -> None:
    """Copy the request and the status into the run directory, for people and rsync. The launcher never reads the
    copies."""
    with suppress(OSError), folders.opened(run_dir, 2) as place:
        for name in (REQUEST, STATUS):
            folders.replace(place, name, folders.read(folder, name), durable=False)


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


def status_of(event: dict[str, Any]) -> Status:
    """The status after a journal's event."""
    known = {key: event[key] for key in ("state", "attempt", "reason", "time") if key in event}
    return Status(**known, figures={key: value for key, value in event.items() if key not in known})


def read_status(run_dir: Path) -> Status:
    """The status after the journal's last event. Repairs status.json if it differs."""
    try:
        with folders.state(run_dir) as folder:
            events = _parsed(folders.read(folder, JOURNAL))
            if events:
                _repair(folder, events[-1])
    except FileNotFoundError:
        return Status()
    return status_of(events[-1]) if events else Status()


def _repair(folder: Folder, last: Mapping[str, Any]) -> None:
    """Write status.json again if it differs from the journal's last event."""
    recorded = None
    with suppress(OSError, ValueError, RecursionError):
        recorded = json.loads(folders.read(folder, STATUS))
    if recorded != last and folder.path.parent.name == folders.STATE:
        with suppress(OSError):  # another user's submission, or a full disk
            folders.replace(folder, STATUS, status_text(last).encode())


def mark_lost(run_dir: Path, state: Literal["lost", "cancelled"] = "lost", reason: str = "") -> bool:
    """Record a run as lost (or as cancelled, if a stop was requested) if its journal says that it is in progress and no
    process holds it. `reason`: if the caller knows more. Returns whether that was so."""
    status = read_status(run_dir)
    if status.state not in ("starting", "running"):
        return False
    if status.figures.get("host", os.uname().nodename) != os.uname().nodename:
        return False  # this host cannot see the locks of another host
    if is_run_locked(run_dir):
        return False
    with run_locked(run_dir) as free:
        # Read again under the lock: the run may have ended just now.
        if not free or read_status(run_dir).state not in ("starting", "running"):
            return False
        if not reason and state == "lost":
            reason = "its process ended without a message (it was killed, or the machine went down)"
        append_event(run_dir, state, reason=reason or "stopped while it started")
        return True
