"""The state of a submission as a table or JSON, and its logs. Reads only run directories."""

from __future__ import annotations

import dataclasses
import os
import select
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.base.errors import RunError, RunFileError
from launcher.base.sizes import show_duration, show_size
from launcher.base.text import Pieces, last_lines
from launcher.engines import registry
from launcher.job import steps
from launcher.record import retry, waiting
from launcher.record.find import read_submission
from launcher.record.journal import Status, look, read_events
from launcher.record.records import Records
from launcher.record.request import RunRequest, read_request
from launcher.record.states import ENDED, GOOD, UNKNOWN
from launcher.record.trainer_figures import read_metrics, read_progress
from launcher.record.trainer_files import next_data, open_log
from launcher.supervise import durations
from trainer.base.figures import MAIN

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = 100
"""Largest number of runs in a table. Laying out thousands of rows takes longer than reading them."""
PIECE = 2**20
"""Bytes of a log that are read at once."""
MARKS = {
    "queued": "·",
    "starting": "→",
    "running": "▶",
    "succeeded": "✓",
    "reused": "✓",
    "cancelled": "–",
}


def observe(submission: Path, records: Records) -> list[tuple[Path, Status]]:
    """Every run with its status. Records the end of a run if nobody has noticed it yet."""
    in_queue = registry.queue_of(submission) is not None
    observed = []
    for run_dir in records.run_dirs():
        status = records.look(run_dir.name)
        if status.state in ("starting", "running") or (in_queue and status.state == "queued"):
            unknown = registry.settle(run_dir)
            status = records.look(run_dir.name)
            if unknown and status.state not in ENDED:
                status = dataclasses.replace(status, reason=unknown)
        observed.append((run_dir, status))
    return observed


class _Requests(Mapping[str, RunRequest]):
    """The requests of runs by name. Reads one when somebody asks for it: most are never needed. One that cannot be
    used is an empty one."""

    def __init__(self, records: Records, observed: Sequence[tuple[Path, Status]]) -> None:
        self._records, self._names = records, [run_dir.name for run_dir, _ in observed]
        self._read: dict[str, RunRequest] = {}
        self.unusable: dict[str, Status] = {}
        """The runs whose request cannot be used, each with the status `unknown` and the reason."""

    def __getitem__(self, name: str) -> RunRequest:
        if name not in self._read:
            request = self._records.look_at_request(name)
            if isinstance(request, Status):
                self.unusable[name] = request
                request = RunRequest(name, 0, "train", [])
            self._read[name] = request
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _explained(
    observed: list[tuple[Path, Status]], waits: str | None, requests: _Requests
) -> list[tuple[Path, Status]]:
    """The runs with `waits` in the reasons of those that could start otherwise. One that is queued and whose request
    cannot be used is `unknown`."""
    over = {run_dir.name for run_dir, status in observed if status.state in ENDED}
    explained = []
    for run_dir, status in observed:
        if status.state == "queued":
            name = run_dir.name
            needs = requests[name].needs
            if name in requests.unusable:
                status = requests.unusable[name]
            elif waits is not None and over.issuperset(needs):
                reason = "; ".join(part for part in (status.reason, waits) if part)
                status = dataclasses.replace(status, reason=reason)
        explained.append((run_dir, status))
    return explained


def _out_of_date(
    submission: Path, observed: Sequence[tuple[Path, Status]], requests: _Requests, training: frozenset[str]
) -> dict[str, str]:
    """The steps whose result is out of date, each with the reason."""
    states = {run_dir.name: status.state for run_dir, status in observed}
    finished = [name for name in states if training and name not in training and states[name] in GOOD]
    old = steps.outdated(submission, {name: requests[name] for name in finished}, states)
    return {name: f"out of date: {why}; launcher resume {submission.name}" for name, why in old.items()}


