"""What starts where: pure functions of the queue and of what is free. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Demand:
    """What a run needs: devices to itself, cores, host memory (bytes; 0 where none is named), runs to be over."""

    name: str
    gpus: int = 0
    cpus: float = 0
    memory: int = 0
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Capacity:
    """What a machine has, and how many runs may be under way at once (None: as many as fit)."""

    devices: tuple[str, ...]
    cpus: float
    memory: int
    max_parallel: int | None = None


@dataclass(frozen=True)
class Start:
    """A run to start on these devices."""

    name: str
    devices: tuple[str, ...]


def choose(
    queue: Sequence[Demand],
    running: Mapping[str, tuple[Demand, tuple[str, ...]]],
    over: Collection[str],
    capacity: Capacity,
    taken: Collection[str] = (),
) -> list[Start]:
    """The runs to start now, in the order of the queue.

    `running` has the demand and devices of each run under way, `over` the runs that have ended, `taken` the devices
    that others hold. A run that fits nowhere yet lets none behind it pass, so that it does not starve; a run whose
    needs are not over is not in the way of any. A demand beyond the whole machine may run alone: nothing else would
    ever start it.
    """
    free = [d for d in capacity.devices if d not in taken and not any(d in held for _, held in running.values())]
    cpus = capacity.cpus - sum(demand.cpus for demand, _ in running.values())
    memory = capacity.memory - sum(demand.memory for demand, _ in running.values())
    places = (capacity.max_parallel or len(running) + len(queue)) - len(running)
    alone = not running
    starts: list[Start] = []
    for demand in queue:
        if any(need not in over for need in demand.needs):
            continue
        fits = demand.cpus <= cpus + 1e-9 and demand.memory <= memory
        if places < 1 or demand.gpus > len(free) or not (fits or alone):
            break
        starts.append(Start(demand.name, tuple(free[: demand.gpus])))
        free, alone = free[demand.gpus :], False
        cpus, memory, places = cpus - demand.cpus, memory - demand.memory, places - 1
    return starts
