"""The scheduler: which runs start on which devices. Pure functions of the queue and the free resources. No I/O, no
clock.

Runs start by priority; within a priority the longest starts first (Graham 1969), so that no long run is left at the
end. A run that does not fit lets later ones pass, at most PASSES times: then nothing passes it until it has started.
No place is kept for it before that: reservations with backfill (EASY, Lifka 1995) were measured to take longer, see
docs/speed.md.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from launcher.base.sizes import show_size

PASSES = 100
"""How many starts may pass a waiting run."""
ROUNDING = 1e-9
"""Tolerance in cores for rounding errors in sums of fractions."""


@dataclass(frozen=True)
class Demand:
    """Needs of a run: devices, cores, host memory (bytes; 0: no limit), and runs that must have ended.

    `gpu_memory` is bytes on each of its devices, 0 if unknown. With `share` the run may use devices together with other
    runs that share, if the need of each is known. `cost` is the expected duration in any unit, only for comparison with
    other runs.
    """

    name: str
    gpus: int = 0
    cpus: float = 0
    memory: int = 0
    needs: tuple[str, ...] = ()
    gpu_memory: int = 0
    share: bool = False
    priority: int = 0
    cost: float | None = None


@dataclass(frozen=True)
class Capacity:
    """Resources of a machine, and the largest number of runs at once (None: as many as fit).

    `device_memory` is bytes by device; the memory of a missing device is unknown. `instances` are the devices that are
    MIG instances: CUDA can use one of them and no other device beside it, so a run on several devices gets none.
    """

    devices: tuple[str, ...]
    cpus: float
    memory: int
    max_parallel: int | None = None
    device_memory: Mapping[str, int] = field(default_factory=dict)
    instances: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Others:
    """Resources that runs of other submissions hold, for an unknown time."""

    devices: frozenset[str] = frozenset()
    cpus: float = 0
    memory: int = 0


NOBODY = Others()


@dataclass(frozen=True)
class Running:
    """A run in progress, and its devices."""

    demand: Demand
    devices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Start:
    """A run to start, its devices, and the first waiting run that it passes."""

    name: str
    devices: tuple[str, ...]
    passes: str | None = None


def choose(
    queue: Iterable[Demand],
    running: Mapping[str, Running],
    over: Collection[str],
    capacity: Capacity,
    others: Others = NOBODY,
    passed: Mapping[str, int] | None = None,
) -> list[Start]:
    """The runs to start now, in the order of their start.

    `over` are the runs that have ended. `passed` counts, for each waiting run, the starts that have passed it. If the
    first waiting run was passed PASSES times, later runs do not start, so it starts after finitely many ends. A run
    that waits for other runs or for `others`, or that this machine can never start (`why_never`), stops no other run.
    A run that needs more cores or memory than the whole machine has may run alone, because otherwise it would never
    start.
    """
    active = list(running.values())
    starts: list[Start] = []
    first: str | None = None
    count = 0
    # A demand that did not fit will not fit later in this pass: so thousands of equal runs are checked once.
    refused = set()
    for demand in order(queue):
        if any(need not in over for need in demand.needs):
            continue
        shape = (demand.gpus, demand.cpus, demand.memory, demand.gpu_memory, demand.share)
        if shape in refused or why_never(demand, capacity):
            continue
        devices = place(demand, active, capacity, others)
        if devices is not None:
            active.append(Running(demand, devices))
            starts.append(Start(demand.name, devices, first))
            count += 1
        else:
            refused.add(shape)
            if first is None and place(demand, (), capacity, others) is not None:
                first, count = demand.name, (passed or {}).get(demand.name, 0)
        if first is not None and count >= PASSES:
            break
    return starts


def order(queue: Iterable[Demand]) -> list[Demand]:
    """Higher priorities first; within a priority the largest `cost` first, then runs of unknown cost in their order."""
    return sorted(queue, key=lambda d: (-d.priority, d.cost is None, -(d.cost or 0)))


def why_never(demand: Demand, capacity: Capacity) -> str | None:
    """Why the run can never start on this machine, even if it is idle; None if it can."""
    large_enough = sum(holds(device, demand, capacity) for device in capacity.devices)
    if demand.gpus <= large_enough:
        return None
    whole = len([device for device in capacity.devices if demand.gpus <= 1 or device not in capacity.instances])
    size = f" with {show_size(demand.gpu_memory)}" if demand.gpus <= whole else ""
    what = "whole GPUs (several MIG instances cannot be used together)" if whole < len(capacity.devices) else "GPU"
    return f"it needs {demand.gpus} {what}{size}; this machine has {large_enough}"


def place(
    demand: Demand, active: Sequence[Running], capacity: Capacity, others: Others = NOBODY
) -> tuple[str, ...] | None:
    """The devices on which the run can start beside `active`, or None if it cannot start.

    Best fit: first devices that are shared already, then those with the least memory left, so that the emptiest stay
    free. If memory does not matter, the first devices.
    """
    alone = not (active or others.cpus or others.memory)
    if not alone and not _leaves(demand, active, capacity, others):
        return None
    usable = _usable(demand, active, capacity, others)
    if len(usable) < demand.gpus:
        return None

    def fit(device: str) -> tuple[bool, float]:
        memory = capacity.device_memory.get(device, math.inf) if demand.gpu_memory else math.inf
        return not usable[device], memory - sum(held.gpu_memory for held in usable[device])

    chosen = sorted(usable, key=fit)[: demand.gpus]
    return tuple(device for device in capacity.devices if device in chosen)


def _leaves(demand: Demand, active: Sequence[Running], capacity: Capacity, others: Others) -> bool:
    """Whether the cores, the host memory and `max_parallel` leave room for the run."""
    cpus = capacity.cpus - others.cpus - sum(run.demand.cpus for run in active)
    memory = capacity.memory - others.memory - sum(run.demand.memory for run in active)
    places = (capacity.max_parallel or math.inf) - len(active)
    return demand.cpus <= cpus + ROUNDING and demand.memory <= memory and places >= 1


def holds(device: str, demand: Demand, capacity: Capacity, holders: Sequence[Demand] = ()) -> bool:
    """Whether the device has room for the run beside its present holders."""
    if demand.gpus > 1 and device in capacity.instances:
        return False
    memory = capacity.device_memory.get(device)
    if memory is not None and demand.gpu_memory > memory:
        return False
    if not holders:
        return True
    everybody = [demand, *holders]
    packed = memory is not None and all(each.share and each.gpu_memory for each in everybody)
    return packed and sum(each.gpu_memory for each in everybody) <= (memory or 0)


def _usable(demand: Demand, active: Sequence[Running], capacity: Capacity, others: Others) -> dict[str, list[Demand]]:
    """The devices that have room for the run now, with their holders."""
    holders: dict[str, list[Demand]] = {device: [] for device in capacity.devices if device not in others.devices}
    for run in active:
        for device in run.devices:
            if device in holders:
                holders[device].append(run.demand)
    return {device: held for device, held in holders.items() if holds(device, demand, capacity, held)}
