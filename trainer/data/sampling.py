"""Which images a pass has, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


def balanced(rows: Sequence[int], targets: Sequence[int], count: int, generator: np.random.Generator) -> list[int]:
    """`count` of the rows in random order, every class of `targets` (aligned) as often as the others, or once more.

    A class gives all its rows before one comes again.
    """
    by_class: dict[int, list[int]] = {}
    for row, target in zip(rows, targets, strict=True):
        by_class.setdefault(target, []).append(row)
    each, more = divmod(count, len(by_class))
    chosen: list[int] = []
    for place, target in enumerate(generator.permutation(sorted(by_class))):
        own, wanted = by_class[target], each + (place < more)
        passes = -(-wanted // len(own))
        chosen += [row for _ in range(passes) for row in generator.permutation(own)][:wanted]
    return [int(row) for row in generator.permutation(chosen)]


class EpochSampler(Sampler[tuple[int, int]]):
    """Rows with their epoch, shuffled by (seed, epoch) or in order; each of `world` processes takes every world-th.

    The epoch travels with the row because a worker process keeps its copy of the dataset over all epochs. Of the
    shuffled rows the first `usable` make the epoch; when these do not divide by `world`, they are filled up from the
    front, so that no process waits for another. With the `targets` of the rows, every class makes up an equal part of
    the epoch: rows of rare classes come more than once, some of frequent ones not at all.
    """

    def __init__(
        self,
        rows: Sequence[int],
        seed: int | None,
        usable: int,
        rank: int = 0,
        world: int = 1,
        targets: Sequence[int] | None = None,
    ) -> None:
        self.rows = list(rows)
        self.seed = seed
        self.usable = usable
        self.rank = rank
        self.world = world
        self.targets = targets
        self.epoch = 0
        self.skip = 0

    def set_position(self, epoch: int, skip: int = 0) -> None:
        """The next pass is of `epoch` (from 0), without the first `skip` rows of this process: those already seen."""
        self.epoch = epoch
        self.skip = skip

    def remaining(self) -> int:
        """Rows of the next pass of this process."""
        return len(self._mine())

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter([(self.epoch, int(row)) for row in self._mine()])

    def _mine(self) -> list[int]:
        order = self.rows
        if self.seed is not None:
            generator = np.random.default_rng((self.seed, self.epoch))
            if self.targets is None:
                order = list(generator.permutation(self.rows))[: self.usable]
            else:
                order = balanced(self.rows, self.targets, self.usable, generator)
            order += order[: -len(order) % self.world]
        return order[self.rank :: self.world][self.skip :]

    def __len__(self) -> int:
        return len(self._mine())
