"""The journal of a run: one line per change of state. The journal is authoritative; status.json is a copy of its
end.

A crash or a full disk cuts lines short: those are skipped. A line that is whole but not of this launcher means that
nobody knows the run's state: it is `unknown`, and the reason names the line.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from launcher.base import fields
from launcher.base.errors import FencedError, RecordError, RunError
from launcher.record import folders
from launcher.record.folders import JOURNAL, PASSING, REQUEST, STATUS, Folder
from launcher.record.locks import is_run_locked, lock_journal, run_locked
from launcher.record.request import RunRequest, request_as_json
from launcher.record.states import ENDED, TRANSITIONS, UNKNOWN, State
from trainer.base.files import json_text


@dataclass(frozen=True)
class Status:
    """The last event of a run."""

    state: State = "queued"
    attempt: int = 1
    reason: str = ""
    time: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)


OUTDATED = "outdated"
"""Field of an event that queues a step again although it has succeeded."""
_NESTED = {list, dict}
_DEFAULTS = {"attempt": 1, "time": 0.0, "reason": ""}
_CHECKS: dict[str, fields.Check] = {
    "state": fields.one_of(tuple(TRANSITIONS)),
    "attempt": fields.whole(1, 10**9),
    "time": fields.number(0, 10**11),
    "reason": fields.TEXT,
    "devices": fields.TEXTS,
    **dict.fromkeys(("host", "boot", "node", "engine", "engine_id", "container", "source", "because"), fields.TEXT),
    **dict.fromkeys(("pid", "exec_pid"), fields.whole(1, 2**31)),
    **dict.fromkeys(("fence", "retry", "micro_batch", "peak_host_memory_bytes"), fields.COUNT),
    OUTDATED: fields.FLAG,
    "exit_code": fields.whole(-(10**6), 10**6),
    "seconds": fields.number(-(10**10), 10**10),
    "uptime": fields.number(0, 10**11),
}
"""Types of the fields of an event."""


def create_run(run_dir: Path, request: RunRequest) -> None:
    """A new run directory with its request and the first event of its journal.

    The files are not flushed to disk here: the caller flushes all runs at once before it publishes them.
    """
    event = {"time": time.time(), "state": "queued", "attempt": 1, "reason": ""}
    contents = {REQUEST: request_as_json(request), JOURNAL: json_text(event) + "\n", STATUS: status_text(event)}
    folders.create_state(run_dir, {name: text.encode() for name, text in contents.items()})


def status_text(event: Mapping[str, Any]) -> str:
    """The content of status.json after this event, as `json_text` with an indent of 2 writes it."""
    if not _NESTED.isdisjoint(map(type, event.values())):
        return json_text(event, indent=2) + "\n"
    return "{\n" + ",\n".join(f"  {json_text(key)}: {json_text(value)}" for key, value in event.items()) + "\n}\n"


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    """The journal, oldest first; empty if there is none. Skips a line that a crash or a full disk cut short. Raises
    RecordError if it cannot be used, and OSError if the file system may answer later."""
    try:
        with folders.state(run_dir) as folder:
            return _parsed(folders.read(folder, JOURNAL), folder.path)
    except FileNotFoundError:
        return []
    except OSError as error:
        if error.errno in PASSING:
            raise
        raise RecordError(f"{folders.state_folder(run_dir) / JOURNAL}: {error.strerror}") from None


def _parsed(content: bytes, folder: Path) -> list[dict[str, Any]]:
    """The events of a journal in `folder`. Raises RecordError."""
    lines = content.split(b"\n")  # not splitlines: a text may have other line separators
    events = [event for number, line in enumerate(lines, 1) if (event := _event(line, number, folder)) is not None]
    if not events and content.strip():
        raise RecordError(f"{folder / JOURNAL}: not a journal of this launcher")
    return events


def _event(line: bytes, number: int, folder: Path | str) -> dict[str, Any] | None:
    """The event in a line of the journal; None if the line was cut short. Raises RecordError for any other line."""
    if not line:  # the end of a journal
        return None
    event, why = None, ""
    try:
        event = fields.parsed(line.strip(b"\0").decode(errors="replace"))  # a crash can leave zeros
        why = "no mapping" if not isinstance(event, dict) else fields.wrong(event, _CHECKS)
    except fields.NotFiniteError as error:
        why = str(error)
    except (ValueError, RecursionError) as error:
        if getattr(error, "msg", "") != "Extra data":
            return None
        why = "something follows the event"
    if isinstance(event, dict) and not why and (engine := event.get("engine")):
        why = fields.wrong(event, {engine: fields.TEXT})  # a field of the engine's name has its id of the attempt
    if isinstance(event, dict) and not why and event.get("state") is None:
        why = "it has no state"
    if why or not isinstance(event, dict):
        raise RecordError(f"{folder}/{JOURNAL}: line {number} is no event of this launcher: {why}")
    for name, value in _DEFAULTS.items():
        if event.get(name) is None:
            event[name] = value
    return event


def last_event(content: bytes, folder: Path | str) -> tuple[dict[str, Any] | None, int]:
    """The last event of a journal of this content in `folder` (None if there is none), and the length of its
    status.json. Raises RecordError."""
    lines = content.split(b"\n")
    for number in range(len(lines), 0, -1):
        line = lines[number - 1]
        event = _event(line, number, folder)
        if event is not None:
            if not _NESTED.isdisjoint(map(type, event.values())):
                return event, len(status_text(event).encode())
            # One line per field in place of one line for all: indenting every text to measure it takes too long.
            return event, len(line) + 2 * (len(event) - 1) + len("{\n  \n}\n") - len("{}")
    return None, 0


def append_event(
    run_dir: Path, state: State, attempt: int | None = None, reason: str = "", durable: bool = True,
    again: bool = False, **figures: Any,
) -> Status:  # fmt: skip
    """Write the next event into the journal and status.json. `attempt` None: the attempt of the last event, or (with
    `again`) the next one: see `next_attempt`. Not `durable`: the caller flushes the events of many runs at once with
    `folders.flush`.

    The order in the journal counts, not the clock. Raises RunError if `TRANSITIONS` does not allow the step. Raises
    FencedError if another process was faster: a later attempt has started, or a launcher with a higher `fence` than
    the given one has written.
    """
    with (
        folders.own_state(run_dir) as folder,
        os.fdopen(folders.open_own(folder, JOURNAL, os.O_RDWR | os.O_APPEND | os.O_CREAT), "a+b") as journal,
    ):
        lock_journal(journal.fileno())
        events = _parsed(folders.read(folder, JOURNAL), folder.path)
        if events and not _may_follow(events[-1]["state"], state, figures):
            raise RunError(f"{run_dir.name}: is {events[-1]['state']} already and cannot become {state}")
        if events and attempt is not None and attempt < events[-1]["attempt"]:
            raise FencedError(
                f"{run_dir.name}: attempt {attempt} has ended: attempt {events[-1]['attempt']} has started"
            )
        if figures.get("fence") and any((event.get("fence") or 0) > figures["fence"] for event in events):
            raise FencedError(f"{run_dir.name}: another launcher has taken over this submission; this launcher stops")
        last = next_attempt(events) if again else events[-1]["attempt"] if events else 1
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


def next_attempt(events: Sequence[Mapping[str, Any]]) -> int:
    """The number of the attempt that follows when the run is queued again. An attempt counts once its trainer was
    started: if the last one was stopped or failed before that, the next one has its number."""
    last = int(events[-1]["attempt"]) if events else 1
    return last + any(event["state"] == "running" and event["attempt"] == last for event in events)


def _may_follow(before: State, state: State, figures: Mapping[str, Any]) -> bool:
    """Whether an event may follow one of the state `before`. Of the runs that have succeeded only a step may begin
    again, if it is outdated: see `job.steps`."""
    return state in TRANSITIONS[before] and (before != "succeeded" or bool(figures.get(OUTDATED)))


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
            number > 1 and not _may_follow(status.state, event["state"], event)
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
    """The status after the journal's last event. Repairs status.json if it differs. `unknown`, with the reason, if the
    journal cannot be used or the run's directory is gone. Raises OSError if the file system may answer later."""
    return checked(run_dir, lambda: recorded(run_dir))


