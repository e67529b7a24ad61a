"""What a task of Slurm does when its run has failed: it repeats this run, or stops the runs that wait.

Nothing is read or written of other runs, and no lease is needed, so thousands of tasks may fail at the same time. The
small job after all others does the rest: steps wait for it, and it waits for the jobs that were added here.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.base.errors import RunError
from launcher.engines.slurm import board, calls
from launcher.engines.slurm import request as slurm_request
from launcher.engines.slurm.board import Batch
from launcher.record import retry
from launcher.record.find import read_submission
from launcher.record.journal import append_event, read_events, read_status
from launcher.record.request import RunRequest, read_request
from launcher.record.states import ENDED, GOOD


def after_failure(run_dir: Path) -> None:
    """Another attempt of the run, as the job's policy says. If there is none and the job has `on_failure: stop`, takes
    the runs that wait out of Slurm's queue."""
    request, written = read_request(run_dir), read_submission(run_dir.parent)
    try:
        events = read_events(run_dir)
        again = retry.decide(request, events)
        if isinstance(again, retry.NextAttempt):
            if not _is_throttled(request, written):
                more: dict[str, Any] = {"micro_batch": again.micro_batch} if again.micro_batch else {}
                reason, count = f"after {events[-1]['state']}: {again.why}", retry.retries(events) + 1
                append_event(run_dir, "queued", int(events[-1]["attempt"]) + 1, reason, retry=count, **more)
                _send(run_dir, request, written, again.wait)
        elif events and written.get("on_failure") == "stop" and events[-1]["state"] in ENDED - GOOD - {"cancelled"}:
            stop_waiting(run_dir.parent, f"{run_dir.name} is {events[-1]['state']} (on_failure: stop)")
    except RunError as error:  # the small job does it
        print(f"{run_dir.name}: {error}", flush=True)


def send_again(run_dir: Path) -> None:
    """A job for a run that is queued again, because Slurm does not start its former job again."""
    request, written = read_request(run_dir), read_submission(run_dir.parent)
    try:
        if not _is_throttled(request, written):
            _send(run_dir, request, written, 0)
    except RunError as error:  # the small job does it
        print(f"{run_dir.name}: {error}", flush=True)


def _is_throttled(request: RunRequest, written: Mapping[str, Any]) -> bool:
    """Whether `max_parallel` limits the run. A job beside its array would exceed the limit, so the small job adds it
    after the array."""
    limit = written.get("max_parallel")
    return limit is not None and request.kind == "train" and int(limit) < len(written.get("runs", ()))


def _send(run_dir: Path, request: RunRequest, written: Mapping[str, Any], wait: float) -> None:
    directory, options = run_dir.parent, written.get("slurm") or {}
    number = board.reserve(directory)
    script = slurm_request.run_script(directory, number, str(options.get("python") or sys.executable))
    longest = calls.longest(options.get("partition")) if request.timeout else None
    words = [*slurm_request.words(request, options, longest), *slurm_request.begin_words(wait)]
    if request.kind == "train":
        words.insert(0, slurm_request.array_word(1, None))
    attempt = read_status(run_dir).attempt
    batch = board.send(directory, Batch(number, "runs", words, [(run_dir.name, attempt)]), script)
    print(f"{run_dir.name}: attempt {attempt} is job {batch.job}", flush=True)


def stop_waiting(directory: Path, why: str) -> None:
    """Take the runs that wait out of Slurm's queue. Their journals get this reason when somebody next looks at them.
    Raises SlurmError."""
    if board.stop_reason(directory) is not None:
        return
    board.write_stop_reason(directory, why)
    snapshot = board.load(directory).snapshot
    calls.cancel([job.words for job in snapshot.jobs if job.waits and job.array])
