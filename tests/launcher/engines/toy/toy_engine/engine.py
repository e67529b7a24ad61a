"""An engine as small as one can be, with a section in the job file and a check in doctor."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from launcher.engines import outcome, process
from launcher.engines.base import Choice, SupervisedEngine, UnofferedError, Want
from launcher.host.checks import Check
from launcher.host.gpu_locks import GpuLock
from launcher.host.machine import Machine
from launcher.job.schema import SectionSpec
from launcher.record import retry
from launcher.record.find import read_submission
from launcher.record.journal import append_event, read_events, read_status
from launcher.record.request import read_request
from launcher.record.states import ENDED


class ToySection(SectionSpec):
    """The `toy:` section of the job file."""

    description: ClassVar[str] = "for the toy engine"
    colour: str = Field("red", description="what it is painted with")

    def errors(self) -> list[tuple[str, str]]:
        return [("colour", f"nobody sells {self.colour}; say red or blue")] if self.colour == "plaid" else []


class ToyEngine(SupervisedEngine):
    """See `SupervisedEngine`."""

    name = "toy"
    where = "in the toy box"
    Section = ToySection

    def __init__(self) -> None:
        self._processes: dict[Path, subprocess.Popen[bytes]] = {}
        self._asked: set[Path] = set()

    def offer(self, want: Want) -> Choice:
        if want.auto:
            raise UnofferedError("toys are not for work")
        return Choice(self, want.host(), "toys")

    def again(self, machine: Machine) -> Choice:
        return Choice(self, machine, "toys")

    def start(self, run_dir: Path, attempt: int, devices: Sequence[str], held: Sequence[GpuLock]) -> None:
        request = read_request(run_dir)
        words = process.resolve(retry.command(request, read_events(run_dir)), run_dir.parent.parent)
        settings = process.environment(run_dir, request, devices, None)
        settings["TOKEN"] = read_submission(run_dir.parent)[self.name]["colour"]
        with (run_dir / "log.txt").open("ab") as log:
            child = subprocess.Popen([*process.ENTRY, *words], stdout=log, stderr=log, env=settings)
        self._processes[run_dir] = child
        append_event(run_dir, "running", attempt, pid=child.pid, **self.mark())

    def settle(self, run_dir: Path) -> bool:
        status, child = read_status(run_dir), self._processes.get(run_dir)
        if status.state in ENDED:
            return False
        if child is None:  # another launcher's
            with suppress(ProcessLookupError, KeyError):
                os.kill(int(status.figures["pid"]), 0)
                return True
            append_event(run_dir, "lost", reason="its toy box is gone", **self.mark())
            return False
        code = child.poll()
        if code is None:
            return True
        state, reason = outcome.verdict(code, run_dir in self._asked, False, read_request(run_dir), "", run_dir)
        append_event(run_dir, state, status.attempt, reason, exit_code=code, **self.mark())
        return False

    def stop(self, run_dir: Path) -> None:
        self._asked.add(run_dir)
        self._processes[run_dir].terminate()

    def kill(self, run_dir: Path) -> None:
        self.stop(run_dir)
        self._processes[run_dir].kill()

    def checks(self, runs_root: Path) -> list[Check]:
        return [Check("toy box", "ok", "is open")]
