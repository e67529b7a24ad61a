"""Places the runs of a submission on this host, beside the runs of other submissions and users."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.engines import shares
from launcher.engines.base import SupervisedEngine
from launcher.host import account, gpu_locks, nvml
from launcher.host.account import Share
from launcher.host.gpu_locks import GpuLock
from launcher.host.machine import Machine
from launcher.supervise import scheduler
from launcher.supervise.scheduler import Demand, Others, Running, Start
from launcher.supervise.together import capacity_of

HELD = "held by"
PASSES = 8
"""How many runs of other submissions may start while a run waits for them. Then it is its turn."""


@dataclass(frozen=True)
class Placed:
    """A run to start now on these devices. `held`: the locks of the devices, and of its share of the host."""

    name: str
    devices: tuple[str, ...]
    held: tuple[GpuLock, ...]

    def close(self) -> None:
        """Close this process's copies of the locks. The run has copies of its own."""
        for lock in self.held:
            lock.close()


class Placing:
    """Decides which runs of a submission start. All locks of a run are taken together or not at all, so no two
    submissions wait for each other."""

    def __init__(self, submission: Path, machine: Machine, engine: SupervisedEngine, max_parallel: int | None) -> None:
        self.submission = submission.resolve()
        self.machine = machine
        self.engine = engine
        self.capacity = capacity_of(machine, max_parallel)
        account.pool_of(machine)  # imports what it needs now, which the supervisor does not take for work of each look
        self.passed: Counter[str] = Counter()
        """How many starts have passed a waiting run."""
        self.blocked: tuple[str, str] | None = None
        """The first run that others hold up, and how."""
        self.held_up = False
        """Whether a run could start beside those of this submission, but was not placed. It may be later."""
        self._seen: set[str] = set()
        """Runs of others that have been in progress while it waited."""
        self._passes = 0
        """How many of them have started since."""
        self._turn: GpuLock | None = None

    def choose(self, queue: Sequence[Demand], running: Mapping[str, Running], over: Collection[str]) -> list[Placed]:
        """The runs of the queue that start now. The caller closes them.

        Asks what others hold only if something could start otherwise.
        """
        wishes = scheduler.choose(queue, running, over, self.capacity, passed=self.passed)
        self.held_up = False
        if not wishes:
            self._unblock()
            return []
        try:
            placed = self._beside_others(wishes, queue, running, over)
        except OSError as error:  # of the folder of the locks
            self._unblock()
            self.blocked = wishes[0].name, str(error)
            placed = []
        self.held_up = len(placed) < len(wishes)
        return placed

    def _beside_others(
        self, wishes: Sequence[Start], queue: Sequence[Demand], running: Mapping[str, Running], over: Collection[str]
    ) -> list[Placed]:
        taken = self._taken({device for run in running.values() for device in run.devices}, wishes)
        if not self.engine.ready():  # the connection was lost during the calls above
            return []
        placed: list[Placed] = []
        with account.exclusive() as mine:
            if not mine:  # other launchers are starting runs
                return []
            of_others = [share for share in shares.in_progress() if share.submission != str(self.submission)]
            foreign = {device for device, why in taken.items() if not why.startswith(HELD)}
            if (waiting := account.turn()) is not None and self._turn is None:
                of_others.append(waiting)
                taken |= self._kept_for(waiting, taken, running)
            others = Others(frozenset(taken), *account.used(of_others, self.machine))
            by_name = {demand.name: demand for demand in queue}
            if self._turn is not None and self.blocked is not None:  # what is kept for it is not for later runs
                queue = _up_to(self.blocked[0], queue)
            for start in scheduler.choose(queue, running, over, self.capacity, others, self.passed):
                try:
                    held = self._locks(start, by_name[start.name])
                except OSError:
                    if placed:  # these can start; the next look meets the error again
                        break
                    raise
                if held is not None:
                    placed.append(Placed(start.name, start.devices, held))
                    self.passed.pop(start.name, None)
                    self.passed.update([start.passes] if start.passes else [])
        names = {each.name for each in placed}
        first = next((by_name[wish.name] for wish in wishes if wish.name not in names), None)
        active = [*running.values(), *(Running(by_name[each.name], each.devices) for each in placed)]
        reason = self._why(first, active, taken, of_others) if first is not None else ""
        if first is None or not reason:
            self._unblock()
        else:
            self._block(first, reason, of_others, foreign)
        return placed

    def _block(self, demand: Demand, reason: str, of_others: Sequence[Share], foreign: Collection[str]) -> None:
        """Remember that others hold up the run. Takes the turn once too many of their runs have passed it, unless it
        could not start even if all of them ended: `foreign` devices are used by other programs."""
        others = {share.directory for share in of_others if not share.waits}
        if self.blocked is None or self.blocked[0] != demand.name:
            self._unblock()
            self._seen = others
        self._passes += len(others - self._seen)
        self._seen |= others
        self.blocked = demand.name, reason
        possible = scheduler.place(demand, (), self.capacity, Others(frozenset(foreign))) is not None
        if not possible:
            self.release_turn()
        elif self._passes >= PASSES and self._turn is None:
            share = account.share_of(self.submission / demand.name, demand.cpus, demand.memory, self.machine)
            usable = [device for device in self.machine.devices if scheduler.holds(device, demand, self.capacity)]
            names = tuple(self.machine.lock_name(device) for device in usable)
            self._turn = account.take_turn(dataclasses.replace(share, gpus=demand.gpus, devices=names))

    def _unblock(self) -> None:
        self.blocked, self._passes, self._seen = None, 0, set()
        self.release_turn()

    def release_turn(self) -> None:
        """Let runs of others start again, for example because this submission cannot start any."""
        if self._turn is not None:
            self._turn.close()
            self._turn = None

    def _kept_for(self, waiting: Share, taken: Mapping[str, str], running: Mapping[str, Running]) -> dict[str, str]:
        """The devices that are kept for another submission's run, because it is its turn: free ones, else those that
        runs of this submission share, which become free when no more runs join them."""
        users = Counter(device for run in running.values() for device in run.devices)
        alone = {device for run in running.values() if not run.demand.share for device in run.devices}
        usable = [device for device in self.machine.devices if self.machine.lock_name(device) in waiting.devices]
        free = [device for device in usable if device not in taken and device not in alone]
        return dict.fromkeys(sorted(free, key=users.__getitem__)[: waiting.gpus], f"kept for {waiting}")

    def _taken(self, mine: Collection[str], wishes: Sequence[Start]) -> dict[str, str]:
        """The devices that others use, and who."""
        if not any(wish.devices for wish in wishes):
            return {}
        holders = self.engine.taken() if self.machine.gpus else {}
        taken = {device: f"{HELD} {run}" for device, run in holders.items() if device not in mine}
        with nvml.session():
            for device in self.machine.devices:
                index = self.machine.index(device)
                why = None if device in mine else gpu_locks.why_taken(self.machine.lock_name(device), index)
                if why:
                    taken[device] = why
        return taken

    def _locks(self, start: Start, demand: Demand) -> tuple[GpuLock, ...] | None:
        """The locks of the run's devices and of its share of the host; None if a device has just been taken. Raises
        OSError."""
        run_dir = self.submission / start.name
        held: list[GpuLock] = []
        complete = False
        try:
            for device in start.devices:
                lock = gpu_locks.acquire_for(self.machine.lock_name(device), run_dir, demand.share)
                if lock is None:
                    return None
                held.append(lock)
            engine = "" if self.engine.inherits_locks else self.engine.name
            held.append(account.claim(account.share_of(run_dir, demand.cpus, demand.memory, self.machine, engine)))
            complete = True
            return tuple(held)
        finally:
            if not complete:
                for lock in held:
                    lock.close()

    def _why(
        self, demand: Demand, active: Sequence[Running], taken: Mapping[str, str], of_others: Sequence[Share]
    ) -> str:
        """Why the run waits for others; empty if it does not."""
        reasons = []
        devices = Others(frozenset(taken))
        if taken and scheduler.place(demand, active, self.capacity, devices) is None:
            reasons += [f"GPU {device} is {why}" for device, why in sorted(taken.items())]
        own = sum(run.demand.cpus for run in active), sum(run.demand.memory for run in active)
        if why := account.why_not(demand.cpus, demand.memory, of_others, self.machine, own):
            reasons.append(why)
        return "; ".join(reasons)


def _up_to(name: str, queue: Sequence[Demand]) -> list[Demand]:
    """The run `name` and the runs before it in the scheduler's order."""
    ordered = scheduler.order(queue)
    position = next((index for index, demand in enumerate(ordered) if demand.name == name), len(ordered))
    return ordered[: position + 1]
