"""`launcher stop`: end runs in every state, and say which could not be stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from launcher.base.errors import RunError
from launcher.engines import registry
from launcher.record import folders, lease
from launcher.record.find import list_runs
from launcher.record.folders import refuse_foreign
from launcher.record.journal import Status, append_event, is_here
from launcher.record.locks import is_locked, is_run_locked
from launcher.record.records import Records
from launcher.record.states import ENDED, UNKNOWN
from launcher.supervise import stop_request
from trainer.base.errors import os_error
from trainer.base.plural import counted

PARTING = 5.0
"""Seconds to wait for the end of the supervisor of ended runs."""
DYING = 5.0
"""Seconds that `stop` waits for a run after it was killed."""
UNSEEN = 60.0
"""Seconds that `stop --now` waits for a run on another host, which may see the request late: until then it may keep an
old state of the shared folder."""


def stop(
    submission: Path, run_dirs: list[Path], grace: float, say: Callable[[str], None] = lambda line: None
) -> tuple[list[str], dict[str, str]]:
    """Ask these runs of a submission to end, and kill those that have not ended after `grace` seconds. Returns the
    names of those that had not ended before, and why some could not be stopped. Calls `say` before it waits.

    A run that is still queued is cancelled, so that no supervisor starts it. Raises RunError.
    """
    refuse_foreign(submission)
    whole = len(run_dirs) > 1 or run_dirs == list_runs(submission)
    with Records(submission) as records:
        return _stopped(submission, run_dirs, grace, say, whole, records)


def _stopped(
    submission: Path, run_dirs: list[Path], grace: float, say: Callable[[str], None], whole: bool, records: Records
) -> tuple[list[str], dict[str, str]]:
    """See `stop`. `whole`: whether these are all runs of the submission."""
    queued = {run_dir for run_dir in run_dirs if records.look(run_dir.name).state == "queued"}
    stop_request.ask(submission, None if whole else [run_dir.name for run_dir in run_dirs])
    in_queue = registry.queue_of(submission) is not None
    touched = []
    problems: dict[str, str] = {}
    for run_dir in run_dirs:
        if records.look(run_dir.name).state in ("starting", "running") or in_queue:
            registry.settle(run_dir)
        if run_dir in queued or not is_over(run_dir, records.look(run_dir.name)):  # a supervisor cancels queued runs
            touched.append(run_dir)
    for run_dir in touched:  # queued runs first, so that they do not start in the places that become free
        if records.look(run_dir.name).state == "queued":
            try:
                with suppress(RunError):  # it has just started: it is stopped below
                    append_event(run_dir, "cancelled", reason="stopped before it started", durable=False)
            except OSError as error:
                problems[run_dir.name] = os_error(error)
    with suppress(OSError):  # they are written, and a power cut could only undo that
        folders.flush(submission)
    registry.release({submission} if touched else ())
    asked: dict[Path, str] = {}
    killed: set[Path] = set()
    deadline = time.monotonic() + grace
    waiting_for = [run_dir for run_dir in touched if run_dir.name not in problems]
    if living := [path for path in waiting_for if not is_over(path, records.look(path.name))]:
        how = f"saves its checkpoint first, for at most {grace:g} s" if grace else "is killed at once"
        say(f"stopping {counted(len(living), 'run')}: each {how}")
    elsewhere = [path for path in living if _is_elsewhere(records.look(path.name))] if not grace else []
    if elsewhere:
        say(f"{counted(len(elsewhere), 'run')} on another host: lost if it does not answer in {UNSEEN:g} s")
    while waiting_for := [path for path in waiting_for if not is_over(path, records.look(path.name))]:
        if time.monotonic() > deadline + DYING and not set(waiting_for) & set(elsewhere):
            break
        if time.monotonic() > deadline + UNSEEN:
            _give_up(elsewhere, records)
            elsewhere = []
            continue
        for run_dir in waiting_for:
            # A run that is starting may not receive the request yet: ask again once it is running, but not more often,
            # because a second request does not wait for the checkpoint.
            state = records.look(run_dir.name).state
            try:
                if state != "queued" and asked.get(run_dir) != state:
                    asked[run_dir] = state
                    with suppress(RunError):
                        registry.of_run(run_dir).stop(run_dir)
                if time.monotonic() >= deadline and run_dir not in killed:
                    killed.add(run_dir)
                    with suppress(RunError):
                        registry.of_run(run_dir).kill(run_dir)
            except OSError as error:
                problems[run_dir.name] = os_error(error)
        time.sleep(0.1)
        for run_dir in waiting_for:
            registry.settle(run_dir)
    if whole and touched:  # the supervisor sees that all is over: then `launcher resume` is not refused
        deadline = time.monotonic() + PARTING
        while is_locked(submission / lease.LOCK) and time.monotonic() < deadline:
            time.sleep(0.05)
    return [run_dir.name for run_dir in touched if run_dir.name not in problems], problems


def _is_elsewhere(status: Status) -> bool:
    """Whether only another host can see the run's processes. Engines know more of their own runs."""
    return (status.figures.get("engine") or registry.BY_HAND) == registry.BY_HAND and not is_here(status)


def _give_up(run_dirs: list[Path], records: Records) -> None:
    """Record that runs of another host have not answered."""
    for run_dir in run_dirs:
        status = records.look(run_dir.name)
        if status.state in ("starting", "running"):
            reason = f"stop --now: its host, {status.figures.get('host')}, has not answered in {UNSEEN:g} s"
            with suppress(RunError, OSError):  # it has just answered, or stays as it is
                append_event(run_dir, "lost", reason=reason)


def is_over(run_dir: Path, status: Status) -> bool:
    """Whether nothing executes the run any more. If its state is `unknown`, its lock decides."""
    if status.state != UNKNOWN:
        return status.state in ENDED
    with suppress(OSError):
        return not is_run_locked(run_dir)
    return True
