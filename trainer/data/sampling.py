"""The images of an epoch and their order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


def balanced(rows: Sequence[int], targets: Sequence[int], count: int, generator: np.random.Generator) -> list[int]:
    """`count` rows in random order. All classes of `targets` (one per row) occur equally often, or once more.

    A row repeats only after all rows of its class.
    """
    by_class: dict[int, list[int]] = {}
    for row, target in zip(rows, targets, strict=True):
        by_class.setdefault(target, []).append(row)
    quota, more = divmod(count, len(by_class))
    chosen: list[int] = []
    for place, target in enumerate(generator.permutation(sorted(by_class))):
        own, wanted = by_class[target], quota + (place < more)
        passes = -(-wanted // len(own))
        chosen += [row for _ in range(passes) for row in generator.permutation(own)][:wanted]
    return [int(row) for row in generator.permutation(chosen)]


class EpochSampler(Sampler[tuple[int, int]]):
    """(epoch, row) pairs, shuffled by (seed, epoch) or in order. Each of `world` processes takes every world-th pair.

    An item has its epoch because a worker process keeps one copy of the dataset for all epochs. The first `usable` of
    the shuffled rows make the epoch. If `world` does not divide them, the first rows repeat at the end, so that all
    processes have the same number. With `targets` all classes have an equal share of the epoch: rows of rare classes
    repeat, and some rows of frequent classes are missing.
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
        """Set the next epoch (from 0). Skip the first `skip` rows of this process, which the run has seen already."""
        self.epoch = epoch
        self.skip = skip

    def remaining(self) -> int:
        """Rows of this process in the next epoch."""
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
