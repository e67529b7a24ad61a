"""The scheduler's promises, on random queues."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.scheduler import Capacity, Demand, choose

demands = st.builds(
    Demand,
    name=st.uuids().map(str),
    gpus=st.integers(0, 3),
    cpus=st.sampled_from([0, 1, 2, 4]),
    memory=st.integers(0, 6),
)
capacities = st.builds(
    Capacity,
    devices=st.integers(0, 4).map(lambda n: tuple(map(str, range(n)))),
    cpus=st.integers(1, 8).map(float),
    memory=st.integers(1, 12),
    max_parallel=st.none() | st.integers(1, 4),
)


@settings(deadline=None)
@given(st.lists(demands, max_size=10), capacities, st.sets(st.sampled_from("0123")), st.randoms())
def test_nothing_is_over_committed_and_everything_that_fits_ends(queue, capacity, taken, chance) -> None:  # type: ignore[no-untyped-def]
    """Simulated to its end: runs end in any order."""
    waiting, running, over = list(queue), {}, set()
    usable = len(set(capacity.devices) - taken)
    while True:
        before = list(running)
        for start in choose(waiting, running, over, capacity, taken):
            demand = next(d for d in waiting if d.name == start.name)
            waiting.remove(demand)
            running[start.name] = (demand, start.devices)
            assert len(start.devices) == demand.gpus and not set(start.devices) & taken
        devices = [device for _, held in running.values() for device in held]
        assert len(devices) == len(set(devices)) and set(devices) <= set(capacity.devices)
        if len(running) > 1:
            assert sum(d.cpus for d, _ in running.values()) <= capacity.cpus
            assert sum(d.memory for d, _ in running.values()) <= capacity.memory
        assert len(running) <= (capacity.max_parallel or len(running))
        if not running:
            break
        assert before or running
        name = chance.choice(sorted(running))
        over.add(name)
        del running[name]
    assert not waiting or waiting[0].gpus > usable, (
        "only what asks for more GPUs than there are is left, and what is behind it"
    )


@given(st.lists(demands.filter(lambda d: d.gpus == 0), min_size=2, max_size=8), capacities)
def test_runs_start_in_the_order_of_the_queue(queue, capacity) -> None:  # type: ignore[no-untyped-def]
    started = [start.name for start in choose(queue, {}, set(), capacity)]
    assert started == [demand.name for demand in queue][: len(started)] and started


def test_a_run_waits_for_what_it_needs_and_is_not_in_the_way() -> None:
    queue = [Demand("vote", needs=("a",)), Demand("b")]
    capacity = Capacity((), 4, 4)
    assert [s.name for s in choose(queue, {}, set(), capacity)] == ["b"]
    assert [s.name for s in choose(queue, {}, {"a"}, capacity)] == ["vote", "b"]


def test_a_large_run_is_not_passed_by_the_small_ones_behind_it() -> None:
    queue = [Demand("large", gpus=2), Demand("small", gpus=1)]
    running = {"first": (Demand("first", gpus=1), ("0",))}
    assert choose(queue, running, set(), Capacity(("0", "1"), 8, 8)) == []
