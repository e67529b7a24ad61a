"""`python -m tests.simulate_scheduler`, part of `make bench`: how long sets of runs take under the scheduler, over the
least time that any scheduler could need, beside first-in-first-out. Simulated time alone: the same figures anywhere.
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import itertools
import json
import random
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from launcher.supervise.durations import KMACS
from launcher.supervise.scheduler import Capacity, Demand, Running, Start, choose

GIB = 2**30


@dataclass(frozen=True)
class Job:
    """A run to simulate: what the scheduler is told, how long it really takes (seconds), and when it is queued."""

    demand: Demand
    duration: float
    arrival: float = 0.0


Policy = Callable[[Sequence[Demand], dict[str, Running], set[str], Capacity, Counter[str]], list[Start]]
Watcher = Callable[[float, dict[str, Running]], None]


def scheduler(
    queue: Sequence[Demand], running: dict[str, Running], over: set[str], capacity: Capacity, passed: Counter[str]
) -> list[Start]:
    """The launcher's."""
    return choose(queue, running, over, capacity, passed=passed)


def first_in_first_out(
    queue: Sequence[Demand], running: dict[str, Running], over: set[str], capacity: Capacity, passed: Counter[str]
) -> list[Start]:
    """In the order of the queue; a run that does not fit lets none pass. Placed as the scheduler places."""
    active, starts = dict(running), list[Start]()
    for demand in queue:
        found = choose([demand], active, over, capacity)
        if not found:
            break
        starts += found
        active[demand.name] = Running(demand, found[0].devices)
    return starts


def simulate(
    jobs: Sequence[Job], capacity: Capacity, policy: Policy = scheduler, watch: Watcher | None = None
) -> dict[str, tuple[float, float]]:
    """Begin and end (seconds) of each run. `watch` is called whenever runs have begun or ended."""
    by_name = {job.demand.name: job for job in jobs}
    arrivals = sorted(jobs, key=lambda job: job.arrival)
    waiting: list[Demand] = []
    running: dict[str, Running] = {}
    spans: dict[str, tuple[float, float]] = {}
    ends: list[tuple[float, str]] = []
    over: set[str] = set()
    passed: Counter[str] = Counter()
    now = 0.0
    while arrivals or ends or waiting:
        while arrivals and arrivals[0].arrival <= now:
            waiting.append(arrivals.pop(0).demand)
        for start in policy(waiting, running, over, capacity, passed):
            job = by_name[start.name]
            waiting.remove(job.demand)
            running[start.name] = Running(job.demand, start.devices)
            spans[start.name] = (now, now + job.duration)
            heapq.heappush(ends, (now + job.duration, start.name))
            passed.update([start.passes] if start.passes else [])
        if watch is not None:
            watch(now, running)
        moments = [ends[0][0]] if ends else []
        moments += [arrivals[0].arrival] if arrivals else []
        if not moments:
            break  # what still waits can never start
        now = min(moments)
        while ends and ends[0][0] <= now:
            _, name = heapq.heappop(ends)
            over.add(name)
            del running[name]
    return spans


def random_set(seed: int) -> tuple[list[Job], Capacity]:
    """A machine of 1 to 8 GPUs of 24 GiB, 8 cores and 64 GiB each, and 8 to 80 runs, queued at once, that fit it."""
    chance = random.Random(seed)
    count = chance.choice([1, 2, 4, 8])
    devices = tuple(map(str, range(count)))
    capacity = Capacity(devices, 8.0 * count, 64 * GIB * count, device_memory=dict.fromkeys(devices, 24 * GIB))
    jobs = []
    for number in range(chance.randint(8, 80)):
        duration = min(8 * 3600.0, chance.lognormvariate(7.5, 1.0))  # median half an hour
        gpus = min(count, chance.choices([0, 1, 2, 4, 8], [10, 70, 12, 5, 3])[0])
        share = gpus == 1 and chance.random() < 0.4
        demand = Demand(
            f"{number:03d}",
            gpus=gpus,
            cpus=chance.choice([1, 2, 4]) if share or not gpus else chance.choice([4, 8]) * gpus,
            memory=chance.choice([4, 8, 16, 32, 48]) * GIB * max(1, gpus),
            gpu_memory=chance.randint(2, 20) * GIB if gpus else 0,
            share=share,
            cost=duration,
        )
        jobs.append(Job(demand, duration))
    return jobs, capacity


NEEDS = dict(zip(KMACS, (4.4, 8.9, 15.0, 30.0, 22.0, 14.0), strict=True))
"""GiB of a run of each model."""


