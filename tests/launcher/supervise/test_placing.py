"""Submissions that start runs on one host at the same time: none starves, and none waits for ever."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from launcher.base.sizes import GIB
from launcher.host import account, gpu_locks
from launcher.host.machine import Gpu, Machine
from launcher.supervise import placing
from launcher.supervise.placing import Placed, Placing
from launcher.supervise.scheduler import Demand, Running

MACHINE = Machine("host", 16, 64 * GIB, tuple(Gpu(index, memory=24 * GIB) for index in range(4)), declared=True)


class Idle:
    """An engine of which the placing asks only this."""

    name, inherits_locks = "native", True

    def ready(self) -> bool:
        return True

    def taken(self) -> dict[str, str]:
        return {}


class Submission:
    """Its queue and its runs in progress, without processes."""

    def __init__(self, folder: Path, name: str, queue: list[Demand], machine: Machine = MACHINE) -> None:
        engine: Any = Idle()
        self.placing = Placing(folder / name, machine, engine, None)
        self.queue = queue
        self.running: dict[str, tuple[Demand, Placed]] = {}

    def start(self) -> list[str]:
        by_name = {demand.name: demand for demand in self.queue}
        running = {name: Running(demand, placed.devices) for name, (demand, placed) in self.running.items()}
        started = self.placing.choose(self.queue, running, ())
        for placed in started:
            self.running[placed.name] = by_name[placed.name], placed
            self.queue.remove(by_name[placed.name])
        return [placed.name for placed in started]

    def end(self, name: str) -> None:
        self.running.pop(name)[1].close()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(gpu_locks, "LOCKS", tmp_path / "locks")
    return tmp_path


WIDE_AND_SMALL = [
    ({"memory": 60 * GIB}, {"memory": 20 * GIB}),
    ({"cpus": 15}, {"cpus": 4}),
    ({"gpus": 4, "cpus": 1}, {"gpus": 1, "cpus": 1}),
    ({"gpus": 2, "gpu_memory": 20 * GIB}, {"gpus": 1, "gpu_memory": 10 * GIB, "share": True}),
    ({"cpus": 99}, {"cpus": 1}),  # alone, since it needs more than there is
]


@pytest.mark.parametrize(("wide", "small"), WIDE_AND_SMALL)
@pytest.mark.parametrize("seed", range(3))
def test_a_wide_run_is_not_passed_for_ever_by_runs_of_others(
    folder: Path, wide: dict[str, Any], small: dict[str, Any], seed: int
) -> None:
    """Two other submissions start a run whenever one of theirs has ended."""
    chance = random.Random(seed)
    others = [Submission(folder, name, [Demand(f"{n:03d}", **small) for n in range(400)]) for name in ("b", "c")]
    for other in others:
        other.start()
    first = Submission(folder, "a", [Demand("wide", **wide), Demand("next", **small)])
    for _ in range(100):
        if "wide" in first.start():
            break
        busy = [other for other in others if other.running]
        other = chance.choice(busy)
        other.end(chance.choice(sorted(other.running)))
        for each in chance.sample(others, 2):
            each.start()
    assert "wide" in first.running and all(other.queue for other in others)
    held = [name for name, _ in first.running.items()]
    for name in held:
        first.end(name)
    first.queue.clear()
    first.start()
    assert account.turn() is None and any(other.start() for other in others), "and then the others go on"


def test_two_wide_runs_never_hold_a_half_each(folder: Path) -> None:
    """Both are passed by small runs, both want all GPUs and all memory: one has the turn, then the other."""
    wide = {"gpus": 4, "memory": 60 * GIB, "cpus": 1}
    small = Submission(folder, "small", [Demand(f"{n:03d}", gpus=1, memory=GIB, cpus=1) for n in range(200)])
    small.start()
    both = [Submission(folder, name, [Demand("wide", **wide)]) for name in ("a", "b")]
    for _ in range(100):
        if small.running:
            small.end(min(small.running))
        for each in (*both, small):
            each.start()
        assert sum(bool(each.running) for each in both) <= 1
        for each in both:
            if each.running:
                assert not small.running
                each.end("wide")
    assert not any(each.queue for each in both) and small.running


def test_a_run_that_waits_for_another_program_keeps_nothing_from_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its turn would never end."""
    monkeypatch.setattr(gpu_locks, "why_taken", _with_foreign_use(gpu_locks.why_taken))
    small = Submission(folder, "small", [Demand(f"{n:03d}", gpus=1) for n in range(100)])
    wide = Submission(folder, "wide", [Demand("wide", gpus=4)])
    small.start()
    for _ in range(50):
        assert wide.start() == [] and account.turn() is None
        small.end(min(small.running))
        assert len(small.start()) == 1
    assert wide.placing.blocked is not None and "GPU 0 is 5.0 GiB in use" in wide.placing.blocked[1]


def _with_foreign_use(asked: Any) -> Any:
    return lambda gpu, index: "5.0 GiB in use by other processes" if gpu == "gpu0" else asked(gpu, index)


def test_a_turn_ends_with_its_process_and_where_nothing_can_start(folder: Path) -> None:
    share = account.share_of(folder / "a" / "001-x", 1, 2, MACHINE)
    lock = account.take_turn(share)
    assert lock is not None and account.take_turn(share) is None
    waiting = account.turn()
    assert waiting is not None and waiting.waits and str(waiting).endswith("(it has waited longest)")
    lock.close()
    assert account.turn() is None
    small = Submission(folder, "small", [Demand(f"{n:03d}", memory=40 * GIB) for n in range(50)])
    wide = Submission(folder, "wide", [Demand("wide", memory=60 * GIB)])
    small.start()
    for _ in range(placing.PASSES + 2):
        if "wide" in wide.start():
            break
        small.end(min(small.running))
        small.start()
    assert wide.running and account.turn() is None
    wide.end("wide")
    wide.queue.append(Demand("wide", memory=60 * GIB))
    small.start()
    for _ in range(placing.PASSES):
        wide.start()
        small.end(min(small.running))
        small.start()
    wide.start()
    assert account.turn() is not None and not wide.running
    wide.placing.release_turn()
    assert account.turn() is None


def test_a_folder_of_locks_that_cannot_be_used_is_the_reason_of_the_wait(folder: Path) -> None:
    (folder / "locks").touch()
    one = Submission(folder, "a", [Demand("x")])
    assert one.start() == [] and one.placing.blocked is not None
    name, why = one.placing.blocked
    assert name == "x" and why.startswith(f"{folder}/locks: ") and why.endswith("so remove it")
    (folder / "locks").unlink()
    assert one.start() == ["x"] and one.placing.blocked is None


def test_what_was_placed_before_an_error_starts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = account.claim
    monkeypatch.setattr(account, "claim", lambda share: claim(share) if share.directory.endswith("x") else _full())
    one = Submission(folder, "a", [Demand("x"), Demand("y"), Demand("z")])
    assert one.start() == ["x"] and len(account.shares()) == 1
    assert one.start() == [] and one.placing.blocked == ("y", "[Errno 28] full")
    one.end("x")
    assert account.shares() == []


def _full() -> None:
    raise OSError(28, "full")