def submission_state(submission: Path, statuses: list[Status]) -> str:
    """running, unattended (runs are left and no launcher is running them), succeeded, failed or stopped. Without a
    run: failed."""
    states = {status.state for status in statuses}
    if not states:
        return "failed"
    if states & {"queued", "starting", "running"}:
        return "running" if registry.is_driven(submission) else "unattended"
    if states <= GOOD:
        return "succeeded"
    return "stopped" if states <= GOOD | {"cancelled"} else "failed"


def status_json(submission: Path, most: int | None = None, records: Records | None = None) -> dict[str, Any]:
    """The stable form of `status --json`. With `most` for people: only so many runs, first those in progress, then
    those that failed; `hidden` has the number of the others by their state. `records`: to read only what has changed
    since the last call."""
    if records is None:
        with Records(submission) as records:
            return status_json(submission, most, records)
    waits = registry.why_waits(submission)
    observed = observe(submission, records)
    requests = _Requests(records, observed)
    observed = _explained(observed, waits, requests)
    selected = sorted(observed, key=lambda run: _urgency(run[1])) if most and len(observed) > most else observed
    training: frozenset[str] = frozenset()
    with suppress(RunError):  # without it, the requests say the same
        training = frozenset(read_submission(submission).get("runs", ()))
    old = _out_of_date(submission, observed, requests, training)
    etas, runs = {}, []
    for place, (run_dir, status) in enumerate(selected):
        is_shown = most is None or place < most
        in_progress = status.state in ("starting", "running")
        may_have_beaten = in_progress or (is_shown and (status.state != "queued" or status.attempt > 1))
        beaten = read_progress(run_dir) if may_have_beaten else None
        progress = dataclasses.asdict(beaten) if beaten and in_progress else {}
        if progress.get("eta_seconds"):
            etas[run_dir.name] = progress["eta_seconds"]
        if not is_shown:
            continue
        runs.append(
            {
                "name": run_dir.name,
                "kind": "train" if run_dir.name in training else requests[run_dir.name].kind,
                "state": status.state,
                "attempt": status.attempt,
                "reason": "; ".join(part for part in (status.reason, old.get(run_dir.name)) if part),
                MAIN: read_metrics(run_dir).get(MAIN) if status.state in GOOD else beaten and beaten.best_f1,
                "devices": status.figures.get("devices") or [],
                "progress": progress,
                "directory": str(run_dir),
            }
        )
    hidden = Counter(status.state for _, status in selected[most:]) if most is not None else Counter()
    return {
        "submission": submission.name,
        "state": submission_state(submission, [status for _, status in observed]),
        "directory": str(submission),
        "seconds_left": _seconds_left(observed, requests, etas),
        "waits": waits,
        "runs": runs,
        **({"hidden": dict(hidden)} if most is not None else {}),
    }


def _urgency(status: Status) -> int:
    """Place in a table that does not show all runs: those in progress first, then those that failed."""
    if status.state in ("starting", "running"):
        return 0
    return 1 if status.state in ENDED - GOOD - {"cancelled"} else 2


def _seconds_left(
    observed: Sequence[tuple[Path, Status]], requests: Mapping[str, RunRequest], etas: Mapping[str, float]
) -> float | None:
    states = {run_dir.name: status for run_dir, status in observed}
    seconds = durations.seconds_left(requests, states, etas, time.time())
    return None if seconds is None else round(seconds)


def heading(status: Mapping[str, Any]) -> str:
    """The name and state of a submission, and when it is expected to end, by the result of `status_json`."""
    left = status["seconds_left"]
    expected = f", about {show_duration(left)} left" if left is not None and status["state"] == "running" else ""
    return f"{status['submission']}: {status['state']}{expected}"


