"""`launcher exec RUN_DIR` as a task of Slurm: executes the run's next attempt on this node, and finds out why Slurm
ended it."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.base.errors import RunError
from launcher.base.text import tail
from launcher.engines import orphans
from launcher.engines.outcome import Overseer, lack_of_memory
from launcher.engines.process import run_trainer
from launcher.engines.slurm import board, calls, container, repeat, task_lease
from launcher.engines.slurm.jobs import EXIT_EARLY, NAME, queue_again, time_limit
from launcher.engines.slurm.squeue import Detail, Key
from launcher.engines.slurm.task_lease import TaskLease
from launcher.host import gpu_locks
from launcher.job import steps
from launcher.record import retry, trainer_files
from launcher.record.find import read_submission
from launcher.record.folders import clear_stop, refuse_foreign, stop_requested
from launcher.record.journal import append_event, read_events, read_status
from launcher.record.request import RunRequest, read_request, write_request
from launcher.record.states import ENDED, GOOD, State
from launcher.record.trainer_files import RESUME
from trainer.base.errors import EXIT_STOPPED

GRACE = 25.0
"""Seconds between SIGTERM and SIGKILL. Slurm's own SIGKILL comes after 30 s (KillWait). By then this process must have
recorded how the run ended."""
SOON = 150.0
"""Within this many seconds of a time limit, an unexplained SIGTERM counts as the time limit: Slurm warns 60 to 120 s
before it."""
PATIENCE = 40.0
"""Seconds to wait for the run's lock, which another attempt on this host may hold until it ends."""
NOTICE = r"\*\*\* JOB {} ON \S+ (CANCELLED AT \S+(?: DUE TO [A-Z ]+)?|UNCORRECTABLE MEMORY ERROR|FAILED)\b.* \*\*\*"
"""slurmstepd's notice in a job's output when Slurm signals or ends the job. It writes the first one only."""


def here() -> Key:
    """The job, or the task of an array, of this process. Raises RunError."""
    array, task, job = (os.environ.get(f"SLURM_{name}", "") for name in ("ARRAY_JOB_ID", "ARRAY_TASK_ID", "JOB_ID"))
    if not job.isdigit():
        raise RunError("--slurm works only in a job of Slurm: SLURM_JOB_ID is not set")
    return Key(int(array), int(task)) if array.isdigit() and task.isdigit() else Key(int(job))


class SlurmOverseer(Overseer):
    """Finds out why Slurm ended the run, and whether Slurm has started it elsewhere."""

    def __init__(self, run_dir: Path, lease: TaskLease, mark: Mapping[str, Any], output: Path) -> None:
        super().__init__(mark, GRACE)
        self.run_dir, self.lease, self.output = run_dir, lease, output
        self.begin = output.stat().st_size if output.exists() else 0
        """Output before this byte is from earlier attempts, which may have had the same job."""
        self.requeued = False
        self.preempted = False
        self.signals = 0

    def lost(self, look: bool = False) -> bool:
        """See `Overseer.lost`."""
        return self.lease.lost(look)

    def asked(self, signals: int) -> int:
        """See `Overseer.asked`. Slurm may warn before it ends a job, so two signals mean the same as one."""
        self.signals = signals
        with suppress(OSError):  # the volume does not answer now
            return 1 if signals or stop_requested(self.run_dir) else 0
        return 0

    def judge(self, state: State, reason: str) -> tuple[State, str]:
        """See `Overseer.judge`."""
        if state not in ("cancelled", "lost", "out_of_host_memory") or stop_requested(self.run_dir):
            return state, reason
        if state == "out_of_host_memory":
            return state, lack_of_memory(read_request(self.run_dir))
        if not self.signals:  # Slurm signals all processes of a job, and the trainer may get the signal first
            time.sleep(0.5)
        kept = "last.ckpt is kept" if trainer_files.has(self.run_dir, RESUME) else "it had no checkpoint yet"
        cause = self._cause()
        if cause is None:
            if state == "lost":
                return state, reason
            return "lost", f"stopped from outside (a signal); {kept}"
        self.requeued, self.preempted = cause.requeued, cause.preempted
        return cause.state, f"{cause.reason}; {kept}"

    def _cause(self) -> Cause | None:
        """Why Slurm has signalled or ended the job; None if it has not."""
        notices = re.findall(NOTICE.format(os.environ.get("SLURM_JOB_ID", "")), tail(self.output, self.begin))
        if not notices and not self.signals:
            return None
        try:
            job = calls.detail(here())
        except RunError:
            job = None
        return cause(read_request(self.run_dir), notices[-1] if notices else "", job)


