"""Drive a submission to its end: ask the scheduler, start runs, watch them.

All state lies in the run directories. A supervisor that is killed leaves its runs running; the next one adopts them.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType

from launcher import durations, engines, gpus, runs, scheduler
from launcher.engines.base import Engine
from launcher.machine import Machine
from launcher.runs import ENDED, GOOD, RunError, RunRequest, Status
from launcher.sizes import show_size

EXIT_OK, EXIT_SOME_FAILED, EXIT_STOPPED = 0, 1, 130
POLL = 0.25
"""Seconds between two looks at the runs."""
ROOM = 16 * 2**20
"""Bytes free on the runs' disk, below which no run is started: it could not even say why it failed."""
Event = Callable[[str, Status], None]


class Supervision:
    """One drive of a submission. Use `run`."""

    def __init__(
        self, submission: Path, machine: Machine, engine: Engine, max_parallel: int | None, on_event: Event | None
    ) -> None:
        self.submission = submission
        self.machine = machine
        self.engine = engine
        self.on_event = on_event or (lambda name, status: None)
        sizes = {str(gpu.index): gpu.memory for gpu in machine.gpus if gpu.memory}
        self.capacity = scheduler.Capacity(machine.devices, machine.cpus, machine.memory, max_parallel, sizes)
        self.requests = {path.name: runs.read_request(path) for path in runs.list_runs(submission)}
        self.shown: dict[str, tuple[str, int]] = {}
        self.waiting_for: dict[str, str] = {}
        self.trouble: str | None = None
        self.asked = 0
        self.detached = False

    def dir(self, name: str) -> Path:
        return self.submission / name

    def listen(self) -> None:
        """Ctrl-C and SIGTERM stop the runs, a second one at once; SIGHUP leaves them running."""

        def stop(number: int, frame: FrameType | None) -> None:
            self.asked += 1

        def detach(number: int, frame: FrameType | None) -> None:
            self.detached = True

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        signal.signal(signal.SIGHUP, detach)

    def status(self, name: str) -> Status:
        """The run's status as its journal has it; told to `on_event` when it changed."""
        status = runs.read_status(self.dir(name))
        if status.state in ("starting", "running") and not self.engine.poll(self.dir(name)):
            status = runs.read_status(self.dir(name))
        if self.shown.get(name) != (status.state, status.attempt):
            self.shown[name] = (status.state, status.attempt)
            self.on_event(name, status)
        return status

    def drive(self) -> int:
        handled = 0
        while True:
            states = {name: self.status(name) for name in self.requests}
            under_way = {name: s for name, s in states.items() if s.state in ("starting", "running")}
            if self.detached:
                return EXIT_STOPPED
            if self.asked > handled:
                handled = self.asked
                self._stop(states, at_once=self.asked > 1)
                continue
            if not under_way and (self.asked or not any(s.state == "queued" for s in states.values())):
                break
            if not self.asked:
                self._cancel_hopeless(states)
                if full := self._full_disk():
                    self._tell_trouble(full)
                    self.engine.wait(POLL)
                    continue
                self._start(states, under_way)
            self._tell_trouble(self.engine.trouble)
            self.engine.wait(POLL)
        if self.asked:
            return EXIT_STOPPED
        return EXIT_OK if all(s.state in GOOD for s in states.values()) else EXIT_SOME_FAILED

    def _stop(self, states: dict[str, Status], at_once: bool) -> None:
        for name, status in states.items():
            if status.state == "queued":
                runs.append_event(self.dir(name), "cancelled", reason="stopped before it began")
            elif status.state in ("starting", "running"):
                (self.engine.kill if at_once else self.engine.stop)(self.dir(name))

    def _cancel_hopeless(self, states: dict[str, Status]) -> None:
        """Cancel a step when a step that it needs has not succeeded. A training run may fail: the others serve."""
        for name, status in states.items():
            for need in self.requests[name].needs:
                if status.state == "queued" and self._failed_step(need, states):
                    runs.append_event(
                        self.dir(name),
                        "cancelled",
                        reason=f"'{need}' {states[need].state}: there is nothing to work on",
                    )
                    break

    def _failed_step(self, need: str, states: dict[str, Status]) -> bool:
        return self.requests[need].kind != "train" and states[need].state in ENDED - GOOD

    def _start(self, states: dict[str, Status], under_way: dict[str, Status]) -> None:
        taken = {}
        if any(self.requests[name].resources.gpus for name, s in states.items() if s.state == "queued"):
            mine = {device for s in under_way.values() for device in s.figures.get("devices", [])}
            of_containers = self.engine.taken() if self.machine.gpus else {}
            taken = {device: f"held by {run}" for device, run in of_containers.items() if device not in mine}
            for device in self.machine.devices:
                index = int(device) if device.isdigit() and not self.machine.declared else None
                why = None if device in mine else gpus.why_taken(self.machine.lock_name(device), index)
                if why:
                    taken[device] = why
        paces = durations.learned(self.requests, states)
        queue = [_demand(self.requests[name], paces) for name, s in states.items() if s.state == "queued"]
        for demand in queue:
            if why := scheduler.why_never(demand, self.capacity):
                runs.append_event(self.dir(demand.name), "failed", reason=why)
        running = {
            name: scheduler.Running(
                _demand(self.requests[name], paces),
                tuple(status.figures.get("devices", [])),
                durations.remaining(self.dir(name), self.requests[name], status, paces),
            )
            for name, status in under_way.items()
        }
        over = {name for name, status in states.items() if status.state in ENDED}
        for start in scheduler.choose(queue, running, over, self.capacity, taken):
            self._start_one(start, states[start.name].attempt)
        if taken and not under_way and queue:
            self._tell_waiting(queue[0].name, taken)

    def _full_disk(self) -> str | None:
        free = shutil.disk_usage(self.submission).free
        folder = self.submission.parent
        return f"{folder}: no space left ({show_size(free)}); what is queued waits for it" if free < ROOM else None

    def _tell_trouble(self, trouble: str | None) -> None:
        if trouble != self.trouble:
            self.trouble = trouble
            self.on_event(self.submission.name, Status("queued", reason=trouble or "goes on"))

    def _tell_waiting(self, name: str, taken: dict[str, str]) -> None:
        reason = "waiting: " + "; ".join(f"GPU {device} is {why}" for device, why in sorted(taken.items()))
        if self.waiting_for.get(name) != reason:
            self.waiting_for[name] = reason
            self.on_event(name, Status("queued", reason=reason))

    def _start_one(self, start: scheduler.Start, attempt: int) -> None:
        run_dir = self.dir(start.name)
        held: list[gpus.Held] = []
        try:
            for device in start.devices:
                one = gpus.acquire_for(self.machine.lock_name(device), run_dir, self.requests[start.name].share_gpu)
                if one is None:
                    return  # another submission was faster; the next look will see that
                held.append(one)
            try:
                self._resolve(run_dir)
                runs.append_event(
                    run_dir, "starting", devices=list(start.devices), host=os.uname().nodename, **self.engine.mark()
                )
                self.engine.start(run_dir, attempt, start.devices, held)
            except (OSError, RunError) as error:
                if runs.read_status(run_dir).state in ("queued", "starting"):
                    runs.append_event(run_dir, "failed", reason=str(error))
        finally:
            for one in held:
                one.close()  # the run holds copies

    def _resolve(self, run_dir: Path) -> None:
        """Name the members of a step, now that its runs are over."""
        request = self.requests[run_dir.name]
        if request.select is not None:
            from launcher.steps import resolve

            request = resolve(request, self.submission)
            runs.write_request(run_dir, request)
            self.requests[run_dir.name] = dataclasses.replace(request)


