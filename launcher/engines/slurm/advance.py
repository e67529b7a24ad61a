"""Moves a submission forward in Slurm: submits queued runs with sbatch, repeats failed ones, then submits the steps.

No process stays alive for this. `advance` does everything that can be done at the moment. It is called by submit and
resume, and by a small job that Slurm starts after all others (`afterany`). The steps of `after:` wait in Slurm's queue
for that small job, which extends their wait if runs were repeated. A task whose run failed repeats that run alone: see
`repeat`.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from launcher.base.errors import FencedError, RunError
from launcher.engines.base import Collect, Say
from launcher.engines.slurm import board, calls
from launcher.engines.slurm import request as slurm_request
from launcher.engines.slurm.board import Batch, Board
from launcher.engines.slurm.calls import SlurmError
from launcher.engines.slurm.jobs import Jobs
from launcher.engines.slurm.request import begin_words, words
from launcher.job import steps
from launcher.record import lease, retry
from launcher.record.find import list_runs, read_submission
from launcher.record.journal import OUTDATED, Status, append_event, look, read_events
from launcher.record.request import RunRequest, read_request
from launcher.record.states import ENDED, GOOD, UNKNOWN, State

SETTLE_PATIENCE = 300.0
"""Seconds that the small job waits for another process that does the same."""


class _Advance:
    """One pass over everything, under the submission's lease."""

    def __init__(self, jobs: Jobs, directory: Path, mine: lease.Lease, say: Say) -> None:
        self.directory = directory.resolve()
        self.lease = mine
        self.say = say
        written = read_submission(directory)
        self.options: Mapping[str, Any] = written.get("slurm") or {}
        self.python = str(self.options.get("python") or sys.executable)
        self.max_parallel = written.get("max_parallel")
        self.on_failure = written.get("on_failure", "continue")
        self.follows = written.get("follows")
        self.board: Board = jobs.board(self.directory, fresh=True)
        self.requests: dict[str, RunRequest] = {}
        self.states: dict[str, Status] = {}
        for path in list_runs(self.directory):
            try:
                request, status = read_request(path), jobs.settled(path, self.board)
                why = status.reason if status.state == UNKNOWN else ""
            except (RunError, OSError) as error:
                why = str(error)
            if why:  # the others go on without it
                say(f"{path.name}: left out: {why}")
                continue
            self.requests[path.name], self.states[path.name] = request, status
        self.new: list[Batch] = []
        self.begin: dict[str, float] = {}
        """Seconds that a repeated run waits before it may start."""

    # -- changes of the journals

    def _append(self, name: str, state: State, attempt: int | None = None, reason: str = "", **more: Any) -> None:
        try:
            run_dir = self.directory / name
            self.states[name] = append_event(run_dir, state, attempt, reason, fence=self.lease.fence, **more)
        except FencedError:
            raise
        except RunError:
            self.states[name] = look(self.directory / name)

    def repeat(self) -> None:
        """Queue runs again for which the job's policy allows another attempt."""
        for name, status in list(self.states.items()):
            if status.state not in ENDED - GOOD - {"cancelled", UNKNOWN}:
                continue
            try:
                events = read_events(self.directory / name)
            except (RunError, OSError) as error:
                self.say(f"{name}: left out: {error}")
                continue
            again = retry.decide(self.requests[name], events)
            if isinstance(again, retry.NextAttempt):
                more = {"micro_batch": again.micro_batch} if again.micro_batch else {}
                reason, count = f"after {status.state}: {again.why}", retry.retries(events) + 1
                self._append(name, "queued", status.attempt + 1, reason, retry=count, **more)
                self.begin[name] = again.wait
                self.say(f"{name}: queued again {reason}")

    def redo_outdated(self) -> None:
        """Queue steps again that have succeeded without a run that has succeeded now."""
        states = {name: status.state for name, status in self.states.items()}
        for name, why in steps.outdated(self.directory, self.requests, states).items():
            self._append(name, "queued", self.states[name].attempt + 1, f"again: {why}", **{OUTDATED: True})
            self.say(f"{name}: queued again: {why}")

    def cancel_hopeless(self) -> None:
        """Cancel runs that must not start: by `on_failure: stop`, and steps whose required step has failed."""
        bad = ENDED - GOOD
        failed = next((n for n, s in self.states.items() if s.state in bad - {"cancelled"}), None)
        for name in self.queued():
            lost = [need for need in self._needs(name) if self.requests[need].kind != "train"]
            lost = [need for need in lost if self.states[need].state in bad]
            if failed is not None and self.on_failure == "stop":
                reason = f"{failed} is {self.states[failed].state} (on_failure: stop)"
                self._append(name, "cancelled", None, reason, because=failed)
            elif lost:
                reason = f"'{lost[0]}' {self.states[lost[0]].state}: the step has no input"
                self._append(name, "cancelled", None, reason, because=lost[0])

    def _needs(self, name: str) -> list[str]:
        """The runs that a run needs, without those whose records cannot be used."""
        return [need for need in self.requests[name].needs if need in self.requests]

    # -- requests to Slurm

    def queued(self, *kinds: str) -> list[str]:
        """Queued runs (of these kinds)."""
        wanted = (n for n, s in self.states.items() if s.state == "queued")
        return [name for name in wanted if not kinds or self.requests[name].kind in kinds]

    def _words(self, name: str) -> tuple[str, ...]:
        request = self.requests[name]
        longest = calls.longest(self.options.get("partition")) if request.timeout else None
        return words(request, self.options, longest)

    def _unasked(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if not self.board.waits_or_runs(name, self.states[name])]

    def _send(self, kind: board.Kind, asked: list[str], names: list[str], after: list[int] | None = None) -> int:
        self.lease.check()  # with a slow volume other launchers may have taken this one for dead
        number = board.reserve(self.directory)
        script = slurm_request.settle_script(self.directory, self.python)
        if kind == "runs":
            script = slurm_request.run_script(self.directory, number, self.python)
        tasks = [(name, self.states[name].attempt) for name in names]
        batch = board.send(self.directory, Batch(number, kind, asked, tasks, after or []), script)
        assert batch.job is not None
        self.new.append(batch)
        if names:
            what = names[0] if len(names) == 1 else f"{len(names)} runs ({names[0]} … {names[-1]})"
            self.say(f"job {batch.job}: {what}")
        return batch.job

    def send_runs(self) -> None:
        """Submit a job array for each distinct request of the waiting training runs, higher priorities first."""
        shapes: dict[tuple[tuple[str, ...], float], list[str]] = {}
        waiting = self._unasked(self.queued("train"))
        for name in sorted(waiting, key=lambda name: -self.requests[name].priority):
            shapes.setdefault((self._words(name), self.begin.get(name, 0)), []).append(name)
        left = sum(self.requests[n].kind == "train" and s.state not in ENDED for n, s in self.states.items())
        limit = self.max_parallel if self.max_parallel and self.max_parallel < left else None
        before = self._living("train")
        first = self._followed() if shapes else []
        for (asked, wait), names in shapes.items():
            for part in slurm_request.cut(names, calls.max_array()):
                # Several arrays of a job with max_parallel run one after another, so that the limit holds for all
                # together.
                after = first + (before[-1:] if limit else [])
                job = self._send(
                    "runs",
                    [
                        slurm_request.array_word(len(part), limit),
                        *asked,
                        *begin_words(wait),
                        *([f"--dependency={_after('afterany', after)}"] if after else []),
                    ],
                    part,
                )
                before.append(job)

    def _followed(self) -> list[int]:
        """Jobs of the submission that this one follows. Raises RunError if that one has not ended and is not in
        Slurm."""
        if not self.follows:
            return []
        other = self.directory.parent / str(self.follows)
        if read_submission(other).get("engine") == Jobs.name:
            return [batch.job for batch in board.load(other).living() if batch.job is not None]
        open_ = [path.name for path in list_runs(other) if look(path).state not in ENDED]
        if open_:
            raise RunError(f"follows: {other.name} does not run in Slurm; Slurm can only wait for its own jobs")
        return []

    def _living(self, *kinds: str) -> list[int]:
        """Jobs that execute runs of these kinds and have not ended."""
        batches = [*self.board.living("runs"), *(batch for batch in self.new if batch.kind == "runs")]
        mine = [batch for batch in batches if any(self.requests[name].kind in kinds for name, _ in batch.runs)]
        return [batch.job for batch in mine if batch.job is not None]

    def settle_after(self, jobs: list[int], kind: board.Kind) -> int | None:
        """Submit the small job that runs after these jobs. If one waits already, make it wait for all of them."""
        if not jobs:
            return None
        for batch in self.board.living(kind):
            if batch.job is None or not self.board.snapshot.pending(batch.job):
                continue
            if set(jobs) <= set(batch.after):
                return batch.job
            if calls.set_dependency(batch.job, _after("afterany", jobs)):
                board.write_batch(self.directory, dataclasses.replace(batch, after=jobs))
                return batch.job
        asked = slurm_request.settling_words(self.options, calls.longest(self.options.get("partition")))
        return self._send(kind, [*asked, f"--dependency={_after('afterany', jobs)}"], [], jobs)

    def send_steps(self, settling: int | None) -> None:
        """Submit the waiting steps, each after the steps that it needs."""
        jobs: dict[str, int] = {}
        for name in self.queued("ensemble", "predict", "analyze"):
            needs = self._needs(name)
            trains = any(self.requests[n].kind == "train" and self.states[n].state not in ENDED for n in needs)
            after = [("afterany", settling)] if trains and settling is not None else []
            for need in needs:
                job = jobs.get(need) or self._job_of(need)
                if self.requests[need].kind != "train" and job is not None:
                    after.append(("afterok", job))
            if not after and not any(self.requests[need].kind == "train" for need in needs):
                after = [("afterany", job) for job in self._followed()]
            text = ",".join(f"{how}:{job}" for how, job in after)
            key = self.board.key(name, self.states[name])
            if key is not None and self.board.waits_or_runs(name, self.states[name]):
                jobs[name] = key.job
                if text and self.board.snapshot.pending(key.job):
                    calls.set_dependency(key.job, text)
                continue
            asked = [*self._words(name), "--kill-on-invalid-dep=yes"]
            more = begin_words(self.begin.get(name, 0))
            jobs[name] = self._send("runs", [*asked, *more, *([f"--dependency={text}"] if text else [])], [name])

    def _job_of(self, name: str) -> int | None:
        """The job of a step that has not ended."""
        status = self.states[name]
        key = self.board.key(name, status)
        return key.job if key and status.state not in ENDED and self.board.waits_or_runs(name, status) else None


