"""Run a submission to its end: ask the scheduler, start runs, watch them.

All state is in the run directories. If a supervisor is killed, its runs continue, and the next supervisor adopts them.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from launcher.base.errors import EXIT_INTERRUPTED, FencedError, RunError
from launcher.base.sizes import listed
from launcher.engines import outcome, registry
from launcher.engines.base import SupervisedEngine
from launcher.host import processes
from launcher.host.machine import Machine
from launcher.job import steps
from launcher.record import folders, lease, retry, waiting
from launcher.record.find import read_submission
from launcher.record.folders import PASSING
from launcher.record.journal import OUTDATED, Status, append_event, look, read_events, read_status, unknown
from launcher.record.records import Records
from launcher.record.request import RunRequest, write_request
from launcher.record.states import ENDED, GOOD, UNKNOWN, State
from launcher.supervise import scheduler, stop_request
from launcher.supervise.followed import Followed
from launcher.supervise.placing import Placed, Placing
from launcher.supervise.scheduler import Demand
from launcher.supervise.together import demand_of
from trainer.base.errors import EXIT_FAILED, EXIT_OK, os_error
from trainer.base.plural import counted

POLL = 0.25
"""Seconds between two checks of the runs."""
RESCAN = 2.0
"""Seconds between two checks of the queued runs, at least."""
PAUSE = 300
"""Pause after a repeated look at all runs, as a multiple of its CPU time: so it takes a third of a percent of a core,
however many runs there are."""
FEW = 100
"""So many queued runs are cancelled in no time."""
RETRY_START, RETRY_LATEST = 0.5, 5.0
"""Seconds after which the scheduler is asked again although no run has changed, at least and at most."""
SILENCE = 60.0
"""A run whose files alone cannot be read for this many seconds is given up."""
RENEW = 5.0
"""Seconds between two writes of a reason in which only figures have changed."""
Event = Callable[[str, Status], None]


@dataclass(frozen=True)
class Rules:
    """A job's rules for all its runs together."""

    max_parallel: int | None = None
    on_failure: str = "continue"
    follows: str | None = None
    """The name of the submission that must end first."""
    only: frozenset[str] | None = None
    """The runs to supervise, with the runs that they need; None: all. The others stay as they are."""


