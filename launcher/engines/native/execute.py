"""`launcher exec RUN_DIR`: execute one run natively to its end, and record how it ended.

The process that does so holds `exec.lock` in the run directory for its whole life, in a session of its own: it outlives
the supervisor that started it, and anyone can see whether it lives.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from launcher.base.errors import RunError
from launcher.host import gpu_locks
from launcher.host.machine import here
from launcher.memory.predict import device_limit
from launcher.record import retry, secret_files
from launcher.record.journal import append_event, read_events, read_status
from launcher.record.locks import locked
from launcher.record.request import RunRequest, read_request
from launcher.record.states import ENDED, State
from trainer.base.cgroup import oom_kills

GRACE = 30.0
"""Seconds between SIGTERM and SIGKILL: for the step under way and last.ckpt."""
FDS = "LAUNCHER_GPU_FDS"
DEVICES = "LAUNCHER_DEVICES"
ENTRY = (sys.executable, "-m", "trainer")
EXIT_TAKEN = 1
"""Exit code of an attempt that another one has taken the run from."""


class Asked:
    """Whether this process was asked to stop, and how often."""

    def __init__(self) -> None:
        self.times = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._count)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal that closes ends no run

    def _count(self, number: int, frame: FrameType | None) -> None:
        self.times += 1


class Overseer:
    """What beside the trainer's own end decides on an attempt. This one: nothing; `slurm_task` has another."""

    mark: Mapping[str, Any] = {"engine": "native"}
    """What events of the attempt carry."""
    grace: float = GRACE

    def lost(self, look: bool = False) -> bool:
        """Asked ten times a second: whether the run is another's by now, so that the trainer must end at once. `look`:
        not as it was a moment ago, but now."""
        return False

    def asked(self, signals: int) -> int:
        """How often somebody wanted the run to end, where this process was sent so many signals: twice means now."""
        return signals

    def judge(self, state: State, reason: str) -> tuple[State, str]:
        """The end of the attempt, where more is known of it."""
        return state, reason


def execute(run_dir: Path, attempt: int | None = None, grace: float = GRACE) -> int:
    """Execute the run; returns 0 when it succeeded, else its exit code (or 1).

    `attempt` is the one a supervisor has announced as `starting`; None starts a new one by hand. Raises RunError where
    the run is under way, has succeeded, or was taken back meanwhile.
    """
    run_dir = run_dir.resolve()
    request = read_request(run_dir)
    with locked(run_dir / "exec.lock") as mine:
        if not mine:
            raise RunError(f"{run_dir.name}: is being executed already; see it: launcher logs {run_dir} -f")
        status = read_status(run_dir)
        held: list[gpu_locks.GpuLock] = []
        if attempt is None:
            devices, held = _by_hand(run_dir, request)
        elif (status.state, status.attempt) != ("starting", attempt):
            raise RunError(f"{run_dir.name}: attempt {attempt} was taken back: the run is {status.state}")
        else:
            devices = [word for word in os.environ.get(DEVICES, "").split(",") if word]
        try:
            # The trainer holds the lock, too: where this process is killed, the run is under way until that one ends.
            overseer = Overseer()
            overseer.grace = grace
            return run_trainer(run_dir, request, devices, [mine, *(one.descriptor for one in held)], overseer)
        finally:
            for one in held:
                one.close()


def _by_hand(run_dir: Path, request: RunRequest) -> tuple[list[str], list[gpu_locks.GpuLock]]:
    """Announce a new attempt and lock the devices it needs, where no supervisor has done so."""
    status = read_status(run_dir)
    if status.state in ("starting", "running"):
        engine = status.figures.get("engine", "native")
        if engine != "native":
            how = "as a job of Slurm" if engine == "slurm" else "in a container"
            raise RunError(f"{run_dir.name}: is under way {how}; see it: launcher logs {run_dir} -f")
        append_event(run_dir, "lost", reason="its process vanished without a word")
    if read_status(run_dir).state in ENDED:
        append_event(run_dir, "queued", status.attempt + 1, "executed by hand")
    machine = here()
    got: list[tuple[str, gpu_locks.GpuLock]] = []
    for device in machine.devices if request.resources.gpus else ():
        one = gpu_locks.acquire(machine.lock_name(device), str(run_dir)) if len(got) < request.resources.gpus else None
        got += [(device, one)] if one else []
    if len(got) < request.resources.gpus:
        for _, one in got:
            one.close()
        raise RunError(
            f"{run_dir.name}: needs {request.resources.gpus} GPU; here are {len(machine.devices)}, {len(got)} free"
        )
    append_event(run_dir, "starting", reason="by hand", engine="native")
    return [device for device, _ in got], [one for _, one in got]


