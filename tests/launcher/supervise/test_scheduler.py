"""The scheduler's promises, on random queues and in simulated time."""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.supervise import scheduler
from launcher.supervise.scheduler import Capacity, Demand, Others, Running, Start, choose, order, place, why_never
from tests.simulate_scheduler import SETS, Job, ratios, simulate

durations = st.none() | st.integers(1, 9).map(float)
demands = st.builds(
    Demand,
    name=st.uuids().map(str),
    gpus=st.integers(0, 3),
    cpus=st.sampled_from([0, 1, 2, 4, 9]),
    memory=st.integers(0, 6),
    gpu_memory=st.integers(0, 12),
    share=st.booleans(),
    priority=st.integers(-1, 1),
    cost=durations,
)
others_hold = st.builds(
    Others,
    devices=st.frozensets(st.sampled_from("0123")),
    cpus=st.integers(0, 8).map(float),
    memory=st.integers(0, 12),
)
queues = st.lists(demands, max_size=10, unique_by=lambda demand: demand.name)
capacities = st.integers(0, 4).flatmap(
    lambda count: st.builds(
        Capacity,
        devices=st.just(tuple(map(str, range(count)))),
        cpus=st.integers(1, 8).map(float),
        memory=st.integers(1, 12),
        max_parallel=st.none() | st.integers(1, 4),
        device_memory=st.dictionaries(st.sampled_from("0123"), st.sampled_from([8, 12])),
    )
)


def check(running: dict[str, Running], capacity: Capacity) -> None:
    """That what is under way at once may be."""
    assert len(running) <= (capacity.max_parallel or len(running))
    if len(running) > 1:
        assert sum(run.demand.cpus for run in running.values()) <= capacity.cpus
        assert sum(run.demand.memory for run in running.values()) <= capacity.memory
    for run in running.values():
        assert len(set(run.devices)) == len(run.devices) == run.demand.gpus
        assert set(run.devices) <= set(capacity.devices)
    for device in capacity.devices:
        holders = [run.demand for run in running.values() if device in run.devices]
        memory = capacity.device_memory.get(device)
        if len(holders) > 1:
            assert all(held.share and held.gpu_memory for held in holders), "exclusive, unless all share by known needs"
            assert memory is not None, "what is left of a device of unknown memory is not known"
        if memory is not None:
            assert sum(held.gpu_memory for held in holders) <= memory


@settings(deadline=None, max_examples=300)
@given(queues, capacities, others_hold, st.randoms())
def test_nothing_is_over_committed_and_everything_that_can_run_ends(queue, capacity, others, chance) -> None:  # type: ignore[no-untyped-def]
    """Runs end in any order. Others hold GPUs, cores and memory, and release them once nothing else can start."""
    waiting, running, over = list(queue), dict[str, Running](), set[str]()
    passed: Counter[str] = Counter()
    while waiting or running:
        starts = choose(waiting, running, over, capacity, others, passed)
        for start in starts:
            demand = next(d for d in waiting if d.name == start.name)
            waiting.remove(demand)
            running[start.name] = Running(demand, start.devices)
            passed.update([start.passes] if start.passes else [])
            assert not set(start.devices) & others.devices
            assert not others.cpus or demand.cpus <= capacity.cpus - others.cpus
            assert not others.memory or demand.memory <= capacity.memory - others.memory
        check(running, capacity)
        if running:
            name = chance.choice(sorted(running))
            over.add(name)
            del running[name]
        elif others != Others():
            others = Others()
        elif not starts:
            break
    assert all(why_never(demand, capacity) for demand in waiting)


@settings(deadline=None, max_examples=200)
@given(demands, st.lists(demands, min_size=1, max_size=5), capacities, others_hold, st.randoms())
def test_no_run_is_passed_for_ever(late, stream, capacity, others, chance) -> None:  # type: ignore[no-untyped-def]
    """Runs that are later in the order arrive without end, one for each that starts, and end in any order: what could
    start on the idle machine starts after a number of ends that is known beforehand."""
    if place(late, (), capacity, others) is None:
        return
    fresh = (
        dataclasses.replace(chance.choice(stream), name=str(number), priority=late.priority - 1)
        for number in range(10**9)
    )
    waiting, running, over = [late, *(next(fresh) for _ in range(20))], dict[str, Running](), set[str]()
    passed: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler, "PASSES", 5)
        for _ in range(5 + 20 + 1):  # the passes, then the ends of all that may be in progress
            for start in choose(waiting, running, over, capacity, others, passed):
                if start.name == late.name:
                    return
                running[start.name] = Running(next(d for d in waiting if d.name == start.name), start.devices)
                waiting = [d for d in waiting if d.name != start.name]
                waiting += [next(fresh)] if len(running) < 20 else []
                passed.update([start.passes] if start.passes else [])
            name = chance.choice(sorted(running))
            over.add(name)
            del running[name]
    raise AssertionError("the run never started")


