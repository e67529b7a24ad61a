"""Runs as jobs of Slurm. The submission's folder has the requests to Slurm, the runs' journals have their states. This
module records ends that only Slurm knows: out of memory, time limit, node failure, or cancelled by somebody.
"""

from __future__ import annotations

import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from launcher.base.errors import RunError
from launcher.base.sizes import show_duration
from launcher.base.text import printable, tail
from launcher.engines import secret_files
from launcher.engines.base import QueueEngine
from launcher.engines.outcome import lack_of_memory
from launcher.engines.slurm import board as slurm_board
from launcher.engines.slurm import calls, task_lease
from launcher.engines.slurm.board import Board
from launcher.engines.slurm.calls import SlurmError
from launcher.engines.slurm.squeue import Detail, Key, SlurmJob
from launcher.record import retry, trainer_files
from launcher.record.find import list_runs
from launcher.record.folders import clear_stop, request_stop, stop_requested
from launcher.record.journal import Status, append_event, look, read_events, read_status
from launcher.record.request import RunRequest, read_request
from launcher.record.states import ENDED, UNKNOWN, State
from launcher.record.trainer_files import RESUME
from trainer.base.brief import in_brief

FRESH = 2.0
"""A read-only command reuses Slurm's answer for this many seconds."""
EXIT_EARLY = 79
"""Exit code of a job that started before the runs that it needs had ended: its run stays in the queue."""
NAME = "slurm"
NODE = ("NODE_FAIL", "BOOT_FAIL", "LAUNCH_FAILED", "RECONFIG_FAIL")

NEVER = {
    r"PartitionTimeLimit|MaxWall": "a shorter timeout: or another partition",
    r"PerJob": "smaller resources: or another qos",
    r"InvalidAccount|AccountNotAllowed": "another account",
    r"InvalidQOS|QOSNotAllowed": "another qos",
    r"PartitionNodeLimit|PartitionConfig|BadConstraints": "other resources:, constraint or partition",
}
"""Reasons of Slurm for which a job waits for ever, and what to change."""


