"""Predict the device memory of a training step without torch: from a table that the trainer made. If the table has no
entry, the trainer traces a step."""

from __future__ import annotations

import csv
import functools
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.base.sizes import GIB
from launcher.record.find import own_cache
from launcher.record.request import RunRequest
from trainer import __version__
from trainer.base.brief import in_brief
from trainer.base.files import write_json

TABLE = Path(__file__).with_name("memory_table.csv")
CONTEXT = GIB
"""Allowance in bytes on each device, added to the prediction: the CUDA context, the workspaces of cuDNN and cuBLAS, and
fragmentation in the allocator."""
DRIVER = 3 * GIB // 4
"""The part of `CONTEXT` outside any allocator: the CUDA context with its loaded kernels, 0.74 GiB on an H100. The
allocators used 0.08 to 0.12 GiB more there than predicted, for steps of 6 to 24 GiB."""
METAL_SHARE = 2 / 3
"""The share of a Mac's unified memory that Metal recommends for a process. From figures that owners of 16, 24 and
32 GiB report (larger Macs: 3/4). Not verified: we had no Mac."""
STRIDE = 32
"""Pixels. Every model of the manual accepts the multiples of this size."""
TRACE_SECONDS = 600


@dataclass(frozen=True)
class Need:
    """A training step's memory on one device as a linear function of the micro-batch; in bytes, without `CONTEXT`."""

    fixed: int
    """Weights, optimizer state, and gradients that stay from one micro-batch to the next."""
    per_image: int
    spared: int = 0
    """How much less a step needs if it has only one micro-batch."""
    update: int = 0
    """The minimum of any step: the memory of the optimizer step."""
    weights: int = 0
    """Parameters and buffers. The exchange of gradients among several devices needs the same amount again."""
    kept: int = 0
    """Memory beside the step, not included in `at`: the moving average of the weights, and teachers."""

    def at(self, micro_batch: int, accumulates: bool = True) -> int:
        """Bytes with `micro_batch` images at a time. `accumulates`: a step has several micro-batches."""
        line = self.fixed + self.per_image * micro_batch - (0 if accumulates else self.spared)
        return max(line, self.update)


def precision_of(setting: str, device: str) -> str:
    """The column of the table, fp32 or bf16, that `training.precision` means on a device (cuda or mps)."""
    if setting == "auto":
        return "bf16" if device == "cuda" else "fp32"
    return "bf16" if setting == "fp16" else setting  # both use two bytes per number


@functools.cache
def _table() -> Mapping[tuple[str, str, str], Mapping[int, Mapping[str, int]]]:
    """(model, device, precision) → size → columns. Empty without a table."""
    table: dict[tuple[str, str, str], dict[int, dict[str, int]]] = {}
    with suppress(FileNotFoundError), TABLE.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            numbers = {key: int(value) for key, value in row.items() if key.endswith("_bytes")}
            table.setdefault((row["model"], row["device"], row["precision"]), {})[int(row["img_size"])] = numbers
    return table


@functools.cache
def predict(
    model_name: str, img_size: int, precision: str, optimizer: str = "adamw", device: str = "cuda"
) -> Need | None:
    """The table's figures for timm's `model_name`; None if the table does not have the model or the size.

    Between the table's sizes the figures are interpolated linearly in img_size², as the activations of convolutions
    grow (within 1 % of a trace at 448 and 640 px). Models with attention have rows every `STRIDE` pixels.
    """
    rows = _table().get((model_name, device, precision), {})
    below = max((size for size in rows if size <= img_size), default=None)
    above = min((size for size in rows if size >= img_size), default=None)
    if below is None or above is None or optimizer not in ("adamw", "sgd"):
        return None
    share = (img_size**2 - below**2) / (above**2 - below**2) if above > below else 0.0

    def at(column: str) -> int:
        low, high = rows[below][f"{column}_bytes"], rows[above][f"{column}_bytes"]
        return round(low + (high - low) * share)

    # SGD keeps one momentum per weight, AdamW two moments. SGD's update has no temporaries of that size.
    less = at("optimizer") // 2 if optimizer == "sgd" else 0
    return Need(at("fixed") - less, at("per_image"), at("spared"), at("update") - less, at("weights"))


