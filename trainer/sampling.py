"""Which training images an epoch has, and in which order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


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
