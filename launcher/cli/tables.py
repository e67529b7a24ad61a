"""Output of `plan` and `submit`: the table of runs, and a line for each change."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launcher.base.sizes import GIB, show_duration
from launcher.base.text import wrapped
from launcher.host.machine import Machine
from launcher.job.expansion import Planned
from launcher.memory import compatibility
from launcher.record.journal import Status
from launcher.record.states import GOOD
from launcher.record.trainer_figures import read_metrics
from trainer.base.figures import MAIN

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = 100
"""Largest number of rows of a plan. Laying out thousands of rows takes longer than planning them."""


def table(planned: Sequence[Planned], machine: Machine) -> Table:
    """The planned runs as a table for a terminal."""
    from rich.table import Table

    environment = compatibility.environment_of(machine.mps, len(machine.gpus), machine.memory)
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for title, justify in (
        ("run", "left"),
        ("model", "left"),
        ("data", "left"),
        ("training", "left"),
        ("size", "right"),
        ("batch", "right"),
        ("epochs", "right"),
        ("GPUs", "right"),
        ("cores", "right"),
        ("micro", "right"),
        ("needs", "right"),
        ("manual says", "right"),
        ("fits", "left"),
    ):
        grid.add_column(title, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for p in planned[:SHOWN]:
        config, resources = p.request.config, p.request.resources
        memory = compatibility.manual_memory(config, environment)
        grid.add_row(
            p.request.name,
            *(str(config.get(key, "")) for key in ("model", "data", "training", "img_size", "batch_size", "epochs")),
            str(resources.gpus),
            f"{resources.cpus:g}" if resources.cpus else "",
            str(p.fit.micro_batch) if p.fit else "",
            f"{p.request.predicted_memory / GIB:.1f} GiB" if p.request.predicted_memory else "",
            f"~{memory:g} GB" if memory else "",
            "✗ " + p.why_not if p.why_not else _fits(p),
        )
    if rest := planned[SHOWN:]:
        misfits = sum(p.why_not is not None for p in rest)
        words = f"{misfits} of them do not fit" if misfits else "all of them fit"
        grid.add_row(f"… and {len(rest)} more, {words}; --json lists all")
    return grid


def _fits(p: Planned) -> str:
    """Whether the run fits; by device if the devices differ."""
    fits_on = p.fit.fits_on if p.fit else {}
    if len(set(fits_on.values())) < 2:
        return "✓" if all(fits_on.values()) else "✗ at this micro-batch"
    return " ".join(f"{'✓' if fits else '✗'} {device}" for device, fits in fits_on.items())


class Announcer:
    """Prints a line for each change of a run, with the time at which it changed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.started = time.monotonic()

    def event(self, name: str, status: Status) -> None:
        """Print a change of the run `name`, or a note if `name` is the submission's. The supervisor calls this."""
        if status.state == "queued" and not status.reason:
            return
        state = "note" if name == self.directory.name else status.state
        clock = _clock(status.time or time.time())
        words = [f"{clock}  {name} {state}" if state == "note" else f"{clock}  {name:40} {state}"]
        if status.state in GOOD:
            value = read_metrics(self.directory / name).get(MAIN)
            words += [f"{MAIN} {value:.4f}"] if value is not None else []
            words += [f"in {show_duration(status.figures.get('seconds'))}"]
        elif status.state == "running" and status.figures.get("devices"):
            words.append("on " + ", ".join(d if d == "mps" else f"GPU {d}" for d in status.figures["devices"]))
        if status.attempt > 1:
            words.append(f"(attempt {status.attempt})")
        if status.reason:
            words.append(status.reason)
        line = "  ".join(words)
        # In a file or pipe an event is one line, which programs can read.
        click.echo(wrapped(line, " " * 10) if state == "note" and sys.stdout.isatty() else line)


def _clock(moment: float) -> str:
    """Seconds since 1970 as the local time of day, with the date if it is not today."""
    at = time.localtime(moment)
    return time.strftime("%H:%M:%S" if at[:3] == time.localtime()[:3] else "%Y-%m-%d %H:%M:%S", at)
