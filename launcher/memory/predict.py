"""The device memory that a training step needs, foreseen without torch: from a table that the trainer made, or by
having the trainer trace what is not in it."""

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
from launcher.record.request import RunRequest
from trainer import __version__
from trainer.base.files import write_json

TABLE = Path(__file__).with_name("memory_table.csv")
CONTEXT = GIB
"""Allowance beside what is foreseen, bytes on each device: the CUDA context, the libraries' workspaces (cuDNN, cuBLAS)
and what an allocator loses to fragments."""
DRIVER = 3 * GIB // 4
"""The part of `CONTEXT` that no allocator sees: the CUDA context itself with the kernels that were loaded, 0.74 GiB on
an H100. What allocators took there beyond what is foreseen was 0.08 to 0.12 GiB, for steps of 6 to 24 GiB."""
METAL_SHARE = 2 / 3
"""The share of a Mac's unified memory that Metal recommends a process to use. From figures that owners of 16, 24 and
32 GiB report (larger Macs: 3/4). Not verified: no Mac was at hand."""
STRIDE = 32
"""Pixels: a size that every model of the manual's takes is a multiple of it."""
TRACE_SECONDS = 600


@dataclass(frozen=True)
class Need:
    """A training step's memory on one device as a line over the micro-batch; sizes in bytes, without `CONTEXT`."""

    fixed: int
    """Weights, optimiser state, and gradients that are kept from one micro-batch to the next."""
    per_image: int
    spared: int = 0
    """How much less it is where a step has one micro-batch only."""
    update: int = 0
    """The least that any step needs: that of the optimiser."""
    weights: int = 0
    """Parameters and buffers; as much again is what exchanging gradients among several devices needs."""
    kept: int = 0
    """What lies there beside the step, and is not in `at`: the weights' moving average, teachers."""

    def at(self, micro_batch: int, accumulates: bool = True) -> int:
        """Bytes with `micro_batch` images at a time; `accumulates` where a step has several of these."""
        line = self.fixed + self.per_image * micro_batch - (0 if accumulates else self.spared)
        return max(line, self.update)


def precision_of(setting: str, device: str) -> str:
    """The column of the table, fp32 or bf16, that `training.precision` means on a device (cuda or mps)."""
    if setting == "auto":
        return "bf16" if device == "cuda" else "fp32"
    return "bf16" if setting == "fp16" else setting  # two bytes a number, either way


@functools.cache
def _table() -> Mapping[tuple[str, str, str], Mapping[int, Mapping[str, int]]]:
    """(model, device, precision) → size → columns. Empty where there is no table."""
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
    """What the table says of timm's `model_name`; None for a model that is not in it, and outside its sizes.

    Between the table's sizes it is interpolated linearly in img_size², which the activations of convolutions follow
    (within 1 % of a trace at 448 and 640 px); models with attention have rows every `STRIDE` pixels.
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

    # SGD keeps one momentum a weight where AdamW keeps two moments; its update has no temporaries of that size.
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
    """The same for any model and size, and with `training.grad_checkpointing`: the trainer traces it (seconds), and
    what it found is kept in the folder `cache`. (None, why) where that cannot be done.
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
        return None, f"its trace failed: {' '.join(str(error).split())[:160]}"
    if estimate is None or not _is_whole(estimate):
        return None, " ".join(done.stderr.split()).removeprefix("error: ")[:300] or "its trace said nothing"
    with suppress(OSError):  # a folder that cannot be written to costs the next plan some seconds
        write_json(file, {"words": list(words), "found": estimate})
    return estimate, ""


def _is_whole(estimate: dict[str, Any]) -> bool:
    keys = ("fixed", "per_image", "spared", "update", "weights")
    return all(isinstance(estimate["precisions"][p][key], int) for p in ("fp32", "bf16") for key in keys)


def cache_folder() -> Path:
    """Where traces are kept: in the cache that runs share."""
    root = Path(os.environ.get("LAUNCHER_RUNS") or "runs")
    return Path(os.environ.get("CACHE_DIR") or root / ".cache").expanduser() / "memory"


def device_limit(request: RunRequest) -> int | None:
    """Bytes to which the run's allocator is capped on each device; None: not at all.

    A run that shares a GPU is held to what it was packed by, so that it takes nothing from those beside it.
    """
    shares = request.share_gpu and request.resources.gpus > 0
    if shares and not request.resources.gpu_memory and request.predicted_memory:
        return max(1, request.predicted_memory - DRIVER)  # the context is not the allocator's
    return request.resources.gpu_memory


def fitting_micro_batch(need: Need, budget: int, batch_size: int) -> int | None:
    """The largest divisor of `batch_size` with which a step fits `budget` (bytes, without `CONTEXT`); None where one
    image at a time does not. The effective batch stays."""
    divisors = (size for size in range(batch_size, 0, -1) if batch_size % size == 0)
    return next((size for size in divisors if need.at(size, accumulates=size < batch_size) <= budget), None)


def largest_size(model_name: str, precision: str, optimizer: str, budget: int, device: str = "cuda") -> int | None:
    """The largest multiple of `STRIDE` px in the table's range at which one image at a time fits `budget` (bytes,
    without `CONTEXT`); None where none does."""
    sizes = _table().get((model_name, device, precision), {})
    for size in range(max(sizes, default=0) // STRIDE * STRIDE, 0, -STRIDE):
        need = predict(model_name, size, precision, optimizer, device)
        if need is not None and need.at(1) <= budget:
            return size
    return None
