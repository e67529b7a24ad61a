"""`launcher exec RUN_DIR`: execute one run natively, and record how it ended.

The process holds the run's lock for its whole life, so anyone can see whether it lives. It has its
own process session, and outlives the supervisor that started it.
"""

from __future__ import annotations

import os
from pathlib import Path

from launcher.base.errors import RunError
from launcher.engines import registry, shares
from launcher.engines.outcome import GRACE, Overseer
from launcher.engines.process import DEVICES, run_trainer
from launcher.host import gpu_locks
from launcher.host.machine import select
from launcher.record.journal import append_event, read_status
from launcher.record.locks import run_locked
from launcher.record.request import RunRequest, read_request
from launcher.record.states import ENDED

NAME = "native"


def execute(run_dir: Path, attempt: int | None = None, grace: float = GRACE) -> int:
    """Execute the run. Returns 0 if it succeeded, else its exit code (or 1).

    `attempt` is the one that a supervisor has announced as `starting`; None starts a new one by hand. Raises RunError
    if the run is in progress, has succeeded, or was withdrawn meanwhile.
    """
    run_dir = run_dir.resolve()
    request = read_request(run_dir)
    with run_locked(run_dir) as mine:
        if not mine:
            raise RunError(f"{run_dir.name}: is being executed already; see: launcher logs {run_dir} -f")
        status = read_status(run_dir)
        held: list[gpu_locks.GpuLock] = []
        if attempt is None:
            chosen, held = _by_hand(run_dir, request)
        elif (status.state, status.attempt) != ("starting", attempt):
            raise RunError(f"{run_dir.name}: attempt {attempt} was withdrawn: the run is {status.state}")
        else:
            chosen = dict(word.split("=", 1) for word in os.environ.get(DEVICES, "").split(",") if "=" in word)
        try:
            # The trainer holds the lock, too: if this process is killed, the run is in progress until the trainer ends.
            overseer = Overseer({"engine": NAME}, grace)
            locks = [mine, *(one.descriptor for one in held)]
            return run_trainer(run_dir, request, list(chosen), list(chosen.values()), locks, overseer)
        finally:
            for one in held:
                one.close()


def _by_hand(run_dir: Path, request: RunRequest) -> tuple[dict[str, str], list[gpu_locks.GpuLock]]:
    """Announce a new attempt and lock its devices, since no supervisor has done so. Returns the devices, with their
    names for CUDA."""
    status = read_status(run_dir)
    if status.state in ("starting", "running"):
        engine = str(status.figures.get("engine", NAME))
        if engine != NAME:
            where = registry.engine(engine).where
            raise RunError(f"{run_dir.name}: is in progress {where}; see: launcher logs {run_dir} -f")
        append_event(run_dir, "lost", reason="its process ended without a message")
    if read_status(run_dir).state in ENDED:
        append_event(run_dir, "queued", status.attempt + 1, "executed by hand")
    machine = select(None)
    got: list[tuple[str, gpu_locks.GpuLock]] = []
    for device in machine.devices if request.resources.gpus else ():
        one = gpu_locks.acquire(machine.lock_name(device), str(run_dir)) if len(got) < request.resources.gpus else None
        got += [(device, one)] if one else []
    if len(got) < request.resources.gpus:
        for _, one in got:
            one.close()
        why = f"; {machine.ignored}" if machine.ignored else ""
        raise RunError(
            f"{run_dir.name}: needs {request.resources.gpus} GPU; "
            f"this host has {len(machine.devices)}, {len(got)} free{why}"
        )
    try:
        got.append(("", shares.claim(run_dir, request.resources, machine)))
    except RunError:
        for _, one in got:
            one.close()
        raise
    devices = [device for device, _ in got if device]
    append_event(run_dir, "starting", reason="by hand", engine=NAME, devices=devices)
    return dict(zip(devices, machine.visible(devices), strict=True)), [one for _, one in got]
