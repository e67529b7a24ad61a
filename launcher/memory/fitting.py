"""How training runs are cut to fit their devices: the memory foreseen, and the micro-batch that follows from it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from launcher.base.sizes import GIB
from launcher.host.machine import Machine
from launcher.memory import predict
from launcher.memory.predict import CONTEXT, DRIVER, METAL_SHARE, Need
from launcher.record.request import Resources
from trainer.config.schema import Config


@dataclass(frozen=True)
class Fit:
    """What is foreseen of a training run. Where nothing is, only `micro_batch` says something."""

    micro_batch: int
    """Images per forward pass, over all devices of the run."""
    predicted: int | None = None
    """Bytes on each device, `CONTEXT` included."""
    fits_on: dict[str, bool] = field(default_factory=dict)
    """Of the devices whose memory is known."""
    words: tuple[str, ...] = ()
    """Overrides that the run is given, so that it fits."""
    why_not: str | None = None
    notes: tuple[str, ...] = ()


def budgets(machine: Machine, cap: int | None = None) -> dict[str, int]:
    """What each device whose memory is known lets a run use, bytes, `CONTEXT` included. `cap`: the limit that the run
    sets its own allocator (`resources.gpu_memory`)."""
    known = {str(gpu.index): gpu.memory for gpu in machine.gpus}
    if not known and machine.mps:
        known = {"mps": int(machine.memory * METAL_SHARE)}
    capped = None if cap is None else cap + DRIVER  # the context is not the allocator's
    limits = {device: [size for size in (memory, capped) if size is not None] for device, memory in known.items()}
    return {device: min(sizes) for device, sizes in limits.items() if sizes}


class _Key(NamedTuple):
    """What decides the memory of a step, as `memory.predict` takes it."""

    model_name: str
    img_size: int
    precision: str
    optimizer: str
    device: str


def fit(config: Config, resources: Resources, machine: Machine) -> Fit:
    """Foresee a run, and cut its batch into the micro-batches with which it fits every device that can train it at all,
    unless the configuration names a micro-batch.

    What is not in the table is traced (seconds), but only where a device's memory is known. On a CPU nothing is
    foreseen.
    """
    training = config.training
    micro_batch = training.micro_batch or training.batch_size
    gpus = resources.gpus
    if not gpus or config.device == "cpu" or micro_batch % gpus or training.batch_size % gpus:
        return Fit(micro_batch)  # what does not divide among the devices, the trainer refuses in its own words
    limits = budgets(machine, resources.gpu_memory)
    device = "cuda" if machine.gpus else "mps"
    precision = predict.precision_of(training.precision, device)
    key = _Key(config.model.name, config.data.img_size, precision, training.optimizer, device)
    checkpoints = training.grad_checkpointing  # the table is without
    need, why = None if checkpoints else predict.predict(*key), ""
    if need is None and limits:
        need, why = predict.trace(*key, predict.cache_folder(), grad_checkpointing=checkpoints)
    if need is None:
        unknown = f"the memory of {key.model_name} at {key.img_size} px is not known: {why}"
        return Fit(micro_batch, notes=(unknown,) if why else ())
    average = need.weights if training.ema_decay is not None else 0
    need = replace(need, kept=average + teachers_bytes(training.teachers))
    return _cut(key, need, training.batch_size, training.micro_batch, gpus, limits, len(machine.devices))


def _cut(
    key: _Key, need: Need, batch: int, micro_batch: int | None, gpus: int, limits: dict[str, int], devices: int
) -> Fit:
    """`limits` are the budgets of those of the machine's `devices` whose memory is known; a run takes `gpus` of them,
    which share its batch."""
    # Several keep the gradients a second time, to exchange them.
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
        notes=(f"training.micro_batch={micro} is not predicted to fit everywhere; {fitting} is",)
        if micro > fitting
        else (),
    )


def _remedy(key: _Key, need: Need, room: int) -> str:
    """What could be trained in `room` bytes in place of a run that cannot."""
    smaller = predict.largest_size(key.model_name, key.precision, key.optimizer, room, key.device)
    if smaller is not None and smaller < key.img_size:
        return f"data.img_size={smaller} would fit"
    if need.update > room:
        return "no data.img_size would fit; take a smaller model, like model=resnet34"
    return "a smaller data.img_size or model=resnet34 might fit"


def ensemble_checkpoints(path: Path) -> list[Path]:
    """The checkpoints that an ensemble.json is made of, which it names from its own folder; none of any other file.

    One that cannot be read has none: the trainer says what is wrong with it.
    """
    if path.suffix != ".json":
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["members"]
        return [Path(os.path.abspath(path.parent / entry["checkpoint"])) for entry in entries]  # noqa: PTH100  # keeps links
    except (OSError, ValueError, KeyError, TypeError):
        return []


def teachers_bytes(names: Sequence[str]) -> int:
    """The bytes of the checkpoints, which are little more than their weights; 0 for what is not there."""
    paths = [Path(name).expanduser() for name in names]
    return sum(file.stat().st_size for path in paths for file in ensemble_checkpoints(path) or [path] if file.is_file())