def _after(how: str, jobs: Iterable[int]) -> str:
    return f"{how}:" + ":".join(map(str, sorted(set(jobs))))


def advance(
    jobs: Jobs,
    directory: Path,
    say: Say = lambda line: None,
    prepare: Callable[[lease.Lease], None] | None = None,
    take_over: bool = False,
) -> bool:
    """Continue the submission as far as possible now. Returns whether every run has ended. Calls `prepare` first.
    `take_over`: see `lease.hold`.

    Raises RunError if another process holds the lease, and SlurmError.
    """
    with lease.hold(directory, say, take_over) as mine:
        if prepare is not None:
            board.forget_stop_reason(directory)
            prepare(mine)
        look = _Advance(jobs, directory, mine, say)
        look.repeat()
        look.redo_outdated()
        look.cancel_hopeless()
        look.send_runs()
        settling = look.settle_after(look._living("train"), "after_runs")
        look.send_steps(settling)
        look.settle_after(look._living("ensemble", "predict", "analyze"), "after_steps")
        over = all(status.state in ENDED for status in look.states.values())
    jobs.release(directory)
    return over


def settle(jobs: Jobs, directory: Path, say: Say, collect: Collect) -> bool:
    """The work of the small job: continue, and collect once all runs have ended. Returns whether they have ended."""
    deadline = time.monotonic() + SETTLE_PATIENCE
    while True:
        try:
            over = advance(jobs, directory, say)
            break
        except SlurmError:
            if time.monotonic() > deadline:
                raise
        except RunError as error:
            if time.monotonic() > deadline:
                raise
            say(str(error))
        time.sleep(2)
    if over:
        with suppress(RunError):
            say(collect(directory))
    return over
