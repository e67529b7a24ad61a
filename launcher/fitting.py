"""How training runs are cut to fit their devices: the memory foreseen, and the micro-batch that follows from it."""

from __future__ import annotations

from dataclasses import dataclass, field

from launcher import memory
from launcher.machine import Machine
from launcher.memory import CONTEXT, METAL_SHARE, Need
from launcher.runs import Resources
from launcher.sizes import GIB
from trainer.config import Config


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
    capped = None if cap is None else cap + CONTEXT  # the context is not the allocator's
    found = {device: [size for size in (there, capped) if size is not None] for device, there in known.items()}
    return {device: min(sizes) for device, sizes in found.items() if sizes}


def fit(config: Config, resources: Resources, machine: Machine) -> Fit:
    """Foresee a run, and cut its batch into the micro-batches with which it fits every device that can train it at all,
    unless the configuration names a micro-batch. What is not in the table is traced only where a device's memory is
    known. On a CPU nothing is foreseen."""
    training = config.training
    asked = training.micro_batch or training.batch_size
    if not resources.gpus or config.device == "cpu":
        return Fit(asked)
    there = budgets(machine, resources.gpu_memory)
    kind = "cuda" if machine.gpus else "mps"
    key = (config.model.name, config.data.img_size, memory.precision_of(training.precision, kind), training.optimizer)
    need, why = memory.predict(*key, kind), ""
    if need is None and there:
        need, why = memory.trace(*key, kind, memory.cache_folder())
    if need is None:
        return Fit(asked, notes=(f"the memory of {key[0]} at {key[1]} px is not known: {why}",) if why else ())
    devices = resources.gpus
    if asked % devices or training.batch_size % devices:
        return Fit(asked)  # the trainer refuses it in its own words
    # Each of several devices keeps the gradients a second time, to exchange them.
    shared = need.weights if devices > 1 else 0

    def total(micro: int) -> int:
        return need.at(micro // devices, micro < training.batch_size) + shared + CONTEXT

    room = {device: size - shared - CONTEXT for device, size in there.items()}
    cut = {d: memory.fitting_micro_batch(need, size, training.batch_size // devices) for d, size in room.items()}
    possible = [size * devices for size in cut.values() if size is not None]
    unknown = len(machine.devices) - len(there)
    micro = asked
    words: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    if possible and len(possible) + unknown >= devices:
        if training.micro_batch is None:
            micro = min(possible)
            words = (f"training.micro_batch={micro}",) if micro < training.batch_size else ()
        elif min(possible) < asked:
            notes = (f"training.micro_batch={asked} is not foreseen to fit everywhere; {min(possible)} is",)
    elif len(possible) + unknown < devices <= len(machine.devices):
        micro = devices
        why_not = _refusal(config, need, key, kind, micro, total(micro), max(there.values()), max(room.values()))
        return Fit(micro, total(micro), dict.fromkeys(there, False), why_not=why_not)
    return Fit(micro, total(micro), {d: total(micro) <= size for d, size in there.items()}, words, notes=notes)


def _refusal(
    config: Config, need: Need, key: tuple[str, int, str, str], kind: str, micro: int, total: int, there: int, room: int
) -> str:
    """Why the run cannot be, and what could."""
    name, size, precision, optimizer = key
    smaller = memory.largest_size(name, precision, optimizer, room, kind)
    if smaller is not None and smaller < size:
        hint = f"data.img_size={smaller} would fit"
    elif need.update > room:
        hint = "no data.img_size would fit; take a smaller model, like model=resnet34"
    else:
        hint = "a smaller data.img_size or model=resnet34 might fit"
    return f"needs {total / GIB:.1f} GiB at micro-batch {micro}, {there / GIB:.1f} GiB there; {hint}"
