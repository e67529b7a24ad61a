"""Where the time of a run's steps goes, and what the halves of the bench share."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.base import cores
from trainer.base.errors import DeviceMemoryError, StoppedError
from trainer.base.figures import MAIN
from trainer.config.compose import compose
from trainer.data.drawn import write_sample_data
from trainer.training import device
from trainer.training.run import train
from trainer.training.stop import Stop

Row = dict[str, Any]
SIZE = 224
"""Pixels of a step on the CPU."""
GPU_SETUPS = (
    ("resnet34", 768, 32), ("efficientnet_b4", 768, 16), ("resnet50", 768, 32),
    ("convnext_base", 768, 16), ("swin_base_384", 384, 32), ("deit_base_384", 384, 32),
)  # fmt: skip
"""The manual's models (the trainer's names) with its pixels and images a step on a GPU; halved until they fit."""
QUICK = ("resnet34", "efficientnet_b4")
PARTS = ("data", "transfer", "forward", "backward", "optimizer", "rest")
"""Of a step, in order: waiting for the loader; bytes to the device and mixing; model and loss; gradients; the update
with clipping; averages of the weights, progress and checkpoints."""


@contextlib.contextmanager
def fast_kernels(on: str) -> Iterator[None]:
    """As a run has them, and afterwards as it was."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    device.allow_fast_kernels(on, device.MANY_STEPS)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before[1:]


def fitting(measured: Callable[[int], Row], batch: int) -> Row:
    """Of `batch` images, or of half as many, and so on, where the device's memory has no room for them."""
    while True:
        try:
            return measured(batch)
        except (torch.OutOfMemoryError, DeviceMemoryError):
            if batch == 1:
                raise
            batch //= 2
        finally:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


@contextlib.contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """The variable with this value, and afterwards as it was."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@dataclass
class _Clock:
    """Keeps when each part of each step was over. On CUDA by events in its stream: what the device does, and not what
    it has been told to do."""

    on: str

    def __post_init__(self) -> None:
        self.marks: list[tuple[str, Any]] = []

    def lap(self, part: str) -> None:
        if self.on == "cuda":
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self.marks.append((part, event))
            return
        if self.on == "mps":
            torch.mps.synchronize()
        self.marks.append((part, time.perf_counter()))

    def spans(self) -> list[tuple[str, float]]:
        """Seconds of each part that was passed, in order."""
        if self.on == "cuda":
            torch.cuda.synchronize()
        pairs = zip(self.marks, self.marks[1:], strict=False)
        if self.on == "cuda":
            return [(part, before.elapsed_time(mark) / 1000) for (_, before), (part, mark) in pairs]
        return [(part, mark - before) for (_, before), (part, mark) in pairs]


def whole_steps(spans: Iterable[tuple[str, float]]) -> list[dict[str, float]]:
    """Seconds of each of PARTS in each step, but for those of the first epoch, which fills caches, and the first of
    each epoch, which finds no batch ready: the epochs here are short. Validation is no part of a step."""
    steps: list[dict[str, float]] = []
    epoch, before, step = 0, "", dict[str, float]()
    fresh = True
    for part, seconds in spans:
        if part == before == "validation":  # one ends an epoch, one begins the next
            epoch, fresh = epoch + 1, True
        before = part
        if part in PARTS:
            step[part] = step.get(part, 0.0) + seconds
        if part == "rest":
            if epoch and not fresh:
                steps.append(step)
            step, fresh = {}, False
    return steps


def shares(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """The share of each of PARTS in the time of `steps`."""
    total = sum(sum(step.values()) for step in steps) or 1.0
    return {part: round(sum(step.get(part, 0.0) for step in steps) / total, 4) for part in PARTS}


def where_time_goes(
    name: str = "resnet34",
    size: int = SIZE,
    batch: int = 8,
    workers: int | None = 1,
    on: str = "auto",
    steps: int = 4,
    epochs: int = 4,
) -> dict[str, Any]:
    """A real run over drawn documents, which is stopped after `epochs` epochs of at least `steps` steps: {model, size,
    batch, workers, device, seconds (of a step), shares, gpu_waits}. `shares` are those of PARTS, and add up to 1.
    `workers`: None for as many as the trainer starts by itself.

    `gpu_waits`, None but on CUDA, is the share of time in which the device has nothing to do because no batch is there:
    from the end of a step in its stream to the moment when the next batch comes. Gaps between kernels are not in it.
    Not verified on a GPU.
    """
    chosen = device.choose(on)
    clock, stop = _Clock(chosen), Stop()
    per_class = max(10, -(-batch * steps * 5 // 16) + 1)  # of 4 classes; a fifth of them validates
    passed, before = 0, ""

    def lap(part: str) -> None:
        nonlocal passed, before
        passed += part == before == "validation"  # one ends an epoch, one begins the next
        before = part
        stop.requested |= passed >= epochs
        clock.lap(part)

    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        environment("CACHE_DIR", folder),
        fast_kernels(chosen),
    ):
        root = Path(folder)
        write_sample_data(root / "data", 4, per_class, 1)
        words = [
            f"model={name}", f"data.img_size={size}", f"data.root={root / 'data'}", "model.pretrained=false",
            f"training.batch_size={batch}", f"training.num_workers={'null' if workers is None else workers}",
            f"training.epochs={device.MANY_STEPS}", "training.validate_per_epoch=1", "training.patience=0",
            "training.compile=false", "data.val_corruption=none", f"training.monitor={MAIN}", f"device={chosen}",
            "devices=1",
        ]  # fmt: skip
        try:
            train(compose(words), root / "run", stop, lap)
        except StoppedError:
            if passed < epochs:
                raise
    counted = whole_steps(clock.spans())
    found = shares(counted)
    return {
        "model": name,
        "size": size,
        "batch": batch,
        "workers": cores.workers(workers, chosen),
        "device": chosen,
        "seconds": round(statistics.mean(sum(step.values()) for step in counted), 4),
        "shares": found,
        "gpu_waits": found["data"] if chosen == "cuda" else None,
    }


def steps(quick: bool = False) -> list[Row]:
    """Rows of `where_time_goes`, its shares beside the rest: of the GPU where there is one, else of the CPU."""
    if torch.cuda.is_available():
        found = [
            fitting(lambda n, m=name, s=size: where_time_goes(m, s, n, None, "cuda", steps=12, epochs=6), batch)  # type: ignore[misc]
            for name, size, batch in GPU_SETUPS
            if not quick or name in QUICK
        ]
    else:
        found = [where_time_goes()]
    return [{**{key: value for key, value in row.items() if key != "shares"}, **row["shares"]} for row in found]