def run_trainer(
    run_dir: Path, request: RunRequest, devices: Sequence[str], descriptors: Sequence[int], overseer: Overseer
) -> int:
    """Execute the attempt that the journal announces as `starting`, and record how it ended; see `execute`."""
    asked = Asked()
    inherited = [int(word) for word in os.environ.get(FDS, "").split(",") if word]
    status = read_status(run_dir)
    secrets = secret_files.hand_over(request.secrets, run_dir, status.attempt)
    kills = oom_kills()
    words = retry.command(request, read_events(run_dir))
    command = [*ENTRY, *resolve(words, run_dir.parent.parent)]
    resumes = any(word.startswith("resume=") for word in words)
    if request.kind == "train" and ((run_dir / "last.ckpt").exists() or not resumes):
        command.append("resume=auto")  # what a retried attempt continues from; the job's own resume= serves the first
    try:
        with (run_dir / "log.txt").open("ab", buffering=0) as log:
            log.write(f"--- attempt {status.attempt}, {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
            begin = log.tell()
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=request.cwd or None,
                    env=environment(run_dir, request, devices, secrets),
                    process_group=0,
                    pass_fds=(*inherited, *descriptors),
                    preexec_fn=_die_with_parent,
                )
            except OSError as error:
                append_event(run_dir, "failed", status.attempt, f"could not be started: {error}", **overseer.mark)
                return 1
            append_event(
                run_dir,
                "running",
                status.attempt,
                **overseer.mark,
                pid=process.pid,
                exec_pid=os.getpid(),
                devices=list(devices),
                host=os.uname().nodename,
            )
            timed_out = _wait(process, asked, request.timeout, overseer)
        if overseer.lost(look=True):
            return EXIT_TAKEN
        killed_for_memory = process.returncode == -signal.SIGKILL and oom_kills() > kills
        want = "the kernel killed it for want of memory: lower training.num_workers or run fewer at once"
        stopped = overseer.asked(asked.times) > 0
        state, reason = overseer.judge(
            *verdict(process.returncode, stopped, timed_out, request, want if killed_for_memory else "", run_dir)
        )
        detail = last_error(run_dir / "log.txt", begin) if state in ("failed", "out_of_device_memory") else ""
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        append_event(
            run_dir,
            state,
            status.attempt,
            ": ".join(part for part in (reason, detail) if part),
            exit_code=process.returncode,
            seconds=round(time.time() - read_status(run_dir).time, 1),
            peak_host_memory_bytes=peak,
            **overseer.mark,
        )
        return 0 if state == "succeeded" else process.returncode if process.returncode > 0 else 1
    finally:
        secret_files.take_back(run_dir, status.attempt)


def _die_with_parent() -> None:
    """On Linux the trainer gets SIGTERM when this process dies, so that none trains on unseen: prctl(2).

    macOS has no such thing: there an orphan runs to its end, and its locks show it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _wait(process: subprocess.Popen[bytes], asked: Asked, timeout: float | None, overseer: Overseer) -> bool:
    """Wait for the end, pass on what this process is asked; True if the time was up."""
    started = time.monotonic()
    deadline: float | None = None
    timed_out = False
    while True:
        try:
            process.wait(timeout=0.1)
            return timed_out
        except subprocess.TimeoutExpired:
            pass
        now, times = time.monotonic(), overseer.asked(asked.times)
        if deadline is None and timeout is not None and now - started > timeout:
            timed_out = True
        if deadline is None and (times or timed_out):
            deadline = now + overseer.grace
            process.terminate()
        if (deadline is not None and (now > deadline or times > 1)) or overseer.lost():
            os.killpg(process.pid, signal.SIGKILL)


def verdict(
    code: int, asked: bool, timed_out: bool, request: RunRequest, want_of_memory: str, run_dir: Path
) -> tuple[State, str]:
    """State and reason by the contract's exit codes (negative: the signal) and what is known beside them.

    `want_of_memory` is what to say where the kernel or the engine ended it for want of host memory, else empty.
    """
    kept = "last.ckpt is kept" if (run_dir / "last.ckpt").exists() else "it begins anew when it is resumed"
    if code == 0:
        return "succeeded", ""
    if timed_out:
        return "timed_out", f"the time limit of {request.timeout:g} s was up (timeout: in the job file)"
    if asked:
        return "cancelled", f"stopped on request; {kept}"
    if want_of_memory:
        return "out_of_host_memory", want_of_memory
    if code == -signal.SIGKILL:
        return "lost", "killed by SIGKILL from outside"
    if code == 75:
        return "out_of_device_memory", ""
    if code == 143:
        return "lost", f"stopped from outside (docker stop, kill, or a host that went down); {kept}"
    words = {64: "bad configuration", 65: "bad data"}
    return "failed", words.get(code) or (f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}")


def last_error(log: Path, begin: int = 0) -> str:
    """The last message that the trainer wrote after byte `begin`: from its `error:` on, at most 500 characters."""
    try:
        descriptor = os.open(log, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    with os.fdopen(descriptor, "rb") as file:
        file.seek(begin)
        text = file.read()[-20_000:].decode(errors="replace")
    return last_message(text)


def last_message(text: str) -> str:
    """The last `error:` of a log, or else its last line; several faults on one line, with semicolons between them."""
    lines = text.splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    message = lines[starts[-1] :] if starts else lines[-1:]
    faults = [" ".join(line.removeprefix("error: ").split()) for line in message]
    return "; ".join(fault.rstrip(";") for fault in faults if fault)[:500]


def resolve(command: Sequence[str], runs_root: Path) -> list[str]:
    """The command with the runs folder's place for `@runs`."""
    return [word.replace("@runs/", f"{runs_root}/") for word in command]


def environment(run_dir: Path, request: RunRequest, devices: Sequence[str], secrets: Path | None) -> dict[str, str]:
    """The contract's variables on top of this process's own, without the secrets' values."""
    drop = {FDS, DEVICES, *request.secrets}
    settings = {key: value for key, value in os.environ.items() if key not in drop}
    settings["RUN_DIR"] = str(run_dir)
    settings.setdefault("CACHE_DIR", str(run_dir.parent.parent / ".cache"))
    settings["CUDA_VISIBLE_DEVICES"] = ",".join(device for device in devices if device != "mps")
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