class Jobs(QueueEngine):
    """The jobs of runs, and their ends."""

    name = NAME
    where = "as a job of Slurm"
    title = "Slurm"
    trouble: str | None = None

    def __init__(self) -> None:
        self._boards: dict[Path, tuple[float, Board]] = {}
        self._silent = (0.0, "")
        """After no answer: until when a read-only command does not ask Slurm again, and the error. The pause is as
        long as the wait was, so that a check of many runs does not wait for each."""

    def board(self, submission: Path, fresh: bool = False) -> Board:
        """The submission's jobs; one answer of Slurm serves many checks. Raises SlurmError."""
        looked_at, board = self._boards.get(submission, (0.0, None))
        if board is None or fresh or time.monotonic() - looked_at > FRESH:
            began, (until, why) = time.monotonic(), self._silent
            if not fresh and began < until:
                raise SlurmError(why)
            try:
                board = slurm_board.load(submission.resolve())
            except SlurmError as error:
                now = time.monotonic()
                self._silent = (now + max(FRESH, now - began), str(error))
                raise
            self._boards[submission] = (time.monotonic(), board)
        return board

    def drives(self, submission: Path) -> bool:
        """See `QueueEngine.drives`. True if Slurm does not answer."""
        try:
            return bool(self.board(submission).living())
        except RunError as error:
            self.trouble = str(error)
            return True

    def settle(self, run_dir: Path) -> bool:
        """See `Engine.settle`."""
        return self.settled(run_dir).state not in ENDED

    def settled(self, run_dir: Path, board: Board | None = None) -> Status:
        """`settle`, and the run's status after it. `board`: Slurm's answer, if it was asked before."""
        try:
            board = board or self.board(run_dir.parent)
        except RunError as error:
            self.trouble = str(error)
            return read_status(run_dir)
        self.trouble = None
        status = read_status(run_dir)  # read after Slurm's answer: a run that ended before has recorded it
        key = board.key(run_dir.name, status) if status.state not in ENDED else None
        if key is None:
            return status
        job = board.snapshot.find(key)
        if job is not None and not job.over:
            if status.state == "queued" or not job.waits:
                return status
            queue_again(run_dir, status, key, "its node failed or its job was requeued")
            return read_status(run_dir)
        with suppress(RunError):  # another host was faster
            if status.state == "queued":
                _settle_queued(run_dir, key, job, board)
            else:
                self._settle_running(run_dir, status, key, board)
        return read_status(run_dir)

    def why_waits(self, run_dir: Path) -> str | None:
        """See `QueueEngine.why_waits`. For a held job, also the command that releases it."""
        with suppress(RunError):
            board, status = self.board(run_dir.parent), read_status(run_dir)
            key = board.key(run_dir.name, status) if status.state == "queued" else None
            job = board.snapshot.find(key) if key else None
            if job is not None and job.waits and job.reason:
                why = waiting(job.reason, str(key))
                return f"{status.reason}; {why}" if status.reason else why
        return None

    def _settle_running(self, run_dir: Path, status: Status, key: Key, board: Board) -> None:
        if board.snapshot.find(key) is None and task_lease.is_fresh(run_dir):
            return  # Slurm may show users only their own jobs
        asked = stop_requested(run_dir)
        detail = None if asked else board.detail(key)
        if detail is not None and not detail.end:
            return  # it has been started again since the last look
        state, reason = ending(read_request(run_dir), key, detail, asked)
        if status.state == "starting" and state not in ("failed", "cancelled", "lost"):
            append_event(run_dir, "running", **_mark(status))
        append_event(run_dir, state, reason=reason, **_mark(status))
        secret_files.take_back(run_dir, status.attempt)
        clear_stop(run_dir)

    def stop(self, run_dir: Path) -> None:
        """See `Engine.stop`. `launcher exec` on the node sees the file, with or without Slurm's commands here."""
        request_stop(run_dir)

    def kill(self, run_dir: Path) -> None:
        """See `Engine.kill`."""
        self.stop(run_dir)
        key = self.board(run_dir.parent).key(run_dir.name, read_status(run_dir))
        if key is not None:
            calls.cancel([str(key)])

    def release(self, submission: Path) -> None:
        """See `QueueEngine.release`; `launcher exec` would refuse them."""
        with suppress(RunError):  # Slurm is not here
            board = self.board(submission, fresh=True)
            calls.cancel(_unneeded(board, submission))
            self._boards.clear()


def waiting(reason: str, key: str) -> str:
    """Why a job waits, from Slurm's reason; with what to do if it never starts by itself."""
    if "held" in reason.lower():
        return f"held in Slurm ({reason}): scontrol release {key}"
    what = next((field for pattern, field in NEVER.items() if re.search(pattern, reason)), None)
    if what is None:
        return f"Slurm: {reason}"
    return f"Slurm: {reason}: it will not start as it is; launcher stop, then submit with {what}"


def _unneeded(board: Board, submission: Path) -> list[str]:
    """Jobs of runs that have ended. Reads the journals after Slurm's answer: a run queued again meanwhile keeps its
    job."""
    unneeded = []
    for run_dir in list_runs(submission):
        status = look(run_dir)
        key = board.key(run_dir.name, status) if status.state in ENDED - {UNKNOWN} else None
        job = board.snapshot.find(key) if key else None
        if key is not None and job is not None and job.waits:
            unneeded.append(str(key))
    return unneeded


def _mark(status: Status) -> dict[str, Any]:
    """Figures of an attempt that its later events repeat."""
    return {key: status.figures[key] for key in ("engine", "slurm", "host", "node", "devices") if key in status.figures}


