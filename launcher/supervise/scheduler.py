"""What starts where: pure functions of the queue and of what is free. No I/O, no clock.

The queue is worked off by priority, and within one the longest first (Graham 1969), so that none is left to trail
behind. The first run that does not fit gets a reservation; those behind it start only where that cannot delay it: EASY
backfill (Lifka 1995; Mu'alem and Feitelson 2001), taken further to runs whose duration nobody knows, which may end at
any moment, or never.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from launcher.base.sizes import show_size

ROUNDING = 1e-9
"""Cores that are lost in sums of fractions."""


@dataclass(frozen=True)
class Demand:
    """What a run needs: devices, cores, host memory (bytes; 0 where none is named), runs to be over.

    `gpu_memory` is bytes on each of its devices, 0 where that is not known. With `share` it may be packed onto devices
    beside others that share, as far as everybody's need is known. `cost` is the expected duration in any unit, compared
    with that of other runs alone; `seconds` is how long it takes at most, as far as known.
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
    """What a machine has, and how many runs may be under way at once (None: as many as fit).

    `device_memory` is bytes by device; where a device is missing, its memory is not known.
    """

    devices: tuple[str, ...]
    cpus: float
    memory: int
    max_parallel: int | None = None
    device_memory: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Running:
    """A run under way, its devices, and in how many seconds it will end (None, or 0 and less: at any moment)."""

    demand: Demand
    devices: tuple[str, ...] = ()
    remaining: float | None = None


@dataclass(frozen=True)
class Start:
    """A run to start on these devices."""

    name: str
    devices: tuple[str, ...]


def choose(
    queue: Sequence[Demand],
    running: Mapping[str, Running],
    over: Collection[str],
    capacity: Capacity,
    taken: Collection[str] = (),
) -> list[Start]:
    """The runs to start now, in the order in which they are to start.

    `over` are the runs that have ended, `taken` the devices that others hold: nothing is known of when they let go.
    The first run that does not fit keeps what it needs: one behind it may start only where it ends before the reserved
    run could begin, or takes nothing that this could wait for. So none starves, and lower priorities pass higher ones
    only where they hold up none that has the reservation. A run whose needs are not over, or that this machine could
    never start (`why_never`), is not in the way of any. A demand beyond the whole machine's cores or memory may run
    alone: nothing else would ever start it.
    """
    active = [_plain(each) for each in running.values()]
    starts: list[Start] = []
    reserved: Demand | None = None
    refused = set()  # what did not fit fits less with more under way: thousands of equal runs are looked at once
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
    """Higher priorities first; within one the longest by `cost`, then those of unknown cost as they came."""
    return sorted(queue, key=lambda d: (-d.priority, d.cost is None, -(d.cost or 0)))


def why_never(demand: Demand, capacity: Capacity) -> str | None:
    """Why the run can never start on this machine, however empty; None where it can."""
    large_enough = sum(_holds(device, demand, (), capacity) for device in capacity.devices)
    if demand.gpus <= large_enough:
        return None
    size = f" with {show_size(demand.gpu_memory)}" if demand.gpus <= len(capacity.devices) else ""
    return f"it needs {demand.gpus} GPU{size}; this machine has {large_enough}"


def _plain(run: Running) -> Running:
    """Overdue is unknown: it may end at any moment."""
    known = run.remaining is not None and run.remaining > 0
    return run if known else Running(run.demand, run.devices)


def _holds(device: str, demand: Demand, holders: Sequence[Demand], capacity: Capacity) -> bool:
    """Whether the device can take the run beside those that hold it already."""
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
    """The devices that could take the run now, with those that hold them."""
    holders: dict[str, list[Demand]] = {device: [] for device in capacity.devices if device not in taken}
    for run in active:
        for device in run.devices:
            if device in holders:
                holders[device].append(run.demand)
    return {device: held for device, held in holders.items() if _holds(device, demand, held, capacity)}


@dataclass(frozen=True)
class _Free:
    """What is left of the host: cores, bytes, places by max_parallel."""

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
    """The devices on which the run can start, or None where it cannot.

    Best fit: devices of no use to the `reserved` run, then those that are shared already, then those that are left with
    the least memory, so that the emptiest stay whole. Where memory plays no part, the first.
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
    """Whether `new`, started now, could make the reserved run begin later than without it.

    Time is walked through at the ends that are known. From the first of them at which the reserved run could begin, if
    all of unknown end were over by then, to that at which it begins in any case, `new` must be over or in nobody's way.
    Where all ends are known these two are the same, the shadow time of EASY.
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
    """Whether `new` takes nothing for which the reserved run could wait: of each resource nothing at all, or so little
    that the reserved run has enough beside it though nobody of `still` has ended.

    `known` are those of `still` that will certainly not have ended.
    """
    if reserved.cpus > capacity.cpus + ROUNDING or reserved.memory > capacity.memory:
        return False  # it runs alone
    free = _free([*still, new], capacity)
    if new.demand.cpus and reserved.cpus > free.cpus + ROUNDING:
        return False
    if (new.demand.memory and reserved.memory > free.memory) or free.places < 1:
        return False
    if len(_usable(reserved, [*still, new], capacity, taken)) >= reserved.gpus:
        return True
    return not set(new.devices) & set(_usable(reserved, known, capacity, ()))
