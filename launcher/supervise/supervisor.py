"""Run a submission to its end: ask the scheduler, start runs, repeat and stop them.

All state is in the run directories. If a supervisor is killed, its runs continue, and the next supervisor adopts them.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
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
from launcher.record.folders import PASSING
from launcher.record.journal import OUTDATED, Status, append_event, look, read_events, read_status, unknown
from launcher.record.request import write_request
from launcher.record.states import ENDED, GOOD, UNKNOWN, State
from launcher.supervise import scheduler, stop_request
from launcher.supervise.followed import Followed
from launcher.supervise.placing import Placed, Placing
from launcher.supervise.runs import PAUSE, RESCAN, Event, Runs
from launcher.supervise.together import demand_of
from trainer.base.errors import EXIT_FAILED, EXIT_OK, os_error
from trainer.base.plural import counted

POLL = 0.25
"""Seconds between two checks of the runs."""
FEW = 100
"""So many queued runs are cancelled in no time."""
RETRY_START, RETRY_LATEST = 0.5, 5.0
"""Seconds after which the scheduler is asked again although no run has changed, at least and at most."""
RENEW = 5.0
"""Seconds between two writes of a reason in which only figures have changed."""


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
        self.engine = engine
        self.on_event = on_event or (lambda name, status: None)
        self.placing = Placing(submission, machine, engine, rules.max_parallel)
        self.runs = Runs(submission, engine, rules.only, self.on_event)
        self.demands = {name: demand_of(request) for name, request in self.runs.requests.items()}
        self.next_start = 0.0
        """When the scheduler is asked again, by the monotonic clock."""
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

    def close(self) -> None:
        """Close the records of this submission and of the one that it follows."""
        self.runs.close()
        if self.followed is not None:
            self.followed.close()

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

    def _refuse(self, name: str, status: Status) -> Status:
        """Record that a queued run cannot be started, because its request cannot be used. Returns its status."""
        if look(self.runs.dir(name)).state == "queued":
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
            self.stop_at = self.runs.next_rescan = time.monotonic() + (RESCAN if len(self.runs.queued) > FEW else 0)
        for name in self.runs.look():
            self.runs.set(name, self._refuse(name, self.runs.unusable[name]))
        if self.detached:
            return EXIT_INTERRUPTED
        if not self.asked:
            self._repeat()
            self._redo_outdated()
            self._stop_after_failure()
        if self.asked > self.handled and (self.asked > 1 or time.monotonic() >= self.stop_at):
            handled = self.asked
            self._stop(at_once=self.asked > 1)
            self.handled, self.runs.next_rescan = handled, 0.0
            return None
        left = self.runs.queued or self.runs.unwritten or self.runs.are_new()
        if not self.runs.under_way and (self.asked or not left):
            waiting.write(self.submission, None)
            bad = {s.state for s in self.runs.states.values()} - GOOD
            if not bad and self.runs.states:
                return EXIT_OK
            return EXIT_INTERRUPTED if self.asked or bad == {"cancelled"} else EXIT_FAILED
        note, waits = self._advance() if not self.asked else (self.engine.trouble, None)
        troubles = (*(why for _, why in self.runs.silent.values()), *self.runs.unwritten.values())
        self._report(next(iter(troubles), note), waits)
        return None

    def _append(self, name: str, state: State, attempt: int | None = None, **more: Any) -> Status:
        """Append the next event of a run under this supervisor's lease. If another process was faster, its event
        stays."""
        try:
            return append_event(self.runs.dir(name), state, attempt, fence=self.lease.fence, **more)
        except FencedError:
            raise
        except RunError:
            self.lease.check()
            return read_status(self.runs.dir(name))
        except OSError as error:
            if error.errno in PASSING:
                raise
            return unknown(self.runs.dir(name), error)

    def _repeat(self) -> None:
        """Queue runs again for which the job's policy allows another attempt."""
        for name in dict.fromkeys((*self.runs.changed, *self.runs.unwritten)):
            status = self.runs.states[name]
            if status.state not in ENDED - GOOD - {UNKNOWN} or (name, status.attempt) in self.judged:
                continue
            if name in self.runs.unusable:
                continue
            try:
                self._judge(name, status)
            except OSError as error:
                self._try_again(name, error)
                continue
            self.judged.add((name, status.attempt))
            self.runs.unwritten.pop(name, None)

    def _judge(self, name: str, status: Status) -> None:
        """Queue a run that has ended again, if its policy allows it. Raises OSError."""
        try:
            events = read_events(self.runs.dir(name))
        except RunError:  # the next look shows the run as `unknown`
            return
        again = retry.decide(self.runs.requests[name], events)
        if isinstance(again, retry.NextAttempt):
            more = {"micro_batch": again.micro_batch} if again.micro_batch else {}
            appended = self._append(
                name, "queued", status.attempt + 1, reason=f"after {status.state}: {again.why}",
                retry=retry.retries(events) + 1, **more,
            )  # fmt: skip
            self.not_before[name] = time.monotonic() + again.wait
            self.runs.set(name, appended)
        elif again is not None:
            self.on_event(name, dataclasses.replace(status, reason=again, time=time.time()))

    def _try_again(self, name: str, error: OSError) -> None:
        """Remember that the run's next event could not be written: the other runs do not wait for it. Raises an error
        that does not pass."""
        if error.errno not in PASSING:
            raise error
        self.runs.unwritten[name] = f"{error.filename or self.runs.dir(name)}: {error.strerror}; trying again"

    def _redo_outdated(self) -> None:
        """Queue steps again that have succeeded without a run that has succeeded now."""
        changed = {name for name in self.runs.changed if self.runs.states[name].state in GOOD}
        if not any(changed.intersection(self.runs.requests[name].absent) for name in self.runs.steps):
            return
        states = {name: status.state for name, status in self.runs.states.items()}
        for name, why in steps.outdated(self.submission, self.runs.requests, states).items():
            status = self.runs.states[name]
            more = {OUTDATED: True}
            self.runs.set(name, self._append(name, "queued", status.attempt + 1, reason=f"again: {why}", **more))

    def _stop_after_failure(self) -> None:
        """`on_failure: stop`: cancel runs that have not started, once a run has failed for good."""
        if self.rules.on_failure != "stop" or not self.runs.queued:
            return
        failed = next((name for name, s in self.runs.states.items() if s.state in ENDED - GOOD - {"cancelled"}), None)
        if failed is None:
            return
        for name in list(self.runs.queued):
            reason = f"{failed} is {self.runs.states[failed].state} (on_failure: stop)"
            self.runs.set(name, self._append(name, "cancelled", reason=reason, because=failed))

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
        if blocked is None and self.runs.queued and not (self.runs.under_way or self.not_before) and self.runs.beside:
            are = "are" if len(self.runs.beside) > 1 else "is"
            return self.engine.trouble, f"waiting: {listed([*self.runs.beside])} of this submission {are} in progress"
        return self.engine.trouble, f"waiting: {blocked[1]}" if blocked is not None else None

    def _report(self, note: str | None, waits: str | None) -> None:
        """Print the reasons if they are news, and write them for the commands that look at the submission."""
        if not waiting.same(self.note, note):
            self.on_event(self.submission.name, Status("queued", reason=note or "continuing"))
        if waits is not None and not waiting.same(self.waits, waits):
            names = [self.placing.blocked[0]] if self.placing.blocked else self.runs.requests
            first = next(iter(names), self.submission.name)
            self.on_event(first, Status("queued", reason=waits))
        self.note, self.waits = note, waits
        text, (before, moment) = note or waits, self.written
        if text != before and (not waiting.same(before, text) or time.monotonic() - moment > RENEW):
            waiting.write(self.submission, text)
            self.written = text, time.monotonic()

    def _stop(self, at_once: bool) -> None:
        if self.runs.under_way:
            runs = counted(len(self.runs.under_way), "run")
            how = f"each saves its checkpoint first, for at most {outcome.GRACE:g} s; Ctrl-C again kills them at once"
            said = f"killing {runs}" if at_once else f"stopping {runs}: {how}"
            self.on_event(self.submission.name, Status("queued", reason=said))
        self.placing.release_turn()
        uncancelled: dict[str, OSError] = {}
        for name in list(self.runs.queued):
            try:
                self._append(name, "cancelled", reason="stopped before it started", durable=False)
            except OSError as error:  # stop the others anyway
                uncancelled[name] = error
        for name, refused in [*uncancelled.items()][:1]:
            more = f"; so are {len(uncancelled) - 1} more" if len(uncancelled) > 1 else ""
            reason = f"stays queued, since it cannot be cancelled now: {os_error(refused)}{more}"
            self.on_event(name, dataclasses.replace(self.runs.states[name], reason=reason, time=time.time()))
        with suppress(OSError):  # they are written, and a power cut could only undo that
            folders.flush(self.submission)
        for name in self.runs.under_way:
            try:
                (self.engine.kill if at_once else self.engine.stop)(self.runs.dir(name))
            except (RunError, OSError) as error:  # stop the others anyway
                said = f"cannot be stopped now: {error}"
                self.on_event(name, dataclasses.replace(self.runs.states[name], reason=said, time=time.time()))

    def _cancel_hopeless(self) -> None:
        """Cancel a step when a step that it needs has not succeeded. A training run may fail: the step uses the
        others."""
        for name in self.runs.steps:
            failed = [need for need in self.runs.requests[name].needs if self._failed_step(need)]
            if name in self.runs.queued and failed:
                reason = f"'{failed[0]}' {self.runs.states[failed[0]].state}: the step has no input"
                self.runs.set(name, self._append(name, "cancelled", reason=reason, because=failed[0]))

    def _failed_step(self, need: str) -> bool:
        return need in self.runs.requests and self.runs.requests[need].kind != "train" and self._is_bad(need)

    def _is_bad(self, name: str) -> bool:
        return name in self.runs.states and self.runs.states[name].state in ENDED - GOOD

    def _start_when_due(self) -> None:
        """Ask the scheduler if a run has changed or a pause has ended. If others hold up a run, ask from time to time:
        they may have left devices, cores or memory."""
        now = time.monotonic()
        ended = [name for name, moment in self.not_before.items() if moment <= now]
        later = self.placing.held_up or self.is_interrupted or self.runs.beside
        if not (self.runs.changed or ended or (later and now >= self.next_start)):
            return
        for name in ended:
            del self.not_before[name]
        self.runs.changed.clear()
        began = time.thread_time()
        self.is_interrupted = True
        self.next_start = now + RETRY_START
        self._start()
        self.is_interrupted = False
        busy = time.thread_time() - began
        self.next_start = now + min(RETRY_LATEST, max(RETRY_START, PAUSE * busy))

    def _start(self) -> None:
        startable = (name for name in self.runs.requests if name in self.runs.queued)
        queue = [self.demands[name] for name in startable if name not in self.not_before]
        for demand in queue:
            if why := scheduler.why_never(demand, self.placing.capacity):
                self.runs.set(demand.name, self._append(demand.name, "failed", reason=why))
        running = {
            name: scheduler.Running(self.demands[name], tuple(self.runs.states[name].figures.get("devices") or ()))
            for name in self.runs.under_way
        }
        running |= self._running_beside()
        over = {name for name, status in self.runs.states.items() if status.state in ENDED}
        placed = self.placing.choose(queue, running, over)
        try:
            for each in placed:
                self._start_one(each, self.runs.states[each.name].attempt)
                self.runs.status(each.name)
        finally:
            for each in placed:
                each.close()

    def _running_beside(self) -> dict[str, scheduler.Running]:
        """The runs in progress that are not supervised here."""
        running = {}
        for name, demand in list(self.runs.beside.items()):
            registry.settle(self.runs.dir(name), driving=True)
            if self.runs.is_in_progress(name):
                devices = self.runs.records.look(name).figures.get("devices") or ()
                running[name] = scheduler.Running(demand, tuple(devices))
            else:
                del self.runs.beside[name]
        return running

    def _start_one(self, placed: Placed, attempt: int) -> None:
        run_dir = self.runs.dir(placed.name)
        try:
            self._resolve(run_dir)
            named = retry.latest(read_events(run_dir), "micro_batch")
            more = {"micro_batch": named} if named else {}
            append_event(
                run_dir, "starting", reason=self.runs.requests[placed.name].remark, fence=self.lease.fence,
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
        request = self.runs.requests[run_dir.name]
        if request.select is not None:
            request = steps.with_members(request, self.submission)
            write_request(run_dir, request)
            self.runs.requests[run_dir.name] = request


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
        try:
            with (
                closing(Supervision(mine, submission, machine, engine, rules or Rules(), on_event)) as supervision,
                supervision.listening(),
            ):
                return supervision.drive()
        finally:
            with suppress(KeyboardInterrupt):  # nobody has to wait for what `engine.close` removes
                engine.close()
