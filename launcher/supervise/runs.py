"""The runs of a submission as its supervisor knows them: their requests, and the state of each by its journal."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from launcher.base.errors import RunError
from launcher.engines.base import SupervisedEngine
from launcher.record.find import read_submission
from launcher.record.folders import PASSING
from launcher.record.journal import Status, unknown
from launcher.record.records import Records
from launcher.record.request import RunRequest
from launcher.supervise.scheduler import Demand
from launcher.supervise.together import demand_of

RESCAN = 2.0
"""Seconds between two checks of the queued runs, at least."""
PAUSE = 300
"""Pause after a repeated look at all runs, as a multiple of its CPU time: so it takes a third of a percent of a core,
however many runs there are."""
SILENCE = 60.0
"""A run whose files alone cannot be read for this many seconds is given up."""
Event = Callable[[str, Status], None]


class Runs:
    """The runs that a supervisor drives: those of `only` with the runs that they need, or all. Use it in one
    thread. Calls `on_event` when the state of a run has changed."""

    def __init__(
        self, submission: Path, engine: SupervisedEngine, only: Collection[str] | None, on_event: Event
    ) -> None:
        self.submission = submission
        self.engine = engine
        self.on_event = on_event
        self.records = Records(submission)
        self.requests: dict[str, RunRequest] = {}
        self.unusable: dict[str, Status] = {}
        """The runs whose request cannot be used, with the reason. They are not supervised."""
        for path in self.records.run_dirs():
            request = self.records.look_at_request(path.name)
            if isinstance(request, Status):
                self.unusable[path.name] = request
            else:
                self.requests[path.name] = request
        self.beside: dict[str, Demand] = {}
        """The other runs of the submission that are in progress. They are not supervised, and take their part of the
        machine."""
        if only is not None:
            wanted = _with_needs(only, self.requests)
            others = [name for name in self.requests if name not in wanted]
            self.beside = {name: demand_of(self.requests[name]) for name in others if self.is_in_progress(name)}
            self.requests = {name: request for name, request in self.requests.items() if name in wanted}
            self.unusable = {name: status for name, status in self.unusable.items() if name in wanted}
        self.steps = [name for name, request in self.requests.items() if request.needs]
        self.states: dict[str, Status] = {}
        self.queued: dict[str, None] = {}
        """The queued runs, in the order in which they were queued."""
        self.under_way: dict[str, None] = {}
        self.changed: list[str] = []
        """Runs whose state has changed since the scheduler was asked."""
        self.next_rescan = 0.0
        """When all queued runs are looked at again, by the monotonic clock."""
        self.silent: dict[str, tuple[float, str]] = {}
        """Runs whose files cannot be read at the moment: since when, by the monotonic clock, and why."""
        self.unwritten: dict[str, str] = {}
        """Runs whose next event could not be written, and why: it is tried again."""

    def close(self) -> None:
        """Close the records."""
        self.records.close()

    def dir(self, name: str) -> Path:
        """The run's directory."""
        return self.submission / name

    def status(self, name: str) -> Status:
        """The run's status by its journal. Calls `on_event` if it has changed. While the file system does not answer,
        the run stays as it was."""
        try:
            status = self.records.status(name)
            if status.state in ("starting", "running") and not self.engine.poll(self.dir(name)):
                status = self.records.status(name)
        except OSError as error:
            if error.errno in PASSING and not self._is_given_up(name, error):
                return self.states.get(name, Status())
            status = unknown(self.dir(name), error)
        except RunError as error:
            status = unknown(self.dir(name), error)
        self.silent.pop(name, None)
        self.set(name, status)
        return status

    def _is_given_up(self, name: str, error: OSError) -> bool:
        """Whether this run alone cannot be read for long: then the others do not wait for it."""
        now = time.monotonic()
        began, _ = self.silent.get(name, (now, ""))
        self.silent[name] = began, f"{error.filename or self.dir(name)}: {error.strerror}; trying again"
        if now - began < SILENCE:
            return False
        with suppress(RunError):
            return bool(read_submission(self.submission))
        return False

    def set(self, name: str, status: Status) -> None:
        """Remember the run's status. Calls `on_event` if it has changed."""
        before, self.states[name] = self.states.get(name), status
        if before is not None and (before.state, before.attempt) == (status.state, status.attempt):
            return
        self.changed.append(name)
        self.unwritten.pop(name, None)
        for state, names in ((("queued",), self.queued), (("starting", "running"), self.under_way)):
            if status.state in state:
                names[name] = None
            else:
                names.pop(name, None)
        self.on_event(name, status)

    def look(self) -> list[str]:
        """Look at the runs in progress; at queued runs only from time to time, since only `launcher stop` and `launcher
        exec` change them; never at runs that have ended. Returns the unusable runs that nobody has looked at."""
        for name in list(self.under_way):
            self.status(name)
        now = time.monotonic()
        if now < self.next_rescan:
            return []
        began = time.thread_time()
        new = [name for name in self.requests if name not in self.states] if self.are_new() else []
        for name in [*new, *self.queued]:
            self.status(name)
        self.next_rescan = now + max(RESCAN, PAUSE * (time.thread_time() - began))
        return [name for name in self.unusable if name not in self.states]

    def are_new(self) -> bool:
        """Whether some runs have not been looked at."""
        return len(self.states) < len(self.requests) + len(self.unusable)

    def is_in_progress(self, name: str) -> bool:
        """Whether a run that is not supervised here is in progress."""
        return self.records.look(name).state in ("starting", "running")


def _with_needs(names: Iterable[str], requests: Mapping[str, RunRequest]) -> set[str]:
    """The names, and those of all runs that they need."""
    wanted: set[str] = set()
    waiting_names = list(names)
    while waiting_names:
        name = waiting_names.pop()
        if name not in wanted:
            wanted.add(name)
            waiting_names += requests[name].needs if name in requests else ()
    return wanted
