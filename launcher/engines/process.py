"""A run as a process of this host: starts the trainer, waits for its end, and records the end."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from launcher.engines import orphans, secret_files
from launcher.engines.outcome import EXIT_TAKEN, Overseer, StopSignals, forget_result, heading, last_error, verdict
from launcher.host import processes, usage
from launcher.memory.predict import device_limit
from launcher.record import retry, trainer_files
from launcher.record.find import cache_dir
from launcher.record.journal import Status, append_event, is_here, read_events, read_status
from launcher.record.locks import is_run_locked
from launcher.record.request import RunRequest
from launcher.record.trainer_files import RESUME
from trainer.base.cgroup import oom_kills

FDS = "LAUNCHER_GPU_FDS"
"""Environment variable: descriptors of the GPU locks that the process inherits and passes on."""
DEVICES = "LAUNCHER_DEVICES"
"""Environment variable: the devices that a supervisor has chosen, each with its name for CUDA: `0=GPU-…,1=GPU-…`."""
START = "LAUNCHER_START"
"""Environment variable: the time of the `starting` event that a process belongs to. An attempt that was stopped before
its trainer was started is announced again under its number, and what is left of the first start must not execute it."""
ENTRY = (sys.executable, "-m", "trainer")


def run_trainer(
    run_dir: Path,
    request: RunRequest,
    devices: Sequence[str],
    visible: Sequence[str],
    lock: int,
    descriptors: Sequence[int],
    overseer: Overseer,
    signals: StopSignals | None = None,
) -> int:
    """Execute the attempt that the journal announces as `starting`, and record how it ended.

    Returns 0 if it succeeded, else its exit code (or 1). `visible` are the names of the devices for CUDA. The trainer
    inherits the run's `lock` and the GPUs' (`descriptors`): if this process is killed, the run is in progress until its
    last process ends. On the other hand, all that the trainer has started is ended with it.
    """
    signals = signals or StopSignals()
    executor = orphans.new_executor()
    orphans.sign(lock, executor)
    before = processes.descendants([processes.this()])
    processes.adopt_orphans()
    inherited = [int(word) for word in os.environ.get(FDS, "").split(",") if word]
    status = read_status(run_dir)
    secrets = secret_files.hand_over(request.secrets, run_dir, status.attempt)
    kills = oom_kills()
    words = retry.command(request, read_events(run_dir))
    command = [*ENTRY, *resolve(words, run_dir.parent.parent)]
    resumes = any(word.startswith("resume=") for word in words)
    if request.kind == "train" and (trainer_files.has(run_dir, RESUME) or not resumes):
        command.append(
            "resume=auto"
        )  # a retry continues from last.ckpt; the job's own resume= is for the first attempt
    forget_result(request, run_dir)
    try:
        with trainer_files.append_log(run_dir) as log:
            log.write(heading(request, status.attempt).encode(errors="replace"))
            begin = log.seek(0, os.SEEK_END)
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=request.cwd or None,
                    env={**environment(run_dir, request, visible, secrets), orphans.VARIABLE: executor.token},
                    process_group=0,
                    pass_fds=(*inherited, lock, *descriptors),
                    preexec_fn=processes.die_with_parent,
                )
            except OSError as error:
                append_event(run_dir, "failed", status.attempt, f"could not be started: {error}", **overseer.mark)
                return 1
            trainer = processes.find(process.pid)
            orphans.sign(lock, replace(executor, trainer=trainer))
            append_event(
                run_dir,
                "running",
                status.attempt,
                **overseer.mark,
                pid=process.pid,
                pid_started=trainer.started if trainer else None,
                exec_pid=os.getpid(),
                devices=list(devices),
                host=os.uname().nodename,
            )
            began = time.monotonic()  # a clock that is set back changes nothing
            timed_out, at_once = _wait(process, signals, request.timeout, overseer)
            stopped = overseer.asked(signals.times) > 0
            detail = last_error(run_dir, begin)
            ended, still = orphans.end_descendants(
                before, process.pid, lambda: at_once or overseer.asked(signals.times) > 1 or overseer.lost()
            )
            for what, names in (("ended with the trainer", ended), ("these do not end", still)):
                if names:
                    log.write(f"--- {what}: {', '.join(names)}\n".encode(errors="replace"))
        if overseer.lost(look=True):
            return EXIT_TAKEN
        killed_for_memory = process.returncode == -signal.SIGKILL and oom_kills() > kills
        want = "the kernel killed it for lack of memory: lower training.num_workers or run fewer at once"
        state, reason = overseer.judge(
            *verdict(process.returncode, stopped, timed_out, request, want if killed_for_memory else "", run_dir)
        )
        detail = detail if state in ("failed", "out_of_device_memory") else ""
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        append_event(
            run_dir,
            state,
            status.attempt,
            ": ".join(part for part in (reason, detail) if part),
            exit_code=process.returncode,
            seconds=round(time.monotonic() - began, 1),
            peak_host_memory_bytes=peak,
            **overseer.mark,
        )
        return 0 if state == "succeeded" else process.returncode if process.returncode > 0 else 1
    finally:
        secret_files.take_back(run_dir, status.attempt)


def _wait(
    process: subprocess.Popen[bytes], signals: StopSignals, timeout: float | None, overseer: Overseer
) -> tuple[bool, bool]:
    """Wait for the end, and pass requests to stop on. Returns whether the time limit was reached, and whether the
    trainer was killed."""
    started = time.monotonic()
    deadline: float | None = None
    timed_out = killed = False
    while True:
        try:
            process.wait(timeout=0.1)
            return timed_out, killed
        except subprocess.TimeoutExpired:
            processes.reap_adopted(process.pid)
        now, times = time.monotonic(), overseer.asked(signals.times)
        if deadline is None and timeout is not None and now - started > timeout:
            timed_out = True
        if deadline is None and (times or timed_out):
            deadline = now + overseer.grace
            process.terminate()
            process.send_signal(signal.SIGCONT)  # a trainer that was stopped by Ctrl-Z ends, too
        if (deadline is not None and (now > deadline or times > 1)) or overseer.lost():
            killed = True
            with suppress(ProcessLookupError):  # it has just ended
                os.killpg(process.pid, signal.SIGKILL)


def resolve(command: Sequence[str], runs_root: Path) -> list[str]:
    """The command with `@runs` replaced by the runs folder."""
    return [word.replace("@runs/", f"{runs_root}/") for word in command]


def environment(run_dir: Path, request: RunRequest, visible: Sequence[str], secrets: Path | None) -> dict[str, str]:
    """This process's variables plus the contract's, without the values of the secrets. `visible`: the names of the
    devices for CUDA."""
    drop = {FDS, DEVICES, START, orphans.VARIABLE, *request.secrets}
    settings = {key: value for key, value in os.environ.items() if key not in drop}
    settings["RUN_DIR"] = str(run_dir)
    settings["CACHE_DIR"] = str(cache_dir(run_dir.parent.parent))
    settings["CUDA_VISIBLE_DEVICES"] = ",".join(device for device in visible if device != "mps")
    settings["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # indices, where a GPU has no UUID, are NVML's
    settings["PYTHONUNBUFFERED"] = "1"
    settings["NO_ALBUMENTATIONS_UPDATE"] = "1"
    if request.data_dir:
        settings["DATA_DIR"] = request.data_dir
    if limit := device_limit(request):
        settings["DEVICE_MEMORY_LIMIT"] = str(limit)
    if request.resources.cpus:
        settings["OMP_NUM_THREADS"] = str(max(1, int(request.resources.cpus)))
    if secrets is not None:
        settings["SECRETS_DIR"] = str(secrets)
    return settings


def host_memory(run_dir: Path, status: Status) -> int | None:
    """Current memory in bytes of the run's process and all its descendants; None if it is not on this host."""
    pid = status.figures.get("exec_pid")
    # Without the lock the process id may belong to another process by now.
    if not pid or not is_here(status) or not is_run_locked(run_dir):
        return None
    return usage.resident_with_descendants(int(pid))
