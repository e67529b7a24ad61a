"""The scheduler's promises, on random queues and in simulated time."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.supervise.scheduler import Capacity, Demand, Running, Start, choose, order, why_never
from tests.simulate_scheduler import Job, first_in_first_out, ratios, simulate

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
    seconds=durations,
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
@given(queues, capacities, st.sets(st.sampled_from("0123")), st.randoms())
def test_nothing_is_over_committed_and_everything_that_can_run_ends(queue, capacity, taken, chance) -> None:  # type: ignore[no-untyped-def]
    """Runs end in any order; how long they take may be right, wrong or unknown; others hold GPUs, and let go of them."""
    waiting, running, over = list(queue), dict[str, Running](), set[str]()
    while waiting or running:
        told = {
            name: dataclasses.replace(run, remaining=chance.choice([None, -1, 0, 2, 5]))
            for name, run in running.items()
        }
        starts = choose(waiting, told, over, capacity, taken)
        for start in starts:
            demand = next(d for d in waiting if d.name == start.name)
            waiting.remove(demand)
            running[start.name] = Running(demand, start.devices)
            assert not set(start.devices) & taken
        check(running, capacity)
        if running:
            name = chance.choice(sorted(running))
            over.add(name)
            del running[name]
        elif taken:
            taken = set()
        elif not starts:
            break
    assert all(why_never(demand, capacity) for demand in waiting)


@settings(deadline=None, max_examples=300)
@given(queues, capacities, st.data())
def test_backfill_never_holds_up_the_first_that_does_not_fit(queue, capacity, data) -> None:  # type: ignore[no-untyped-def]
    """It starts at the very moment at which it would if nothing behind it existed, whatever is known of durations."""
    jobs = []
    for demand in queue:
        if why_never(demand, capacity) is None:
            duration = demand.seconds or float(data.draw(st.integers(1, 20), label="unknown duration"))
            jobs.append(Job(demand, duration))

    def strict(queue: Sequence[Demand], running: dict[str, Running], over: set[str], capacity: Capacity) -> list[Start]:
        return first_in_first_out(order(queue), running, over, capacity)

    expected = simulate(jobs, capacity, strict)
    found = simulate(jobs, capacity, watch=lambda now, running: check(running, capacity))
    assert found.keys() == expected.keys() == {job.demand.name for job in jobs}
    late = [demand for demand in order([job.demand for job in jobs]) if expected[demand.name][0] > 0]
    if late:
        assert found[late[0].name][0] == expected[late[0].name][0]


@settings(deadline=None)
@given(queues, capacities)
def test_equal_demands_start_by_priority_then_the_longest_then_as_queued(queue, capacity) -> None:  # type: ignore[no-untyped-def]
    equal = [dataclasses.replace(queue[0], name=d.name, priority=d.priority, cost=d.cost) for d in queue]
    spans = simulate([Job(demand, 5.0) for demand in equal], capacity)
    begins = [spans[demand.name][0] for demand in order(equal) if demand.name in spans]
    assert begins == sorted(begins)


@given(queues, capacities, st.sets(st.sampled_from("0123")))
def test_the_same_state_has_the_same_answer(queue, capacity, taken) -> None:  # type: ignore[no-untyped-def]
    by_name = {demand.name: demand for demand in queue}
    started = choose(queue, {}, set(), capacity)
    running = {s.name: Running(by_name[s.name], s.devices, by_name[s.name].seconds) for s in started}
    backwards = dict(reversed(running.items()))
    answers = [choose(queue, each, set(), capacity, taken) for each in (running, running, backwards)]
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


def test_a_large_run_is_not_passed_by_small_ones_of_unknown_duration() -> None:
    queue = [Demand("large", gpus=2), Demand("small", gpus=1)]
    running = {"first": Running(Demand("first", gpus=1), ("0",), remaining=100)}
    assert choose(queue, running, set(), TWO) == []


def test_a_small_run_passes_where_it_ends_before_the_large_one_could_begin() -> None:
    running = {"first": Running(Demand("first", gpus=1), ("0",), remaining=100)}
    fits, does_not = Demand("fits", gpus=1, seconds=100), Demand("does not", gpus=1, seconds=101)
    assert choose([Demand("large", gpus=2), does_not, fits], running, set(), TWO) == [Start("fits", ("1",))]
    overdue = {"first": dataclasses.replace(running["first"], remaining=-3)}
    assert choose([Demand("large", gpus=2), fits], overdue, set(), TWO) == [], "it may end at any moment"


def test_a_small_run_passes_where_it_takes_nothing_that_the_large_one_waits_for() -> None:
    running = {"first": Running(Demand("first", gpus=1), ("0",))}
    large = Demand("large", gpus=2, cpus=4)
    queue = [large, Demand("too many cores", cpus=5), Demand("cores", cpus=4), Demand("more cores", cpus=1)]
    assert choose(queue, running, set(), TWO) == [Start("cores", ())]
    four = Capacity(("0", "1", "2", "3"), 8, 8)
    holds = {"first": Running(Demand("first", gpus=3), ("0", "1", "2"), remaining=100)}
    queue = [Demand("large", gpus=2), Demand("a", gpus=1), Demand("b", gpus=1)]
    assert choose(queue, holds, set(), four) == [Start("a", ("3",))], "four will be free, and the large one takes two"


def test_a_gpu_that_others_hold_may_come_free_at_any_moment() -> None:
    queue = [Demand("large", gpus=2), Demand("small", gpus=1, seconds=1), Demand("cpu", cpus=1)]
    assert choose(queue, {}, set(), TWO, taken={"0"}) == [Start("cpu", ())]


def test_a_large_run_starts_while_small_ones_keep_coming() -> None:
    """As soon as what was under way when it came is over; where durations are told wrong, a generation later at most."""
    capacity = Capacity(tuple("0123"), 64, 64)
    large = Job(Demand("large", gpus=4, seconds=5.0), 5.0, arrival=0.5)
    for told, bound in ((None, 10.3), (10.0, 10.3), (5.0, 20.3), (20.0, 20.3)):
        small = [Job(Demand(f"{n}", gpus=1, seconds=told), 10.0, arrival=0.3 * (n // 2)) for n in range(200)]
        short = [Job(Demand(f"short {n}", gpus=1, seconds=0.1), 0.1, arrival=0.7 * n) for n in range(100)]
        spans = simulate([*small, *short, large], capacity)
        assert spans["large"][0] <= bound and max(begin for begin, _ in spans.values()) > 100


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
    holds = {"x": Running(Demand("x", gpus=1), ("2",))}
    queue = [Demand("large", gpus=2, gpu_memory=20), Demand("small", gpus=1)]
    assert choose(queue, holds, set(), mixed) == [Start("small", ("1",))], (
        "the device that is of no use to the large one"
    )


def test_a_demand_beyond_the_machine_runs_alone() -> None:
    queue = [Demand("vast", cpus=99), Demand("a", cpus=1), Demand("b")]
    assert choose(queue, {}, set(), TWO) == [Start("vast", ())]
    running = {"a": Running(queue[1], (), remaining=10)}
    assert choose([queue[0], queue[2]], running, set(), TWO) == []
    assert choose([queue[0], Demand("brief", seconds=9)], running, set(), TWO) == [Start("brief", ())]


def test_ten_thousand_equal_runs_are_looked_at_once() -> None:
    queue = [Demand(f"{n}", gpus=1) for n in range(10_000)]
    assert len(choose(queue, {}, set(), TWO)) == 2


def test_on_average_it_is_no_worse_than_first_in_first_out() -> None:
    """Seeded sets in simulated time: no clock has a say."""
    means = {name: statistics.mean(values) for name, values in ratios(range(40)).items()}
    fifo = means.pop("first in, first out")
    assert all(mean <= fifo for mean in means.values()) and all(mean >= 1 for mean in means.values())
    assert means["scheduler, durations known"] < 1.15 < 1.3 < fifo