@settings(deadline=None)
@given(queues, capacities)
def test_equal_demands_start_by_priority_then_the_longest_then_as_queued(queue, capacity) -> None:  # type: ignore[no-untyped-def]
    equal = [dataclasses.replace(queue[0], name=d.name, priority=d.priority, cost=d.cost) for d in queue]
    spans = simulate([Job(demand, 5.0) for demand in equal], capacity)
    begins = [spans[demand.name][0] for demand in order(equal) if demand.name in spans]
    assert begins == sorted(begins)


@given(queues, capacities, others_hold)
def test_the_same_state_has_the_same_answer(queue, capacity, others) -> None:  # type: ignore[no-untyped-def]
    by_name = {demand.name: demand for demand in queue}
    started = choose(queue, {}, set(), capacity)
    running = {s.name: Running(by_name[s.name], s.devices) for s in started}
    backwards = dict(reversed(running.items()))
    answers = [choose(queue, each, set(), capacity, others) for each in (running, running, backwards)]
    assert answers[0] == answers[1] == answers[2]


def test_the_queue_goes_by_priority_then_the_longest_first_then_what_is_unknown_as_it_came() -> None:
    queue = [
        Demand("unknown"),
        Demand("short", cost=1),
        Demand("urgent", priority=5),
        Demand("long", cost=3),
        Demand("unknown too"),
        Demand("whenever", priority=-5, cost=99),
    ]
    expected = ["urgent", "long", "short", "unknown", "unknown too", "whenever"]
    assert [start.name for start in choose(queue, {}, set(), Capacity((), 4, 4))] == expected


def test_a_run_waits_for_what_it_needs_and_is_not_in_the_way() -> None:
    queue = [Demand("vote", needs=("a",), priority=9, cpus=4), Demand("b", cpus=4)]
    capacity = Capacity((), 4, 4)
    assert [s.name for s in choose(queue, {}, set(), capacity)] == ["b"]
    assert [s.name for s in choose(queue, {}, {"a"}, capacity)] == ["vote"]


TWO = Capacity(("0", "1"), 8, 8)


def test_small_runs_pass_a_large_one_that_does_not_fit_yet_but_not_for_ever() -> None:
    large, small = Demand("large", gpus=2), Demand("small", gpus=1)
    running = {"first": Running(Demand("first", gpus=1), ("0",))}
    assert choose([large, small], running, set(), TWO) == [Start("small", ("1",), passes="large")]
    passed = {"large": scheduler.PASSES}
    assert choose([large, small], running, set(), TWO, passed=passed) == []
    assert choose([large, small], {}, set(), TWO, passed=passed) == [Start("large", ("0", "1"))]
    urgent = Demand("urgent", gpus=1, priority=1)
    assert choose([large, small, urgent], running, set(), TWO, passed=passed) == [Start("urgent", ("1",))]


def test_one_pass_counts_what_it_starts_itself() -> None:
    running = {"first": Running(Demand("first", gpus=1), ("0",))}
    queue = [Demand("large", gpus=2), *(Demand(f"{number}") for number in range(scheduler.PASSES + 5))]
    assert len(choose(queue, running, set(), TWO)) == scheduler.PASSES
    assert len(choose(queue, running, set(), TWO, passed={"large": scheduler.PASSES - 2})) == 2


def test_a_run_that_waits_for_others_holds_up_nobody() -> None:
    """However often it was passed: nothing that this submission does lets it start earlier."""
    queue = [Demand("large", gpus=2), Demand("small", gpus=1), Demand("cpu", cpus=1)]
    passed = {"large": scheduler.PASSES}
    found = choose(queue, {}, set(), TWO, Others(frozenset("0")), passed)
    assert found == [Start("small", ("1",)), Start("cpu", ())]
    assert choose([Demand("a", memory=5), Demand("b", memory=4)], {}, set(), TWO, Others(memory=4)) == [Start("b", ())]
    assert choose([Demand("a", cpus=5), Demand("b", cpus=4)], {}, set(), TWO, Others(cpus=4)) == [Start("b", ())]