def trace(
    model_name: str,
    img_size: int,
    precision: str,
    optimizer: str,
    device: str,
    cache: Path,
    grad_checkpointing: bool = False,
) -> tuple[Need | None, str]:
    """The same for any model and size, also with `training.grad_checkpointing`. The trainer traces a step (takes
    seconds), and the folder `cache` keeps the result. Returns (None, reason) on failure.
    """
    words = [
        f"model.name={model_name}", f"data.img_size={img_size}", f"training.optimizer={optimizer}", f"device={device}"
    ]  # fmt: skip
    if grad_checkpointing:
        words.append("training.grad_checkpointing=true")
    name = hashlib.sha256(json.dumps([__version__, *words]).encode()).hexdigest()[:24]
    estimate, why = _traced(tuple(words), cache / f"{name}.json")
    if estimate is None:
        return None, why
    line = estimate["precisions"][precision]
    return Need(line["fixed"], line["per_image"], line["spared"], line["update"], line["weights"]), ""


@functools.cache
def _traced(words: tuple[str, ...], file: Path) -> tuple[dict[str, Any] | None, str]:
    with suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["words"] == list(words) and _is_whole(content["found"]):
            return content["found"], ""
    if any(importlib.util.find_spec(package) is None for package in ("torch", "timm")):
        return None, "torch is not installed here"
    command = [sys.executable, "-m", "trainer", "estimate", *words, "--json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TRACE_SECONDS)
        estimate = json.loads(done.stdout) if done.returncode == 0 else None
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return None, f"its trace failed: {in_brief(str(error), 160)}"
    if estimate is None or not _is_whole(estimate):
        return None, in_brief(done.stderr.removeprefix("error: "), 300) or "its trace failed without a message"
    with suppress(OSError):  # if the folder is not writable, the next plan takes some seconds longer
        write_json(file, {"words": list(words), "found": estimate})
    return estimate, ""


def _is_whole(estimate: dict[str, Any]) -> bool:
    keys = ("fixed", "per_image", "spared", "update", "weights")
    return all(isinstance(estimate["precisions"][p][key], int) for p in ("fp32", "bf16") for key in keys)


def cache_folder(runs_root: Path | None = None) -> Path:
    """The folder for traces: the launcher's own, which no run can write to. `runs_root` None: the default one."""
    return own_cache(runs_root or Path(os.environ.get("LAUNCHER_RUNS") or "runs")) / "memory"


def device_limit(request: RunRequest) -> int | None:
    """Limit of the run's allocator on each device in bytes; None: no limit.

    A run that shares a GPU is limited to its predicted memory, so that the other runs keep theirs.
    """
    shares = request.share_gpu and request.resources.gpus > 0
    if shares and not request.resources.gpu_memory and request.predicted_memory:
        return max(1, request.predicted_memory - DRIVER)  # the context is not the allocator's
    return request.resources.gpu_memory


def fitting_micro_batch(need: Need, budget: int, batch_size: int) -> int | None:
    """The largest divisor of `batch_size` with which a step fits `budget` (bytes, without `CONTEXT`). None if one image
    at a time does not fit. The effective batch stays the same."""
    divisors = (size for size in range(batch_size, 0, -1) if batch_size % size == 0)
    return next((size for size in divisors if need.at(size, accumulates=size < batch_size) <= budget), None)


def largest_size(model_name: str, precision: str, optimizer: str, budget: int, device: str = "cuda") -> int | None:
    """The largest multiple of `STRIDE` px in the table's range at which one image at a time fits `budget` (bytes,
    without `CONTEXT`); None if no size fits."""
    sizes = _table().get((model_name, device, precision), {})
    for size in range(max(sizes, default=0) // STRIDE * STRIDE, 0, -STRIDE):
        need = predict(model_name, size, precision, optimizer, device)
        if need is not None and need.at(1) <= budget:
            return size
    return None