def queue_again(run_dir: Path, status: Status, key: Key, why: str, by_slurm: bool = True) -> None:
    """Record that Slurm starts the run's job again under the same number, or (not `by_slurm`) that the run needs
    another job. That is another attempt, but `retry.attempts` does not count it."""
    done = retry.retries(read_events(run_dir))
    kept = "from last.ckpt" if trainer_files.has(run_dir, RESUME) else "from the beginning"
    with suppress(RunError):  # another host was faster
        if status.state != "lost":
            append_event(run_dir, "lost", reason=why, **_mark(status))
        again = f"Slurm starts it again, {kept}" if by_slurm else f"again, {kept}"
        mark: dict[str, Any] = {"engine": NAME, **({"slurm": str(key)} if by_slurm else {})}
        append_event(run_dir, "queued", status.attempt + 1, again, retry=done, **mark)


def _settle_queued(run_dir: Path, key: Key, job: SlurmJob | None, board: Board) -> None:
    """Handle a job that ended before its run started. After preemption or a node failure the run stays in the queue,
    and the next `advance` submits another job."""
    stopped = slurm_board.stop_reason(run_dir.parent)
    if (job is None and (stopped or board.snapshot.vanished(key))) or (job is not None and job.end == "CANCELLED"):
        if job is not None and job.reason == "DependencyNeverSatisfied":
            return  # the next `advance` knows whether the needed runs succeed after all
        reason = stopped or "cancelled in Slurm while it waited (scancel)"
        append_event(run_dir, "cancelled", reason=reason, engine=NAME)
        return
    if job is None or job.end in ("PREEMPTED", *NODE):
        return
    detail = board.detail(key)
    if detail is None or not detail.end or detail.exit_code == EXIT_EARLY:
        return
    output = last_words(run_dir.parent)
    reason = f"its job ended in Slurm before the run started: {describe(detail)}" + (f": {output}" if output else "")
    append_event(run_dir, "failed", reason=reason, engine=NAME)


def last_words(submission: Path) -> str:
    """The last line of output of the submission's jobs outside the runs' logs."""
    outputs = sorted((submission / slurm_board.FOLDER).glob("*.out"), key=lambda path: path.lstat().st_mtime)
    lines = [line for path in outputs[-1:] for line in printable(tail(path)).splitlines() if line.strip()]
    return in_brief(lines[-1], 300) if lines else ""


def describe(job: Detail) -> str:
    """A short text on a job's end."""
    code = f", signal {job.signal}" if job.signal else f", exit code {job.exit_code}" if job.exit_code else ""
    return f"{job.end or 'no state'}{code}" + (f" on {job.nodes}" if job.nodes else "")


def time_limit(request: RunRequest, job: Detail) -> str:
    """The reason for a run that Slurm ended at a time limit: of its own `timeout:`, or else of the partition, QOS or
    account."""
    if job.limit is None:
        return "Slurm's time limit was reached"
    if request.timeout is not None and job.limit >= request.timeout:
        what = "timeout: in the job file"
    else:
        what = f"of partition {job.partition or '?'} or its QOS"
    return f"Slurm's time limit of {show_duration(job.limit)} was reached ({what})"


def ending(request: RunRequest, key: Key, job: Detail | None, asked: bool) -> tuple[State, str]:
    """State and reason of a run that was in progress when its job ended, if its end was not recorded."""
    if asked:
        return "cancelled", "stopped on request"
    if job is None:
        return "lost", f"Slurm does not know job {key} any more, and its end was not recorded"
    where = f" on {job.nodes}" if job.nodes else ""
    if job.end == "OUT_OF_MEMORY":
        return "out_of_host_memory", lack_of_memory(request)
    if job.end == "TIMEOUT":
        return "timed_out", f"{time_limit(request, job)}{where}"
    if job.end == "DEADLINE":
        return "timed_out", f"the deadline of its job was reached{where}"
    if job.end in NODE:
        return "lost", f"its node failed{where}"
    if job.end in ("PREEMPTED", "REVOKED"):
        return "lost", f"preempted{where}" if job.end == "PREEMPTED" else f"another cluster has its job{where}"
    if job.end == "CANCELLED":
        return "cancelled", f"cancelled in Slurm (scancel){where}"
    return "lost", f"it ended without a message: {describe(job)}"