def recorded(run_dir: Path) -> Status | None:
    """The status after the journal's last event; None if it has none. Raises OSError and RecordError."""
    with folders.state(run_dir) as folder:
        events = _parsed(folders.read(folder, JOURNAL), folder.path)
        if events:
            _repair(folder, events[-1])
    return status_of(events[-1]) if events else None


def checked(run_dir: Path, read: Callable[[], Status | None]) -> Status:
    """The status that `read` returns, or `unknown` with the reason: see `read_status`."""
    try:
        status = read()
    except (OSError, RecordError) as error:
        if isinstance(error, OSError) and error.errno in PASSING:
            raise
        return unknown(run_dir, error)
    if status is None:
        return unknown(run_dir, RecordError(f"{folders.state_folder(run_dir) / JOURNAL}: has no event"))
    if not (why := folders.why_no_directory(run_dir)):
        return status
    if status.state in ("starting", "running"):
        why = f"{run_dir}: {why}"
        return dataclasses.replace(status, reason=f"{status.reason}; {why}" if status.reason else why)
    was = f"it was {status.state}" + (f": {status.reason}" if status.reason else "")
    return dataclasses.replace(status, state=UNKNOWN, reason=f"{run_dir}: {why} ({was}); {AGAIN}")


def look(run_dir: Path) -> Status:
    """`read_status` for commands that only look: also `unknown` if the file system may answer later."""
    try:
        return read_status(run_dir)
    except OSError as error:
        return unknown(run_dir, error)


