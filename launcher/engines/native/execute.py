"""`launcher exec RUN_DIR`: execute one run natively, and record how it ended.

The process holds the run's lock for its whole life, so anyone can see whether it lives. It has its
own process session, and outlives the supervisor that started it.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from launcher.base.errors import RunError
from launcher.engines import orphans, registry, shares
from launcher.engines.outcome import EXIT_TAKEN, GRACE, Overseer, StopSignals
from launcher.engines.process import DEVICES, START, run_trainer
from launcher.host import gpu_locks
from launcher.host.machine import select
from launcher.record import retry
from launcher.record.folders import clear_stop, refuse_foreign, stop_requested
from launcher.record.journal import Status, append_event, read_events, read_status
from launcher.record.request import RunRequest, read_request
from launcher.record.states import ENDED
from trainer.base.errors import EXIT_STOPPED

NAME = "native"


class NativeOverseer(Overseer):
    """A request to end the run may also be a file, which comes at any time and from any host."""

    def __init__(self, run_dir: Path, grace: float) -> None:
        super().__init__({"engine": NAME}, grace)
        self.run_dir = run_dir

    def asked(self, signals: int) -> int:
        """See `Overseer.asked`."""
        with suppress(OSError):  # the volume does not answer now
            return signals or int(stop_requested(self.run_dir))
        return signals


def execute(run_dir: Path, attempt: int | None = None, grace: float = GRACE) -> int:
    """Execute the run. Returns 0 if it succeeded, else its exit code (or 1).

    `attempt` is the one that a supervisor has announced as `starting`; None starts a new one by hand. Raises RunError
    if the run is in progress, has succeeded, or was withdrawn meanwhile.
    """
    run_dir = run_dir.resolve()
    refuse_foreign(run_dir.parent)
    request = read_request(run_dir)
    overseer, signals = NativeOverseer(run_dir, grace), StopSignals()
    patience = 0.1 if attempt is None else orphans.PATIENCE

    def stopped() -> bool:
        return overseer.asked(signals.times) > 0

    def say(line: str) -> None:
        print(f"--- {line}", flush=True)  # in the run's log, unless started by hand

    if attempt is None:
        clear_stop(run_dir)
    with orphans.executed(run_dir, patience, stopped, say) as mine:
        if mine is None:
            return _not_executed(run_dir, attempt, stopped())
        status = read_status(run_dir)
        held: list[gpu_locks.GpuLock] = []
        if attempt is None:
            chosen, held = _by_hand(run_dir, request)
        elif not _is_announced(status, attempt):
            raise RunError(f"{run_dir.name}: this start of attempt {attempt} was withdrawn: the run is {status.state}")
        else:
            chosen = dict(word.split("=", 1) for word in os.environ.get(DEVICES, "").split(",") if "=" in word)
        try:
            if stopped():
                append_event(run_dir, "cancelled", reason="stopped before it started", **overseer.mark)
                return EXIT_STOPPED
            locks = [one.descriptor for one in held]
            return run_trainer(run_dir, request, list(chosen), list(chosen.values()), mine, locks, overseer, signals)
        finally:
            clear_stop(run_dir)
            for one in held:
                one.close()


def _is_announced(status: Status, attempt: int) -> bool:
    """Whether the run waits for the process that executes this start of the attempt."""
    started = os.environ.get(START, repr(status.time))
    return (status.state, status.attempt, repr(status.time)) == ("starting", attempt, started)


def _not_executed(run_dir: Path, attempt: int | None, stopped: bool) -> int:
    """Record that another process holds the run's lock. The run goes back to the queue, and that counts as no attempt.
    Returns the exit code. Raises RunError for an attempt by hand."""
    holder = orphans.holder(run_dir)
    if attempt is None:
        raise RunError(f"{run_dir.name}: is being executed already by {holder}; see: launcher logs {run_dir} -f")
    if _is_announced(read_status(run_dir), attempt):
        if stopped:
            append_event(run_dir, "cancelled", attempt, "stopped before it started", engine=NAME)
            clear_stop(run_dir)
            return EXIT_STOPPED
        done = retry.retries(read_events(run_dir))
        append_event(run_dir, "queued", attempt, f"waits for the run's lock, which {holder} holds", retry=done)
    return EXIT_TAKEN


def _by_hand(run_dir: Path, request: RunRequest) -> tuple[dict[str, str], list[gpu_locks.GpuLock]]:
    """Announce a new attempt and lock its devices, since no supervisor has done so. Returns the devices, with their
    names for CUDA."""
    status = read_status(run_dir)
    if status.state in ("starting", "running"):
        engine = str(status.figures.get("engine") or NAME)
        if engine != NAME:
            where = registry.engine(engine).where
            raise RunError(f"{run_dir.name}: is in progress {where}; see: launcher logs {run_dir} -f")
        append_event(run_dir, "lost", reason="its process ended without a message")
    if read_status(run_dir).state in ENDED:
        numbered = status.attempt + 1 if registry.queue_of(run_dir.parent) else None  # a queue knows it by this number
        append_event(run_dir, "queued", numbered, "executed by hand", again=True)
    machine = select(None).for_run_on(request.resources.gpus)
    got: list[tuple[str, gpu_locks.GpuLock]] = []
    for device in machine.devices if request.resources.gpus else ():
        one = gpu_locks.acquire(machine.lock_name(device), str(run_dir)) if len(got) < request.resources.gpus else None
        got += [(device, one)] if one else []
    if len(got) < request.resources.gpus:
        for _, one in got:
            one.close()
        why = "".join(f"; {line}" for line in (*machine.lost, machine.ignored) if line)
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
