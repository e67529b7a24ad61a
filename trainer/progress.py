"""What a run tells while it trains: progress.json for the launcher, a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trainer.files import write_json


class Reporter:
    """Heartbeat and display of one run. `active` is False on every process but the first."""

    def __init__(self, run_dir: Path, epochs: int, steps: int, device: str, active: bool) -> None:
        """`steps`: optimiser steps of the whole run."""
        self.path = run_dir / "progress.json"
        self.epochs = epochs
        self.steps = steps
        self.device = device
        self.active = active
        self.best_f1: float | None = None
        self._images = 0
        self._started = time.monotonic()
        self._first_step: int | None = None
        self._first_step_time: float | None = None
        self._written = 0.0
        self._bar: Progress | None = None
        if active and sys.stdout.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(), transient=True)
            self._task = self._bar.add_task("training", total=steps)
            self._bar.start()

    @property
    def images_per_second(self) -> float:
        """Training throughput since this process began to train, validation included."""
        return self._images / max(time.monotonic() - self._started, 1e-9)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def step(self, epoch: int, step: int, images: int, memory: int) -> None:
        """After optimiser step `step` (from 1) of the run, in epoch `epoch` (from 0), over `images` images."""
        self._images += images
        if self._first_step is None:
            self._first_step, self._first_step_time = step - 1, time.time()
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=f"epoch {epoch + 1}/{self.epochs}")
        self.beat(epoch, step, memory)

    def eta(self, step: int) -> float | None:
        """Seconds until the last step, at the pace so far; None before there is one."""
        done = step - (self._first_step or 0)
        return (self.steps - step) * self.seconds / done if done > 0 else None

    def beat(self, epoch: int, step: int, memory: int, force: bool = False) -> None:
        """Write progress.json, at most once a second unless forced."""
        if not self.active or (not force and time.monotonic() - self._written < 1):
            return
        self._written = time.monotonic()
        eta = self.eta(step)
        write_json(
            self.path,
            {
                "time": time.time(),
                "epoch": epoch + 1,
                "epochs": self.epochs,
                "step": step,
                "steps": self.steps,
                "images_per_second": round(self.images_per_second, 2),
                "eta_seconds": None if eta is None else round(eta, 1),
                "device": self.device,
                "device_memory_bytes": memory,
                "best_f1": self.best_f1,
                "first_step_time": self._first_step_time,
            },
        )

    def say(self, line: str) -> None:
        """A line of the log."""
        if self.active:
            (self._bar.console.print if self._bar is not None else print)(line)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def duration(seconds: float | None) -> str:
    """`95` → `1 min 35 s`."""
    if seconds is None:
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def validation_line(figures: dict[str, Any], epochs: int, images_per_second: float, eta: float | None) -> str:
    """One validation in a line."""
    star = "*  " if figures["best"] else ""
    worse = f"corrupted {figures['val_f1_corrupted']:.4f}  " if "val_f1_corrupted" in figures else ""
    return (
        f"epoch {figures['epoch']}/{epochs} step {figures['step']}: train_loss {figures['train_loss']:.4f}  "
        f"val_loss {figures['val_loss']:.4f}  val_f1 {figures['val_f1']:.4f}  {worse}{star}"
        f"val_accuracy {figures['val_accuracy']:.4f}  {images_per_second:.1f} images/s  ETA {duration(eta)}"
    )