AGAIN = "submit the job again: results that are left are reused"


def unknown(run_dir: Path, error: OSError | RunError, file: str = JOURNAL) -> Status:
    """The status of a run whose records cannot be used. `file`: which of them, if the error does not say so."""
    if not isinstance(error, OSError):
        return Status(UNKNOWN, reason=str(error))
    with suppress(OSError):
        if isinstance(error, FileNotFoundError) and (why := folders.why_no_directory(run_dir)):
            return Status(UNKNOWN, reason=f"{run_dir}: {why}; {AGAIN}")
    return Status(UNKNOWN, reason=f"{folders.state_folder(run_dir) / file}: {error.strerror or error}")


def _repair(folder: Folder, last: Mapping[str, Any]) -> None:
    """Write status.json again if it differs from the journal's last event."""
    recorded = None
    with suppress(OSError, ValueError, RecursionError):
        recorded = json.loads(folders.read(folder, STATUS))
    if recorded != last and folder.path.parent.name == folders.STATE:
        with suppress(OSError):  # another user's submission, or a full disk
            folders.replace(folder, STATUS, status_text(last).encode())


def is_here(status: Status) -> bool:
    """Whether a run in progress was started on this host: by the host's name, or by its boot, since a host can change
    its name."""
    from launcher.host import processes  # takes ctypes, and few commands come here

    host, boot = status.figures.get("host"), processes.boot()
    named = (status.figures.get("boot"), str(status.figures.get("pid_started")).partition("/")[0])
    return not host or host == os.uname().nodename or (boot != "" and boot in named)


def mark_lost(run_dir: Path, state: Literal["lost", "cancelled"] = "lost", reason: str = "") -> bool:
    """Record a run as lost (or as cancelled, if a stop was requested) if its journal says that it is in progress and no
    process holds it. `reason`: if the caller knows more. Returns whether that was so."""
    status = read_status(run_dir)
    if status.state not in ("starting", "running"):
        return False
    if not is_here(status):
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
