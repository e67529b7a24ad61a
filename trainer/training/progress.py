"""The progress of a run: progress.json for the launcher, bars on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.base import figures
from trainer.base.durations import duration
from trainer.base.files import write_json

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

QUIET = 60.0
"""Seconds without a line in a log, after which a line says how far the run is."""


class Reporter:
    """Heartbeat and display of one run. `active` is True only in the first process."""

    def __init__(self, run_dir: Path, epochs: int, steps: int, device: str, active: bool, steps_per_epoch: int) -> None:
        """`steps`: optimizer steps of the whole run."""
        self.path = run_dir / "progress.json"
        self.epochs = epochs
        self.steps = steps
        self.steps_per_epoch = steps_per_epoch
        self.device = device
        self.active = active
        self.best_f1: float | None = None
        """The value of `figures.MAIN` at the best validation so far."""
        self._images = 0
        self._started = time.monotonic()
        self._first_step: int | None = None
        self._first_step_time: float | None = None
        self._written = 0.0
        self._said = time.monotonic()
        self._bar: Progress | None = None
        if active and sys.stdout.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(), transient=True)
            self._epoch = self._bar.add_task(f"epoch 1/{epochs}", total=steps_per_epoch)
            self._validation: TaskID = self._bar.add_task("validating", visible=False)
            self._whole = self._bar.add_task("all epochs", total=steps)
            self._bar.start()

    @property
    def images_per_second(self) -> float | None:
        """Images per second since this process started training, including validation. None before its first step."""
        return self._images / max(self.seconds, 1e-9) if self._images else None

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def step(self, epoch: int, step: int, images: int, memory: int) -> None:
        """Call after optimizer step `step` (from 1) in epoch `epoch` (from 0) with `images` images."""
        self._images += images
        if self._first_step is None:
            self._first_step, self._first_step_time = step - 1, time.time()
        if self._bar is not None:
            done = step - epoch * self.steps_per_epoch
            now = f"epoch {epoch + 1}/{self.epochs}  {self._speed()}"
            self._bar.update(self._epoch, completed=done, description=now)
            self._bar.update(self._validation, visible=False)
            self._bar.update(self._whole, completed=step)
        self.beat(epoch, step, memory)

    def _speed(self) -> str:
        images_per_second = self.images_per_second or 0
        return f"{images_per_second:.1f} images/s"

    def validating(self, done: int, images: int) -> None:
        """Call when `done` of `images` images of a validation, corrupted copies included, have been predicted."""
        if self._bar is not None:
            begins = not self._bar.tasks[self._validation].visible
            self._bar.update(self._validation, completed=done, total=images, visible=done < images, refresh=begins)

    def eta(self, step: int) -> float | None:
        """Seconds until the last step, at the speed of this process. None before its first step."""
        done = 0 if self._first_step is None else step - self._first_step
        return (self.steps - step) * self.seconds / done if done > 0 else None

    def beat(self, epoch: int, step: int, memory: int, force: bool = False) -> None:
        """Write progress.json, at most once a second unless forced. In a log, end a silence of `QUIET` seconds."""
        if not self.active or (not force and time.monotonic() - self._written < 1):
            return
        self._written = time.monotonic()
        eta = self.eta(step)
        if self._bar is None and time.monotonic() - self._said >= QUIET and self.images_per_second:
            now = f"epoch {epoch + 1}/{self.epochs} step {step} of {self.steps}"
            self.say(f"{now}: {self._speed()}  ETA {duration(eta)}")
        write_json(
            self.path,
            {
                "time": time.time(),
                "epoch": epoch + 1,
                "epochs": self.epochs,
                "step": step,
                "steps": self.steps,
                "images_per_second": rounded(self.images_per_second, 2),
                "eta_seconds": rounded(eta, 1),
                "device": self.device,
                "device_memory_bytes": memory,
                "best_f1": self.best_f1,
                "first_step_time": self._first_step_time,
            },
        )

    def say(self, line: str) -> None:
        """Print a line to the log."""
        if self.active:
            self._said = time.monotonic()
            if self._bar is None:
                print(line)
            else:  # the line as it is: names may have brackets, and a terminal breaks lines itself
                self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def rounded(figure: float | None, digits: int) -> float | None:
    """A rounded number for a file. None if unknown."""
    return None if figure is None else round(figure, digits)


def validation_line(entry: dict[str, Any], epochs: int, images_per_second: float | None, eta: float | None) -> str:
    """The log line of a validation. Without the throughput if it is unknown."""
    star = "*  " if entry["best"] else ""
    main = [figures.F1.column(copy) for copy in ("clean", "corrupted")]
    clean = {name: column for name, column in figures.columns().items() if column.copy == "clean" and name not in main}
    losses = "".join(f"{name} {entry[name]:.4f}  " for name, column in clean.items() if column.figure.better == "lower")
    others = "".join(
        f"{name} {entry[name]:.4f}  " for name, column in clean.items() if column.figure.better == "higher"
    )
    worse = f"corrupted {entry[main[1]]:.4f}  " if main[1] in entry else ""
    speed = "" if images_per_second is None else f"{images_per_second:.1f} images/s  "
    return (
        f"epoch {entry['epoch']}/{epochs} step {entry['step']}: train_loss {entry['train_loss']:.4f}  "
        f"{losses}{main[0]} {entry[main[0]]:.4f}  {worse}{star}{others}{speed}ETA {duration(eta)}"
    )