def _demand(request: RunRequest, paces: Mapping[durations.Kind, float]) -> scheduler.Demand:
    resources = request.resources
    return scheduler.Demand(
        request.name,
        resources.gpus,
        resources.cpus or 0,
        resources.memory or 0,
        tuple(request.needs),
        gpu_memory=(runs.device_need(request) or 0) if resources.gpus else 0,
        share=request.share_gpu,
        priority=request.priority,
        cost=durations.cost(request),
        seconds=durations.expected(request, paces),
    )


def run(
    submission: Path, machine: Machine, engine: Engine, max_parallel: int | None = None, on_event: Event | None = None
) -> int:
    """Drive the submission until every run has ended: 0 all succeeded, 1 some did not, 130 stopped on request.

    Raises RunError where another supervisor drives it already.
    """
    with runs.locked(submission / "supervisor.lock") as mine:
        if not mine:
            raise RunError(f"{submission.name}: another launcher drives it; see it: launcher status {submission.name}")
        (submission / "supervisor.lock").write_text(f"{os.getpid()} on {os.uname().nodename}\n")
        supervision = Supervision(submission, machine, engine, max_parallel, on_event)
        supervision.listen()
        return supervision.drive()


def stop(run_dirs: list[Path], grace: float) -> list[str]:
    """Ask these runs to end, wait up to `grace` seconds; returns the names of those that had not ended already.

    A run that is still queued is cancelled, and no supervisor starts it any more.
    """
    touched = []
    for run_dir in run_dirs:
        engines.settle(run_dir)
        state = runs.read_status(run_dir).state
        if state == "queued":
            runs.append_event(run_dir, "cancelled", reason="stopped before it began")
        elif state in ("starting", "running"):
            engines.of(run_dir).stop(run_dir)
        if state not in ENDED:
            touched.append(run_dir.name)
    deadline = time.monotonic() + grace
    waiting = list(run_dirs)
    while time.monotonic() < deadline and waiting:
        time.sleep(0.1)
        for run_dir in list(waiting):
            engines.settle(run_dir)
            if runs.read_status(run_dir).state in ENDED:
                waiting.remove(run_dir)
    return touched
