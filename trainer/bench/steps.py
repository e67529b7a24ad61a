"""Time of the parts of a run's steps, and code for both halves of the benchmark."""

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
"""Image size of a step on the CPU, pixels."""
GPU_SETUPS = (
    ("resnet34", 768, 32), ("efficientnet_b4", 768, 16), ("resnet50", 768, 32),
    ("convnext_base", 768, 16), ("swin_base_384", 384, 32), ("deit_base_384", 384, 32),
)  # fmt: skip
"""The manual's models (the trainer's names) with image and batch size on a GPU. The batch is halved until it fits."""
QUICK = ("resnet34", "efficientnet_b4")
PARTS = ("data", "transfer", "forward", "backward", "optimizer", "rest")
"""Parts of a step, in order: wait for the loader; copy to the device and mix; model and loss; gradients; update with
clipping; moving average, progress and checkpoints."""


@contextlib.contextmanager
def fast_kernels(on: str) -> Iterator[None]:
    """Use a run's fast kernels inside the block, and the old settings after it."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    device.allow_fast_kernels(on, device.MANY_STEPS)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before[1:]


def fitting(measured: Callable[[int], Row], batch: int) -> Row:
    """Try `batch` images, then half as many, and so on, until they fit into the device's memory."""
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
    """Set an environment variable inside the block, and restore it after the block."""
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
    """Records the end of each part of each step. On CUDA it uses events in the stream, to measure the device's work and
    not only the launch of kernels."""

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
        """Seconds of each recorded part, in order."""
        if self.on == "cuda":
            torch.cuda.synchronize()
        pairs = zip(self.marks, self.marks[1:], strict=False)
        if self.on == "cuda":
            return [(part, before.elapsed_time(mark) / 1000) for (_, before), (part, mark) in pairs]
        return [(part, mark - before) for (_, before), (part, mark) in pairs]


def whole_steps(spans: Iterable[tuple[str, float]]) -> list[dict[str, float]]:
    """Seconds of each of PARTS in each step. Without the first epoch, which fills caches, and without the first step of
    each epoch, which waits for its batch (epochs are short here). Validation is not a part of a step."""
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
    """Measure a real run with drawn documents over `epochs` epochs of at least `steps` steps: {model, size, batch,
    workers, device, seconds (per step), shares, gpu_waits}. `shares` has one share per entry of PARTS, with sum 1.
    `workers` None: the trainer's default.

    `gpu_waits` is the share of time in which a CUDA device waits for a batch: from the end of a step in its stream to
    the arrival of the next batch. It does not include gaps between kernels. None without CUDA. Not verified on a GPU.
    """
    chosen = device.choose(on)
    clock, stop = _Clock(chosen), Stop()
    per_class = max(10, -(-batch * steps * 5 // 16) + 1)  # for 4 classes; a fifth is for validation
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
    share = shares(counted)
    return {
        "model": name,
        "size": size,
        "batch": batch,
        "workers": cores.workers(workers, chosen),
        "device": chosen,
        "seconds": round(statistics.mean(sum(step.values()) for step in counted), 4),
        "shares": share,
        "gpu_waits": share["data"] if chosen == "cuda" else None,
    }


def steps(quick: bool = False) -> list[Row]:
    """Rows of `where_time_goes` with the shares as columns, for the GPU if there is one, else for the CPU."""
    if torch.cuda.is_available():
        rows = [
            fitting(lambda n, m=name, s=size: where_time_goes(m, s, n, None, "cuda", steps=12, epochs=6), batch)  # type: ignore[misc]
            for name, size, batch in GPU_SETUPS
            if not quick or name in QUICK
        ]
    else:
        rows = [where_time_goes()]
    return [{**{key: value for key, value in row.items() if key != "shares"}, **row["shares"]} for row in rows]
