"""Fit training runs to their devices: predict the memory, and choose the micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from launcher.base.sizes import GIB
from launcher.host.machine import Machine
from launcher.memory import predict
from launcher.memory.predict import CONTEXT, DRIVER, METAL_SHARE, Need
from launcher.record.request import Resources
from launcher.record.trainer_figures import ensemble_members
from trainer.config.schema import Config


@dataclass(frozen=True)
class Fit:
    """The prediction for a training run. Without a prediction only `micro_batch` is set."""

    micro_batch: int
    """Images per forward pass, over all devices of the run."""
    predicted: int | None = None
    """Bytes on each device, `CONTEXT` included."""
    fits_on: dict[str, bool] = field(default_factory=dict)
    """Whether it fits, by device. Only devices of known memory."""
    words: tuple[str, ...] = ()
    """Overrides that make the run fit."""
    why_not: str | None = None
    notes: tuple[str, ...] = ()


def budgets(machine: Machine, cap: int | None = None) -> dict[str, int]:
    """Bytes that a run may use on each device of known memory, `CONTEXT` included. `cap`: the limit of the run's own
    allocator in bytes (`resources.gpu_memory`)."""
    known = {gpu.label: gpu.memory for gpu in machine.gpus}
    if not known and machine.mps:
        known = {"mps": int(machine.memory * METAL_SHARE)}
    capped = None if cap is None else cap + DRIVER  # the context is outside the allocator
    limits = {device: [size for size in (memory, capped) if size is not None] for device, memory in known.items()}
    return {device: min(sizes) for device, sizes in limits.items() if sizes}


class _Key(NamedTuple):
    """The settings that decide the memory of a step; arguments of `memory.predict`."""

    model_name: str
    img_size: int
    precision: str
    optimizer: str
    device: str


def fit(config: Config, resources: Resources, machine: Machine, runs_root: Path | None = None) -> Fit:
    """Predict a run's memory, and choose the micro-batch that fits every device that can train the run at all, unless
    the configuration sets a micro-batch.

    If the table has no entry, traces a step (takes seconds), but only if a device's memory is known. Predicts nothing
    on a CPU. `runs_root` (None: the default one) keeps the trace for later.
    """
    training = config.training
    micro_batch = training.micro_batch or training.batch_size
    gpus = resources.gpus
    if not gpus or config.device == "cpu" or micro_batch % gpus or training.batch_size % gpus:
        return Fit(micro_batch)  # the trainer refuses a batch that the devices cannot divide evenly
    machine = machine.for_run_on(gpus)
    limits = budgets(machine, resources.gpu_memory)
    device = "cuda" if machine.gpus else "mps"
    precision = predict.precision_of(training.precision, device)
    key = _Key(config.model.name, config.data.img_size, precision, training.optimizer, device)
    checkpoints = training.grad_checkpointing  # the table has no figures for it
    need, why = None if checkpoints else predict.predict(*key), ""
    if need is None and limits:
        need, why = predict.trace(*key, predict.cache_folder(runs_root), grad_checkpointing=checkpoints)
    if need is None:
        unknown = f"the memory of {key.model_name} at {key.img_size} px is not known: {why}"
        return Fit(micro_batch, notes=(unknown,) if why else ())
    average = need.weights if training.ema_decay is not None else 0
    need = replace(need, kept=average + teachers_bytes(training.teachers))
    return _cut(key, need, training.batch_size, training.micro_batch, gpus, limits, len(machine.devices))


def _cut(
    key: _Key, need: Need, batch: int, micro_batch: int | None, gpus: int, limits: dict[str, int], devices: int
) -> Fit:
    """`limits` are the budgets in bytes of the machine's `devices` of known memory. A run uses `gpus` of them, which
    divide its batch."""
    # Several devices keep a second copy of the gradients, for the exchange.
    beside = CONTEXT + need.kept + (need.weights if gpus > 1 else 0)

    def total(micro: int) -> int:
        return need.at(micro // gpus, micro < batch) + beside

    cut = {d: predict.fitting_micro_batch(need, size - beside, batch // gpus) for d, size in limits.items()}
    possible = [size * gpus for size in cut.values() if size is not None]
    unknown = devices - len(limits)
    if len(possible) + unknown < gpus <= devices:
        decides = sorted(limits.values(), reverse=True)[gpus - 1 - unknown]
        smaller = _remedy(key, need, decides - beside)
        why = f"needs {total(gpus) / GIB:.1f} GiB at micro-batch {gpus}, {decides / GIB:.1f} GiB there; {smaller}"
        return Fit(gpus, total(gpus), {d: size is not None for d, size in cut.items()}, why_not=why)
    fitting = min(possible, default=batch)
    micro = micro_batch or fitting
    return Fit(
        micro,
        total(micro),
        {d: total(micro) <= size for d, size in limits.items()},
        words=(f"training.micro_batch={micro}",) if micro < batch and micro_batch is None else (),
        notes=(f"training.micro_batch={micro} is not predicted to fit every device; {fitting} is",)
        if micro > fitting
        else (),
    )


def _remedy(key: _Key, need: Need, room: int) -> str:
    """A proposal that fits `room` bytes, instead of the run that does not."""
    smaller = predict.largest_size(key.model_name, key.precision, key.optimizer, room, key.device)
    if smaller is not None and smaller < key.img_size:
        return f"data.img_size={smaller} would fit"
    if need.update > room:
        return "no data.img_size would fit; take a smaller model, like model=resnet34"
    return "a smaller data.img_size or model=resnet34 might fit"


def teachers_bytes(names: Sequence[str]) -> int:
    """Sum of the checkpoints' sizes in bytes, about the size of their weights. A missing file counts as 0."""
    paths = [Path(name).expanduser() for name in names]
    return sum(file.stat().st_size for path in paths for file in ensemble_members(path) or [path] if file.is_file())