@dataclass(frozen=True)
class Cause:
    """Why Slurm ended an attempt. `requeued`: Slurm starts the job again. `preempted`: it does not, and the run needs
    another job."""

    state: State
    reason: str
    requeued: bool = False
    preempted: bool = False


def cause(request: RunRequest, notice: str, job: Detail | None) -> Cause | None:
    """The cause, from slurmstepd's notice (empty: none) and from the job as the controller describes it now (None: it
    does not answer). None: Slurm has done nothing.

    Slurm signals a job that is near its time limit, or that will be preempted after a time of grace, with the notice
    that scancel also causes. Such a job is still running for the controller.
    """
    due = notice.partition(" DUE TO ")[2]
    if due == "PREEMPTION" or (job is not None and job.preempted):
        by_slurm = job is None or not job.preempted  # PreemptMode=CANCEL keeps the time of the preemption
        return Cause("lost", "preempted in Slurm", requeued=by_slurm, preempted=not by_slurm)
    if due == "JOB REQUEUE":
        return Cause("lost", "requeued in Slurm", requeued=True)
    if due == "TIME LIMIT":
        return Cause("timed_out", time_limit(request, job or Detail()))
    if due or notice.startswith(("UNCORRECTABLE", "FAILED")):
        fault = "a memory error of its node" if notice.startswith("UNCORRECTABLE") else "its node failed"
        return Cause("lost", fault)
    soon = SOON if job is not None and "RUNNING" in job.states else 1
    if job is not None and job.left is not None and job.left < soon:
        return Cause("timed_out", time_limit(request, job))
    if notice or (job is not None and job.end == "CANCELLED"):  # several nodes that append to a file may lose a notice
        return Cause("cancelled", "cancelled in Slurm (scancel)")
    return None