def status_table(status: Mapping[str, Any]) -> Table:
    """The result of `status_json` as a table for a terminal."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", title=heading(status))
    table.title_justify = "left"
    for title in ("run", "state", "epoch", "images/s", "ETA", "best F1", "memory", "reason"):
        table.add_column(title, overflow="fold")
    for run in status["runs"]:
        progress = run["progress"]
        memory, speed = progress.get("device_memory_bytes") or None, progress.get("images_per_second")
        table.add_row(
            run["name"],
            f"{MARKS.get(run['state'], '✗')} {run['state']}" + (f" ({run['attempt']})" if run["attempt"] > 1 else ""),
            f"{progress['epoch']}/{progress['epochs']}" if progress else "",
            f"{speed:.1f}" if speed is not None else "",
            show_duration(progress["eta_seconds"]) if progress else "",
            f"{run[MAIN]:.4f}" if run[MAIN] is not None else "",
            show_size(memory) if memory else "",
            run["reason"],
        )
    if line := others(status):
        table.add_row(line)
    return table


def others(status: Mapping[str, Any]) -> str:
    """A line on the runs that the result of `status_json` leaves out; empty if there are none."""
    hidden: Mapping[str, int] = status.get("hidden", {})
    if not hidden:
        return ""
    states = ", ".join(f"{number:,} {state}" for state, number in hidden.items())
    return f"… and {sum(hidden.values()):,} more: {states}; status --json lists all"


def follow_log(run_dir: Path, follow: bool, lines: int | None = None) -> bool:
    """Print the run's log without control characters, from its last `lines` lines on (None: the whole); with `follow`
    also new lines, over all attempts, until the run has ended. Returns False if nobody is going to start it. Raises
    RunFileError."""
    position: int | None = None
    pieces = Pieces()
    reported: str | None = None
    while True:
        registry.settle(run_dir)
        state = look(run_dir).state
        idle = follow and state == "queued" and not registry.is_driven(run_dir.parent)
        over = not follow or idle or (state in ENDED and not _is_repeated(run_dir))
        waits = registry.why_waits(run_dir.parent) if state == "queued" and not idle else None
        if waits and not waiting.same(reported, waits):
            print(f"{run_dir.name} is queued; {waits}", file=sys.stderr, flush=True)
            reported = waits
        try:
            with open_log(run_dir) as log:
                if position is None:
                    position = 0 if lines is None else last_lines(log, lines)
                end = os.fstat(log.fileno()).st_size  # a log that grows faster than it is printed has an end, too
                while (start := next_data(log.fileno(), position, end)) < end:
                    log.seek(start)
                    piece = log.read(min(PIECE, end - start))
                    if not piece:
                        break
                    position = start + len(piece)
                    sys.stdout.write(pieces.text(piece))
                sys.stdout.write(pieces.text(b"", final=over))
                sys.stdout.flush()
        except RunFileError as error:
            if not error.missing:
                raise
        if over:
            status = look(run_dir)
            if status.state == UNKNOWN:
                print(f"{run_dir.name}: {status.reason}", file=sys.stderr)
            elif position is None:
                origin = status.figures.get("source")
                see = f"; see: launcher logs {origin}" if origin else ""
                if not idle:
                    print(f"{run_dir.name} is {status.state} and has no log of its own{see}", file=sys.stderr)
            return not idle
        if _reader_gone():
            raise BrokenPipeError
        time.sleep(0.3)


def _is_repeated(run_dir: Path) -> bool:
    """Whether a launcher is about to queue the run, whose last attempt has ended, again."""
    with suppress(RunError, OSError):  # a run whose records cannot be used is not repeated
        events = read_events(run_dir)
        if events and events[-1]["state"] not in GOOD and registry.is_driven(run_dir.parent):
            return isinstance(retry.decide(read_request(run_dir), events), retry.NextAttempt)
    return False


def _reader_gone() -> bool:
    """Whether the reader of the output is gone: the other end of the pipe or the connection is closed. Asked because a
    log that is silent for hours would not show it."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):  # stdout is not a file
        return False
    watched = select.poll()
    watched.register(descriptor, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in watched.poll(0))
