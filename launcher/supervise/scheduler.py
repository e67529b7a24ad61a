"""The scheduler: which runs start on which devices. Pure functions of the queue and the free resources. No I/O, no
clock.

Runs start by priority; within a priority the longest starts first (Graham 1969), so that no long run is left at the
end. The first run that does not fit gets a reservation. Later runs start only if they cannot delay it: EASY backfill
(Lifka 1995; Mu'alem and Feitelson 2001), extended to runs of unknown duration, which may end at any moment or never.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from launcher.base.sizes import show_size

ROUNDING = 1e-9
"""Tolerance in cores for rounding errors in sums of fractions."""


@dataclass(frozen=True)
class Demand:
    """Needs of a run: devices, cores, host memory (bytes; 0: no limit), and runs that must have ended.

    `gpu_memory` is bytes on each of its devices, 0 if unknown. With `share` the run may use devices together with other
    runs that share, if the need of each is known. `cost` is the expected duration in any unit, only for comparison with
    other runs. `seconds` is the maximum duration, if known.
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
    seconds: float | None = None


@dataclass(frozen=True)
class Capacity:
    """Resources of a machine, and the largest number of runs at once (None: as many as fit).

    `device_memory` is bytes by device; the memory of a missing device is unknown.
    """

    devices: tuple[str, ...]
    cpus: float
    memory: int
    max_parallel: int | None = None
    device_memory: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Running:
    """A run in progress, its devices, and the seconds until it ends (None, or 0 and less: at any moment)."""

    demand: Demand
    devices: tuple[str, ...] = ()
    remaining: float | None = None


@dataclass(frozen=True)
class Start:
    """A run to start, and its devices."""

    name: str
    devices: tuple[str, ...]


def choose(
    queue: Sequence[Demand],
    running: Mapping[str, Running],
    over: Collection[str],
    capacity: Capacity,
    taken: Collection[str] = (),
) -> list[Start]:
    """The runs to start now, in the order of their start.

    `over` are the runs that have ended. `taken` are the devices that others hold for an unknown time. The first run
    that does not fit gets a reservation: a later run may start only if it ends before the reserved run could start, or
    uses nothing that the reserved run could wait for. So no run starves, and a lower priority passes a higher one only
    if it does not delay the reserved run. A run that still waits for other runs, or that this machine can never start
    (`why_never`), blocks no other run. A run that needs more cores or memory than the whole machine has may run alone,
    because otherwise it would never start.
    """
    active = [_plain(each) for each in running.values()]
    starts: list[Start] = []
    reserved: Demand | None = None
    refused = (
        set()
    )  # a demand that did not fit will not fit later in this pass: so thousands of equal runs are checked once
    for demand in order(queue):
        if any(need not in over for need in demand.needs):
            continue
        shape = (demand.gpus, demand.cpus, demand.memory, demand.gpu_memory, demand.share, demand.seconds)
        if shape in refused or why_never(demand, capacity):
            continue
        devices = _place(demand, active, capacity, taken, reserved)
        if devices is not None:
            new = _plain(Running(demand, devices, demand.seconds))
            if reserved is None or not _delays(new, reserved, active, capacity, taken):
                active.append(new)
                starts.append(Start(demand.name, devices))
                continue
        elif reserved is None:
            reserved = demand
        refused.add(shape)
    return starts


def order(queue: Iterable[Demand]) -> list[Demand]:
    """Higher priorities first; within a priority the largest `cost` first, then runs of unknown cost in their order."""
    return sorted(queue, key=lambda d: (-d.priority, d.cost is None, -(d.cost or 0)))


def why_never(demand: Demand, capacity: Capacity) -> str | None:
    """Why the run can never start on this machine, even if it is idle; None if it can."""
    large_enough = sum(_holds(device, demand, (), capacity) for device in capacity.devices)
    if demand.gpus <= large_enough:
        return None
    size = f" with {show_size(demand.gpu_memory)}" if demand.gpus <= len(capacity.devices) else ""
    return f"it needs {demand.gpus} GPU{size}; this machine has {large_enough}"


def _plain(run: Running) -> Running:
    """An overdue run has an unknown end: it may end at any moment."""
    known = run.remaining is not None and run.remaining > 0
    return run if known else Running(run.demand, run.devices)