def run(run_dir: Path, announced: int, number: str) -> int:
    """Execute the run in this job of Slurm, which the sbatch call `number` submitted for attempt `announced`.

    Returns 0 if the run succeeded or is finished. Raises RunError if the job has nothing to execute any more.
    """
    # Until the run starts: the journal still says `queued`.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_STOPPED))
    run_dir = run_dir.resolve()
    refuse_foreign(run_dir.parent)
    key, request = here(), read_request(run_dir)
    written = read_submission(run_dir.parent)
    docker = (written.get("slurm") or {}).get("runtime") == "docker"
    host = os.uname().nodename
    mark: dict[str, Any] = {"engine": NAME, "slurm": str(key), "node": os.environ.get("SLURMD_NODENAME") or host}
    attempt = claim(run_dir, announced, key)
    if attempt is None:
        state = read_status(run_dir).state
        print(f"{run_dir.name}: job {key} has nothing to do: the run is {state}", flush=True)
        return 0 if state in GOOD else 1
    why = board.stop_reason(run_dir.parent)
    if why is not None:  # scancel came too late for this job
        append_event(run_dir, "cancelled", attempt, why, engine=NAME)
        return 1
    devices = given_devices(docker) if request.resources.gpus else []
    early = [need for need in request.needs if read_status(run_dir.parent / need).state not in ENDED]
    if early:
        print(f"{run_dir.name}: must wait for {', '.join(early)}: an earlier job has failed", flush=True)
        return EXIT_EARLY
    try:
        request = _ready(run_dir, request, devices)
    except RunError as error:
        append_event(run_dir, "failed", attempt, str(error), **mark)
        repeat.after_failure(run_dir)
        return 1
    named = retry.latest(read_events(run_dir), "micro_batch")
    more = {"micro_batch": named} if named else {}
    clear_stop(run_dir)
    append_event(run_dir, "starting", attempt, request.remark, devices=devices, host=host, **mark, **more)
    lease = TaskLease(run_dir, attempt)
    overseer = SlurmOverseer(run_dir, lease, mark, run_dir.parent / board.FOLDER / f"{number}.out")
    task_lease.await_former(run_dir, lambda line: print(f"{run_dir.name}: {line}", flush=True))
    with ExitStack() as kept:
        kept.callback(lease.release)
        lease.start_beating()  # before the wait for the lock or the engine, so that a later attempt sees this one
        if docker:
            code = container.run(run_dir, attempt, devices, overseer)
        else:
            mine = kept.enter_context(
                orphans.executed(run_dir, PATIENCE, lambda: False, lambda line: print(line, flush=True))
            )
            if mine is None:
                raise RunError(f"{run_dir.name}: {orphans.holder(run_dir)} on this host holds the run's lock")
            locks = _locks(run_dir) if devices else []
            for each in locks:
                kept.callback(each.close)
            code = run_trainer(run_dir, request, devices, devices, mine, [one.descriptor for one in locks], overseer)
    after = read_status(run_dir)
    if after.attempt != attempt:
        print(
            f"{run_dir.name}: attempt {attempt} was ended: attempt {after.attempt} has taken over the run", flush=True
        )
        return code
    clear_stop(run_dir)
    if overseer.requeued or overseer.preempted:
        queue_again(run_dir, after, key, "", by_slurm=overseer.requeued)
    if overseer.preempted:
        repeat.send_again(run_dir)
    elif after.state not in GOOD and not overseer.requeued:
        repeat.after_failure(run_dir)
    return code


def claim(run_dir: Path, announced: int, key: Key) -> int | None:
    """The attempt for this job to execute. None if another job has it, or if it has ended.

    A job that Slurm started again finds the journal as the earlier attempt left it. That attempt has ended.
    """
    status = read_status(run_dir)
    told = status.figures.get("slurm")
    mine = told == str(key)
    if status.state == "queued" and (status.attempt == announced or mine):
        return status.attempt
    if mine and status.state in ("starting", "running", "lost"):
        why = "its node failed, or the job was requeued: Slurm has started it again"
        queue_again(run_dir, status, key, why)
        status = read_status(run_dir)
        return status.attempt if status.state == "queued" else None
    return None


def given_devices(docker: bool) -> list[str]:
    """The GPUs that Slurm has assigned to this job: CUDA's indices in the job, or, for a container engine, which sees
    all GPUs of the node, their indices on the node."""
    names = ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "CUDA_VISIBLE_DEVICES")
    given = next((os.environ[name] for name in (names if docker else names[::-1]) if os.environ.get(name)), "")
    return [word for word in given.split(",") if word not in ("", "NoDevFiles")]


def _ready(run_dir: Path, request: RunRequest, devices: list[str]) -> RunRequest:
    """The request with the members of a step. Raises RunError if it cannot be executed."""
    if len(devices) < request.resources.gpus:
        raise RunError(f"{request.resources.gpus} GPU requested, {len(devices)} assigned; check gres.conf of this node")
    if request.select is not None:
        request = steps.with_members(request, run_dir.parent)
        write_request(run_dir, request)
    return request


def _locks(run_dir: Path) -> list[gpu_locks.GpuLock]:
    """Locks of the job's GPUs, so that launchers outside Slurm do not use them. If a lock is taken, Slurm's assignment
    still counts."""
    from launcher.host.machine import here as this_host

    given = given_devices(docker=True)
    names = [gpu.lock_name for gpu in this_host().gpus if {str(gpu.index), gpu.uuid} & set(given)]
    return [one for name in names if (one := gpu_locks.acquire_for(name, run_dir, share=False))]