def test_a_large_run_starts_while_small_ones_keep_coming() -> None:
    capacity = Capacity(tuple("0123"), 64, 64)
    large = Job(Demand("large", gpus=4), 5.0, arrival=0.5)
    small = [Job(Demand(f"{n}", gpus=1), 10.0, arrival=0.3 * (n // 2)) for n in range(1000)]
    spans = simulate([*small, large], capacity)
    before = sum(0.5 < begin < spans["large"][0] for begin, _ in spans.values())
    assert before <= scheduler.PASSES and max(begin for begin, _ in spans.values()) > spans["large"][0]


GPUS = Capacity(("0", "1"), 64, 64, device_memory={"0": 24, "1": 24})


def shared(name: str, gpu_memory: int, **more: object) -> Demand:
    return Demand(name, gpus=1, gpu_memory=gpu_memory, share=True, **more)  # type: ignore[arg-type]


def test_runs_that_share_are_packed_by_memory_and_no_others_join() -> None:
    queue = [shared("a", 10), shared("b", 14), shared("c", 1), shared("d", 1), Demand("alone", gpus=1)]
    packed = [Start("a", ("0",)), Start("b", ("0",)), Start("c", ("1",)), Start("d", ("1",))]
    assert choose(queue, {}, set(), GPUS) == packed
    running = {"alone": Running(Demand("alone", gpus=1, gpu_memory=1), ("0",))}
    assert choose([shared("a", 1)], running, set(), GPUS) == [Start("a", ("1",))]


def test_a_shared_run_goes_where_the_least_is_left() -> None:
    running = {
        "x": Running(shared("x", 10), ("0",)),
        "y": Running(shared("y", 16), ("1",)),
    }
    assert choose([shared("a", 8)], running, set(), GPUS) == [Start("a", ("1",))]
    assert choose([shared("a", 9)], running, set(), GPUS) == [Start("a", ("0",))]
    assert choose([shared("a", 15)], running, set(), GPUS) == []


def test_a_shared_run_of_unknown_need_has_the_gpu_to_itself() -> None:
    starts = choose([shared("a", 0), shared("b", 1), shared("c", 1)], {}, set(), GPUS)
    assert [start.devices for start in starts] == [("0",), ("1",), ("1",)]
    unknown = Capacity(("0",), 64, 64)
    assert choose([shared("a", 1), shared("b", 1)], {}, set(), unknown) == [Start("a", ("0",))]


def test_devices_of_different_memory() -> None:
    mixed = Capacity(("0", "1", "2"), 64, 64, device_memory={"0": 48, "1": 16})
    assert choose([Demand("a", gpus=1, gpu_memory=10)], {}, set(), mixed) == [Start("a", ("1",))], (
        "the smallest that does"
    )
    assert choose([Demand("a", gpus=2, gpu_memory=20)], {}, set(), mixed) == [Start("a", ("0", "2"))], "2 is unknown"
    assert (
        why_never(Demand("a", gpus=3, gpu_memory=20 * 2**30), mixed) == "it needs 3 GPU with 20 GiB; this machine has 1"
    )
    queue = [Demand("never", gpus=3, gpu_memory=20), Demand("a", gpus=1)]
    assert choose(queue, {}, set(), mixed) == [Start("a", ("0",))], "what can never start is in nobody's way"


def test_a_demand_beyond_the_machine_runs_alone() -> None:
    queue = [Demand("vast", cpus=99), Demand("a", cpus=1), Demand("b")]
    assert choose(queue, {}, set(), TWO) == [Start("vast", ())]
    running = {"a": Running(queue[1])}
    assert choose([queue[0], queue[2]], running, set(), TWO) == [Start("b", (), passes="vast")]
    assert choose([queue[0], queue[2]], running, set(), TWO, passed={"vast": scheduler.PASSES}) == []
    assert choose(queue[:1], {}, set(), TWO, Others(cpus=1)) == [], "others run, so it would not be alone"


def test_ten_thousand_equal_runs_are_looked_at_once() -> None:
    queue = [Demand(f"{n}", gpus=1) for n in range(10_000)]
    assert len(choose(queue, {}, set(), TWO)) == 2


@pytest.mark.parametrize("family", SETS)
def test_on_average_it_is_better_than_first_in_first_out(family: str) -> None:
    """Seeded sets in simulated time: no clock has a say."""
    means = {name: statistics.mean(values) for name, values in ratios(range(25), SETS[family]).items()}
    fifo = means.pop("first in, first out")
    assert all(1 <= mean < fifo for mean in means.values())
    assert means["scheduler, durations unknown"] < 1.2 and means["scheduler, durations known"] < 1.1


def test_a_run_on_several_devices_gets_no_mig_instance() -> None:
    """CUDA can use one instance, and no other device beside it."""
    capacity = Capacity(("0", "1:0", "1:1", "2"), 16, 10**12, instances=frozenset({"1:0", "1:1"}))
    wide = Demand("wide", gpus=2)
    assert choose([wide], {}, (), capacity) == [Start("wide", ("0", "2"))]
    one = {"one": Running(Demand("one", gpus=1), ("0",))}
    assert choose([wide], one, (), capacity) == []
    assert choose([Demand("narrow", gpus=1)], one, (), capacity) == [Start("narrow", ("1:0",))]
    few = dataclasses.replace(capacity, devices=("0", "1:0"))
    assert why_never(wide, few) == (
        "it needs 2 whole GPUs (several MIG instances cannot be used together); this machine has 1"
    )