def _holds(device: str, demand: Demand, holders: Sequence[Demand], capacity: Capacity) -> bool:
    """Whether the device has room for the run beside its present holders."""
    memory = capacity.device_memory.get(device)
    if memory is not None and demand.gpu_memory > memory:
        return False
    if not holders:
        return True
    everybody = [demand, *holders]
    packed = memory is not None and all(each.share and each.gpu_memory for each in everybody)
    return packed and sum(each.gpu_memory for each in everybody) <= (memory or 0)


def _usable(
    demand: Demand, active: Sequence[Running], capacity: Capacity, taken: Collection[str]
) -> dict[str, list[Demand]]:
    """The devices that have room for the run now, with their holders."""
    holders: dict[str, list[Demand]] = {device: [] for device in capacity.devices if device not in taken}
    for run in active:
        for device in run.devices:
            if device in holders:
                holders[device].append(run.demand)
    return {device: held for device, held in holders.items() if _holds(device, demand, held, capacity)}


@dataclass(frozen=True)
class _Free:
    """Free resources of the host: cores, bytes, and places by max_parallel."""

    cpus: float
    memory: int
    places: float

    def leaves(self, demand: Demand) -> bool:
        return demand.cpus <= self.cpus + ROUNDING and demand.memory <= self.memory and self.places >= 1


def _free(active: Sequence[Running], capacity: Capacity) -> _Free:
    return _Free(
        capacity.cpus - sum(run.demand.cpus for run in active),
        capacity.memory - sum(run.demand.memory for run in active),
        (capacity.max_parallel or math.inf) - len(active),
    )


def _place(
    demand: Demand,
    active: Sequence[Running],
    capacity: Capacity,
    taken: Collection[str],
    reserved: Demand | None = None,
) -> tuple[str, ...] | None:
    """The devices on which the run can start, or None if it cannot start.

    Best fit: first devices that the `reserved` run cannot use, then devices that are shared already, then those with
    the least memory left, so that the emptiest stay free. If memory does not matter, the first devices.
    """
    if active and not _free(active, capacity).leaves(demand):
        return None
    usable = _usable(demand, active, capacity, taken)
    if len(usable) < demand.gpus:
        return None

    def fit(device: str) -> tuple[bool, bool, float]:
        spared = reserved is not None and reserved.gpus > 0 and _holds(device, reserved, (), capacity)
        memory = capacity.device_memory.get(device, math.inf) if demand.gpu_memory else math.inf
        return spared, not usable[device], memory - sum(held.gpu_memory for held in usable[device])

    chosen = sorted(usable, key=fit)[: demand.gpus]
    return tuple(device for device in capacity.devices if device in chosen)


def _delays(
    new: Running, reserved: Demand, active: Sequence[Running], capacity: Capacity, taken: Collection[str]
) -> bool:
    """Whether `new`, if started now, could delay the reserved run.

    Checks each known end of a run in order. The earliest start of the reserved run assumes that all runs of unknown end
    have ended; its latest start assumes that none has. Between these two times `new` must have ended, or use nothing
    that the reserved run needs. If all ends are known the two are equal: the shadow time of EASY.
    """
    for moment in sorted({0.0, *(run.remaining for run in active if run.remaining is not None)}):
        if new.remaining is not None and new.remaining <= moment:
            return False
        known = [run for run in active if run.remaining is not None and run.remaining > moment]
        if _place(reserved, known, capacity, ()) is None:
            continue
        still = [run for run in active if run.remaining is None or run.remaining > moment]
        if not _spares(new, reserved, known, still, capacity, taken):
            return True
        if _place(reserved, still, capacity, taken) is not None:
            return False
    return False


def _spares(
    new: Running,
    reserved: Demand,
    known: Sequence[Running],
    still: Sequence[Running],
    capacity: Capacity,
    taken: Collection[str],
) -> bool:
    """Whether `new` uses nothing that the reserved run could wait for: of each resource nothing, or so little that the
    reserved run has enough beside it even if no run of `still` has ended.

    `known` are the runs of `still` that certainly have not ended.
    """
    if reserved.cpus > capacity.cpus + ROUNDING or reserved.memory > capacity.memory:
        return False  # it needs to run alone
    free = _free([*still, new], capacity)
    if new.demand.cpus and reserved.cpus > free.cpus + ROUNDING:
        return False
    if (new.demand.memory and reserved.memory > free.memory) or free.places < 1:
        return False
    if len(_usable(reserved, [*still, new], capacity, taken)) >= reserved.gpus:
        return True
    return not set(new.devices) & set(_usable(reserved, known, capacity, ()))