def job_file_set(seed: int) -> tuple[list[Job], Capacity]:
    """What one job file can say: equal resources for all runs, memory by model, `share_gpu`, priorities, `max_parallel`;
    on 1 to 8 GPUs of 24, 48 or 80 GiB. `cost` is what the launcher would expect, as right as a factor of 1.35 or so."""
    chance = random.Random(seed + 10**6)
    count, size = chance.choice([1, 2, 4, 8]), chance.choice([24, 48, 80])
    devices = tuple(map(str, range(count)))
    at_once = chance.choice([None, None, None, 2, 6])
    capacity = Capacity(devices, 8.0 * count, 64 * GIB * count, at_once, dict.fromkeys(devices, size * GIB))
    share = chance.random() < 0.5
    gpus = 1 if share or count == 1 else chance.choices([1, 2], [5, 1])[0]
    cpus = 4.0 if share else 8.0 * gpus
    if chance.random() < 0.3:
        cpus = float(chance.choice([1, 2, 4, 6]))
    memory = chance.choice([0, 0, 8, 16, 24]) * GIB
    models = chance.sample(sorted(KMACS), chance.randint(1, 6))
    each = chance.randint(1, max(1, 60 // len(models)))
    urgent = chance.random() < 0.3
    jobs = []
    for model in models:
        need = int(min(NEEDS[model] * chance.choice([0.5, 1, 1.5]), size - 1) * GIB)
        for _ in range(each):
            cost = 20.0 * chance.choice([384, 768]) ** 2 * KMACS[model]
            demand = Demand(
                f"{len(jobs):03d}",
                gpus=gpus,
                cpus=cpus,
                memory=memory,
                gpu_memory=need,
                share=share,
                priority=chance.choice([0, 0, 0, 10]) if urgent else 0,
                cost=cost,
            )
            duration = min(8 * 3600.0, cost / (20 * 768**2 * 100) * 3600 * chance.lognormvariate(0, 0.3))
            jobs.append(Job(demand, duration))
    return jobs, capacity


SETS = {"random sets": random_set, "what a job file can say": job_file_set}


def lower_bound(jobs: Sequence[Job], capacity: Capacity) -> float:
    """No schedule is shorter: the longest run, and the work on each resource over what there is of it."""
    work = {"cpus": 0.0, "memory": 0.0, "devices": 0.0, "places": 0.0}
    for job in jobs:
        demand = job.demand
        work["cpus"] += job.duration * demand.cpus / capacity.cpus
        work["memory"] += job.duration * demand.memory / capacity.memory
        size = max(capacity.device_memory.values(), default=1)
        part = demand.gpu_memory / size if demand.share else 1.0
        work["devices"] += job.duration * demand.gpus * part / max(1, len(capacity.devices))
        work["places"] += job.duration / (capacity.max_parallel or len(jobs))
    return max(*work.values(), *(job.duration for job in jobs))


def told(jobs: Sequence[Job], how: str, seed: int) -> list[Job]:
    """The jobs with durations as the scheduler knows them: `known`, `unknown`, `guessed` (up to twice, or half), or
    `estimated`: as in the set."""
    chance = random.Random(seed)

    def guess(job: Job) -> float | None:
        factor = 2 ** chance.uniform(-1, 1)
        answers = {"known": job.duration, "unknown": None, "guessed": job.duration * factor}
        return {**answers, "estimated": job.demand.cost}[how]

    guesses = [guess(job) for job in jobs]
    return [
        dataclasses.replace(job, demand=dataclasses.replace(job.demand, cost=value))
        for job, value in zip(jobs, guesses, strict=True)
    ]


POLICIES: dict[str, tuple[Policy, str]] = {
    "first in, first out": (first_in_first_out, "unknown"),
    "scheduler, durations unknown": (scheduler, "unknown"),
    "scheduler, guessed within a factor of 2": (scheduler, "guessed"),
    "scheduler, durations known": (scheduler, "known"),
    "scheduler, order estimated": (scheduler, "estimated"),
}


def ratios(seeds: Sequence[int], make: Callable[[int], tuple[list[Job], Capacity]]) -> dict[str, list[float]]:
    """Makespan over the lower bound, of each policy on the set of each seed."""
    found: dict[str, list[float]] = {name: [] for name in POLICIES}
    for seed, (name, (policy, how)) in itertools.product(seeds, POLICIES.items()):
        jobs, capacity = make(seed)
        spans = simulate(told(jobs, how, seed), capacity, policy)
        assert len(spans) == len(jobs)
        found[name].append(max(end for _, end in spans.values()) / lower_bound(jobs, capacity))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=1000, help="job sets of each family (default: 1000)")
    parser.add_argument("--json", action="store_true", help="print the means as JSON")
    options = parser.parse_args()
    found = {family: ratios(range(options.sets), make) for family, make in SETS.items()}
    if options.json:
        means = {
            family: {name: round(statistics.mean(values), 3) for name, values in by_policy.items()}
            for family, by_policy in found.items()
        }
        print(json.dumps({"sets": options.sets, "makespan_over_lower_bound": means}, indent=2))
        return
    print(f"makespan over max(work / capacity, longest run), {options.sets} job sets of each family")
    for family, by_policy in found.items():
        print(f"{family:42}{'mean':>8}{'median':>8}{'95 %':>8}{'worst':>8}")
        for name, values in by_policy.items():
            percentile = sorted(values)[min(options.sets - 1, int(0.95 * options.sets))]
            shown = (statistics.mean(values), statistics.median(values), percentile, max(values))
            print(f"  {name:40}" + "".join(f"{value:8.3f}" for value in shown))


if __name__ == "__main__":
    main()