class Supervision:
    """The supervision of a submission by this process. Use `run`."""

    def __init__(
        self, held: lease.Lease, submission: Path, machine: Machine, engine: SupervisedEngine, rules: Rules,
        on_event: Event | None,
    ) -> None:  # fmt: skip
        self.lease = held
        self.rules = rules
        self.submission = submission
        self.machine = machine
        self.engine = engine
        self.on_event = on_event or (lambda name, status: None)
        self.placing = Placing(submission, machine, engine, rules.max_parallel)
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
        if rules.only is not None:
            wanted = _with_needs(rules.only, self.requests)
            others = [name for name in self.requests if name not in wanted]
            self.beside = {name: demand_of(self.requests[name]) for name in others if self._is_in_progress(name)}
            self.requests = {name: request for name, request in self.requests.items() if name in wanted}
            self.unusable = {name: status for name, status in self.unusable.items() if name in wanted}
        self.steps = [name for name, request in self.requests.items() if request.needs]
        self.demands = {name: demand_of(request) for name, request in self.requests.items()}
        self.states: dict[str, Status] = {}
        self.queued: dict[str, None] = {}
        """The queued runs, in the order in which they were queued."""
        self.under_way: dict[str, None] = {}
        self.changed: list[str] = []
        """Runs whose state has changed since the scheduler was asked."""
        self.next_rescan = self.next_start = 0.0
        """When all queued runs are looked at again, and when the scheduler is asked again, by the monotonic clock."""
        self.silent: dict[str, tuple[float, str]] = {}
        """Runs whose files cannot be read at the moment: since when, by the monotonic clock, and why."""
        self.unwritten: dict[str, str] = {}
        """Runs whose next event could not be written, and why: it is tried again."""
        self.is_interrupted = False
        """Whether an error has ended the last start of runs."""
        self.note: str | None = None
        self.waits: str | None = None
        """Why queued runs wait, as it was reported."""
        self.written: tuple[str | None, float] = ("", 0.0)
        """The reason in the file for other commands, and when it was written by the monotonic clock."""
        self.judged: set[tuple[str, int]] = set()
        """Attempts for which the retry decision has been made."""
        self.not_before: dict[str, float] = {}
        """When a repeated run may start, by the monotonic clock."""
        self.followed = Followed(submission.parent / rules.follows, PAUSE) if rules.follows else None
        self.asked = self.handled = 0
        """Requests to stop, and those of them that the runs have received."""
        self.stop_at = 0.0
        """When this process stops the runs itself, by the monotonic clock."""
        self.detached = False

    def dir(self, name: str) -> Path:
        return self.submission / name

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM stop the runs, a second signal stops them immediately; SIGHUP leaves them running. In the
        end signals mean what they meant before."""

        def stop(number: int, frame: FrameType | None) -> None:
            self.asked += 1

        def detach(number: int, frame: FrameType | None) -> None:
            self.detached = True

        handlers = {signal.SIGINT: stop, signal.SIGTERM: stop, signal.SIGHUP: detach}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

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
        self._set(name, status)
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

    def _set(self, name: str, status: Status) -> None:
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

    def _look(self) -> None:
        """Look at the runs in progress; at queued runs only from time to time, since only `launcher stop` and `launcher
        exec` change them; never at runs that have ended."""
        for name in list(self.under_way):
            self.status(name)
        now = time.monotonic()
        if now >= self.next_rescan:
            began = time.thread_time()
            new = [name for name in self.requests if name not in self.states] if self._are_new() else []
            for name in [*new, *self.queued]:
                self.status(name)
            for name, status in self.unusable.items():
                if name not in self.states:
                    self._set(name, self._refuse(name, status))
            self.next_rescan = now + max(RESCAN, PAUSE * (time.thread_time() - began))

    def _are_new(self) -> bool:
        """Whether some runs have not been looked at."""
        return len(self.states) < len(self.requests) + len(self.unusable)

    def _refuse(self, name: str, status: Status) -> Status:
        """Record that a queued run cannot be started, because its request cannot be used. Returns its status."""
        if look(self.dir(name)).state == "queued":
            return self._append(name, "failed", reason=status.reason)
        return status

    def drive(self) -> int:
        """Supervise until every run has ended. Returns the exit code."""
        while True:
            try:
                code = self._pass()
            except OSError as error:
                if error.errno not in PASSING:
                    raise
                self._report(f"{error.filename or self.submission}: {error.strerror}; trying again", None)
                code = None
            if code is not None:
                return code
            self.engine.wait(POLL)

    def _pass(self) -> int | None:
        """Look at the runs, and stop, repeat or start some. Returns the exit code at the end. Raises OSError."""
        self.lease.check()
        if not self.asked and stop_request.everything(self.submission):
            self.asked = 1
            # `launcher stop` cancels the queued runs itself: the same work twice would take longer.
            self.stop_at = self.next_rescan = time.monotonic() + (RESCAN if len(self.queued) > FEW else 0)
        self._look()
        if self.detached:
            return EXIT_INTERRUPTED
        if not self.asked:
            self._repeat()
            self._redo_outdated()
            self._stop_after_failure()
        if self.asked > self.handled and (self.asked > 1 or time.monotonic() >= self.stop_at):
            handled = self.asked
            self._stop(at_once=self.asked > 1)
            self.handled, self.next_rescan = handled, 0.0
            return None
        if not self.under_way and (self.asked or not (self.queued or self.unwritten or self._are_new())):
            waiting.write(self.submission, None)
            bad = {s.state for s in self.states.values()} - GOOD
            if not bad and self.states:
                return EXIT_OK
            return EXIT_INTERRUPTED if self.asked or bad == {"cancelled"} else EXIT_FAILED
        note, waits = self._advance() if not self.asked else (self.engine.trouble, None)
        troubles = (*(why for _, why in self.silent.values()), *self.unwritten.values())
        self._report(next(iter(troubles), note), waits)
        return None

    def _append(self, name: str, state: State, attempt: int | None = None, **more: Any) -> Status:
        """Append the next event of a run under this supervisor's lease. If another process was faster, its event
        stays."""
        try:
            return append_event(self.dir(name), state, attempt, fence=self.lease.fence, **more)
        except FencedError:
            raise
        except RunError:
            self.lease.check()
            return read_status(self.dir(name))
        except OSError as error:
            if error.errno in PASSING:
                raise
            return unknown(self.dir(name), error)

    def _repeat(self) -> None:
        """Queue runs again for which the job's policy allows another attempt."""
        for name in dict.fromkeys((*self.changed, *self.unwritten)):
            status = self.states[name]
            if status.state not in ENDED - GOOD - {UNKNOWN} or (name, status.attempt) in self.judged:
                continue
            if name in self.unusable:
                continue
            try:
                self._judge(name, status)
            except OSError as error:
                self._try_again(name, error)
                continue
            self.judged.add((name, status.attempt))
            self.unwritten.pop(name, None)

    def _judge(self, name: str, status: Status) -> None:
        """Queue a run that has ended again, if its policy allows it. Raises OSError."""
        try:
            events = read_events(self.dir(name))
        except RunError:  # the next look shows the run as `unknown`
            return
        again = retry.decide(self.requests[name], events)
        if isinstance(again, retry.NextAttempt):
            more = {"micro_batch": again.micro_batch} if again.micro_batch else {}
            appended = self._append(
                name, "queued", status.attempt + 1, reason=f"after {status.state}: {again.why}",
                retry=retry.retries(events) + 1, **more,
            )  # fmt: skip
            self.not_before[name] = time.monotonic() + again.wait
            self._set(name, appended)
        elif again is not None:
            self.on_event(name, dataclasses.replace(status, reason=again, time=time.time()))

    def _try_again(self, name: str, error: OSError) -> None:
        """Remember that the run's next event could not be written: the other runs do not wait for it. Raises an error
        that does not pass."""
        if error.errno not in PASSING:
            raise error
        self.unwritten[name] = f"{error.filename or self.dir(name)}: {error.strerror}; trying again"

    def _redo_outdated(self) -> None:
        """Queue steps again that have succeeded without a run that has succeeded now."""
        changed = {name for name in self.changed if self.states[name].state in GOOD}
        if not any(changed.intersection(self.requests[name].absent) for name in self.steps):
            return
        states = {name: status.state for name, status in self.states.items()}
        for name, why in steps.outdated(self.submission, self.requests, states).items():
            status = self.states[name]
            more = {OUTDATED: True}
            self._set(name, self._append(name, "queued", status.attempt + 1, reason=f"again: {why}", **more))

    def _stop_after_failure(self) -> None:
        """`on_failure: stop`: cancel runs that have not started, once a run has failed for good."""
        if self.rules.on_failure != "stop" or not self.queued:
            return
        failed = next((name for name, s in self.states.items() if s.state in ENDED - GOOD - {"cancelled"}), None)
        if failed is None:
            return
        for name in list(self.queued):
            reason = f"{failed} is {self.states[failed].state} (on_failure: stop)"
            self._set(name, self._append(name, "cancelled", reason=reason, because=failed))

    def _advance(self) -> tuple[str | None, str | None]:
        """Start what can start. Returns a note on the whole submission, and why queued runs wait for others; None:
        there is nothing to say."""
        if self.followed is not None and (why := self.followed.why_waits()):
            return None, f"waiting: {why}"
        self._cancel_hopeless()
        full = waiting.full_disk(self.submission)
        if full is None and self.engine.ready():
            self._start_when_due()
        else:
            self.placing.release_turn()
        if full is not None:
            return full, None
        blocked = self.placing.blocked
        if blocked is None and self.queued and not (self.under_way or self.not_before) and self.beside:
            are = "are" if len(self.beside) > 1 else "is"
            return self.engine.trouble, f"waiting: {listed([*self.beside])} of this submission {are} in progress"
        return self.engine.trouble, f"waiting: {blocked[1]}" if blocked is not None else None

    def _report(self, note: str | None, waits: str | None) -> None:
        """Print the reasons if they are news, and write them for the commands that look at the submission."""
        if not waiting.same(self.note, note):
            self.on_event(self.submission.name, Status("queued", reason=note or "continuing"))
        if waits is not None and not waiting.same(self.waits, waits):
            first = self.placing.blocked[0] if self.placing.blocked else next(iter(self.requests), self.submission.name)
            self.on_event(first, Status("queued", reason=waits))
        self.note, self.waits = note, waits
        text, (before, moment) = note or waits, self.written
        if text != before and (not waiting.same(before, text) or time.monotonic() - moment > RENEW):
            waiting.write(self.submission, text)
            self.written = text, time.monotonic()

    def _stop(self, at_once: bool) -> None:
        if self.under_way:
            runs = counted(len(self.under_way), "run")
            how = f"each saves its checkpoint first, for at most {outcome.GRACE:g} s; Ctrl-C again kills them at once"
            said = f"killing {runs}" if at_once else f"stopping {runs}: {how}"
            self.on_event(self.submission.name, Status("queued", reason=said))
        self.placing.release_turn()
        uncancelled: dict[str, OSError] = {}
        for name in list(self.queued):
            try:
                self._append(name, "cancelled", reason="stopped before it started", durable=False)
            except OSError as error:  # stop the others anyway
                uncancelled[name] = error
        for name, refused in [*uncancelled.items()][:1]:
            more = f"; so are {len(uncancelled) - 1} more" if len(uncancelled) > 1 else ""
            reason = f"stays queued, since it cannot be cancelled now: {os_error(refused)}{more}"
            self.on_event(name, dataclasses.replace(self.states[name], reason=reason, time=time.time()))
        with suppress(OSError):  # they are written, and a power cut could only undo that
            folders.flush(self.submission)
        for name in self.under_way:
            try:
                (self.engine.kill if at_once else self.engine.stop)(self.dir(name))
            except (RunError, OSError) as error:  # stop the others anyway
                said = f"cannot be stopped now: {error}"
                self.on_event(name, dataclasses.replace(self.states[name], reason=said, time=time.time()))

    def _cancel_hopeless(self) -> None:
        """Cancel a step when a step that it needs has not succeeded. A training run may fail: the step uses the
        others."""
        for name in self.steps:
            failed = [need for need in self.requests[name].needs if self._failed_step(need)]
            if name in self.queued and failed:
                reason = f"'{failed[0]}' {self.states[failed[0]].state}: the step has no input"
                self._set(name, self._append(name, "cancelled", reason=reason, because=failed[0]))

    def _failed_step(self, need: str) -> bool:
        return need in self.requests and self.requests[need].kind != "train" and self._is_bad(need)

    def _is_bad(self, name: str) -> bool:
        return name in self.states and self.states[name].state in ENDED - GOOD

    def _start_when_due(self) -> None:
        """Ask the scheduler if a run has changed or a pause has ended. If others hold up a run, ask from time to time:
        they may have left devices, cores or memory."""
        now = time.monotonic()
        ended = [name for name, moment in self.not_before.items() if moment <= now]
        later = self.placing.held_up or self.is_interrupted or self.beside
        if not (self.changed or ended or (later and now >= self.next_start)):
            return
        for name in ended:
            del self.not_before[name]
        self.changed.clear()
        began = time.thread_time()
        self.is_interrupted = True
        self.next_start = now + RETRY_START
        self._start()
        self.is_interrupted = False
        busy = time.thread_time() - began
        self.next_start = now + min(RETRY_LATEST, max(RETRY_START, PAUSE * busy))

    def _start(self) -> None:
        queue = [self.demands[name] for name in self.requests if name in self.queued and name not in self.not_before]
        for demand in queue:
            if why := scheduler.why_never(demand, self.placing.capacity):
                self._set(demand.name, self._append(demand.name, "failed", reason=why))
        running = {
            name: scheduler.Running(self.demands[name], tuple(self.states[name].figures.get("devices") or ()))
            for name in self.under_way
        }
        running |= self._running_beside()
        over = {name for name, status in self.states.items() if status.state in ENDED}
        placed = self.placing.choose(queue, running, over)
        try:
            for each in placed:
                self._start_one(each, self.states[each.name].attempt)
                self.status(each.name)
        finally:
            for each in placed:
                each.close()

    def _running_beside(self) -> dict[str, scheduler.Running]:
        """The runs in progress that are not supervised here."""
        running = {}
        for name, demand in list(self.beside.items()):
            registry.settle(self.dir(name), driving=True)
            if self._is_in_progress(name):
                devices = self.records.look(name).figures.get("devices") or ()
                running[name] = scheduler.Running(demand, tuple(devices))
            else:
                del self.beside[name]
        return running

    def _is_in_progress(self, name: str) -> bool:
        return self.records.look(name).state in ("starting", "running")

    def _start_one(self, placed: Placed, attempt: int) -> None:
        run_dir = self.dir(placed.name)
        try:
            self._resolve(run_dir)
            named = retry.latest(read_events(run_dir), "micro_batch")
            more = {"micro_batch": named} if named else {}
            append_event(
                run_dir, "starting", reason=self.requests[placed.name].remark, fence=self.lease.fence,
                devices=list(placed.devices), host=os.uname().nodename, boot=processes.boot(),
                **self.engine.mark(), **more,
            )  # fmt: skip
            self.engine.start(run_dir, attempt, placed.devices, placed.held)
        except (OSError, RunError) as error:
            state = read_status(run_dir).state
            if state == "queued" and isinstance(error, OSError) and error.errno in PASSING:
                self._try_again(placed.name, error)
                self.not_before[placed.name] = time.monotonic() + RETRY_START
            elif state in ("queued", "starting"):
                self._append(placed.name, "failed", reason=str(error))

    def _resolve(self, run_dir: Path) -> None:
        """Fill in the members of a step, whose runs have ended."""
        request = self.requests[run_dir.name]
        if request.select is not None:
            request = steps.with_members(request, self.submission)
            write_request(run_dir, request)
            self.requests[run_dir.name] = request


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


def run(
    submission: Path,
    machine: Machine,
    engine: SupervisedEngine,
    rules: Rules | None = None,
    on_event: Event | None = None,
    prepare: Callable[[lease.Lease], None] | None = None,
    take_over: bool = False,
) -> int:
    """Run the submission until every run has ended. Returns 0 if all succeeded, 1 if some did not, 130 if stopped.

    Calls `prepare` first, when it holds the lease. `take_over`: see `lease.hold`.

    Raises RunError if another supervisor is running the submission, or has taken it over.
    """

    def say(line: str) -> None:
        if on_event is not None:
            on_event(submission.name, Status("queued", reason=line))

    with lease.hold(submission, say, take_over) as mine:
        if prepare is not None:
            prepare(mine)
        supervision = Supervision(mine, submission, machine, engine, rules or Rules(), on_event)
        try:
            with supervision.listening():
                return supervision.drive()
        finally:
            with suppress(KeyboardInterrupt):  # nobody has to wait for what `engine.close` removes
                engine.close()
