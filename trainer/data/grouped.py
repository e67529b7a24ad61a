"""Cut images into parts of whole groups: a share for validation, or folds. Every part has the same share of each class,
as far as the groups allow."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass
class _Choice:
    """The groups chosen so far, as numbers of images."""

    wanted: dict[int, float]
    """Images of each class that validation should have."""
    total: dict[int, int]
    """Images of each class."""
    chosen: Counter[int] = field(default_factory=Counter)
    """Images of each class that validation has."""
    images: int = 0
    target: float = 0.0
    """Images that validation should have."""

    def worse(self, group: Counter[int], sign: int) -> float:
        """How much the squared distances from the wanted numbers grow, relative to these, if `group` is added (sign 1)
        or taken out (-1). Too few images in all cost nothing. Infinite if a class would have no training image."""
        growth = 0.0
        for target, images in group.items():
            before, after = self.chosen[target], self.chosen[target] + sign * images
            if after >= self.total[target]:
                return float("inf")
            wanted = self.wanted[target]
            growth += ((after - wanted) ** 2 - (before - wanted) ** 2) / wanted
        before_all = max(0.0, self.images - self.target)
        after_all = max(0.0, self.images + sign * group.total() - self.target)
        return growth + (after_all**2 - before_all**2) / self.target

    def change(self, group: Counter[int], sign: int) -> None:
        for target, images in group.items():
            self.chosen[target] += sign * images
        self.images += sign * group.total()


def choose(targets: Sequence[int], groups: Sequence[str], fraction: float, seed: int) -> list[int]:
    """Rows for validation: whole groups with about `fraction` of the images. An image of group '' is alone.

    Large groups are chosen first, then images without a group fill up every class. Of all results within reach the
    number of images is the nearest to `fraction`, unless a class would have no training image. The order of the rows
    does not matter, except for images without a group.
    """
    together, single = _together(groups)
    generator = np.random.default_rng(seed)
    names = _large_first(together, generator)
    content = {name: Counter(targets[row] for row in together[name]) for name in names}
    total = Counter(targets)
    choice = _Choice(
        {target: fraction * count for target, count in total.items()}, dict(total), target=fraction * len(targets)
    )
    inside: set[str] = set()
    for name in _with_unseen_classes(names, content, choice):
        inside.add(name)
        choice.change(content[name], 1)
    alone = Counter(targets[row] for row in single)
    exact = {target for target, wanted in choice.wanted.items() if alone[target] >= wanted}  # can be filled up exactly
    for name in names:
        over = any(choice.chosen[t] + n > choice.wanted[t] for t, n in content[name].items() if t in exact)
        if name not in inside and not over and choice.worse(content[name], 1) < 0:
            inside.add(name)
            choice.change(content[name], 1)
    rows = _fill(single, targets, choice, generator)
    _move(names, content, choice, inside)
    return sorted([*rows, *(row for name in inside for row in together[name])])


def _with_unseen_classes(names: Sequence[str], content: dict[str, Counter[int]], choice: _Choice) -> list[str]:
    """The smallest group of each class, as long as they are not too many images. Classes in few groups go first."""
    where: defaultdict[int, list[str]] = defaultdict(list)
    for name in reversed(names):  # the smallest first
        for target in content[name]:
            where[target].append(name)
    chosen: list[str] = []
    seen: Counter[int] = Counter()
    images = 0
    for target in sorted(where, key=lambda target: (len(where[target]), target)):
        name = where[target][0]
        # A class with images to spare outside of groups of several gets some of these later.
        if seen[target] or name in chosen or choice.total[target] > sum(content[n][target] for n in where[target]):
            continue
        if any(seen[t] + n >= choice.total[t] for t, n in content[name].items()):
            continue
        if abs(images + content[name].total() - choice.target) < abs(images - choice.target):
            chosen.append(name)
            images += content[name].total()
            seen.update(content[name])
    return chosen


def _fill(single: Sequence[int], targets: Sequence[int], choice: _Choice, generator: np.random.Generator) -> list[int]:
    """Rows of images that are alone in their group, so that every class has what it wants."""
    by_class: defaultdict[int, list[int]] = defaultdict(list)
    for row in single:
        by_class[targets[row]].append(row)
    room = {t: min(len(rows), max(0, choice.total[t] - choice.chosen[t] - 1)) for t, rows in by_class.items()}
    ideal = {t: min(max(choice.wanted[t] - choice.chosen[t], 0.0), most) for t, most in room.items()}
    take = {t: int(share) for t, share in ideal.items()}
    missing = round(choice.target) - choice.images - sum(take.values())
    while missing > 0:
        # First classes without a validation image, then those that lack most.
        open_ = sorted(
            (t for t in take if take[t] < room[t]),
            key=lambda t: (choice.chosen[t] + take[t] > 0, take[t] - ideal[t], t),
        )[:missing]
        if not open_:
            break
        for target in open_:
            take[target] += 1
        missing -= len(open_)
    while missing < 0 and any(take.values()):
        used = sorted((t for t in take if take[t]), key=lambda t: (ideal[t] - take[t], -take[t], t))[:-missing]
        for target in used:
            take[target] -= 1
        missing += len(used)
    rows = []
    for target in sorted(by_class):
        order = generator.permutation(by_class[target])
        rows += [int(row) for row in order[: take[target]]]
        choice.change(Counter({target: take[target]}), 1)
    return rows


def _move(names: Sequence[str], content: dict[str, Counter[int]], choice: _Choice, inside: set[str]) -> None:
    """Move groups as long as the number of images comes nearer to the wanted one, those first that disturb the classes
    least. A class loses its last validation images only if they are off by more than one group."""
    largest = max((group.total() for group in content.values()), default=0)

    def cost(name: str, sign: int) -> tuple[bool, float, str]:
        unseen = sign < 0 and any(choice.chosen[t] == images for t, images in content[name].items())
        return unseen, choice.worse(content[name], sign), name

    for sign in (1, -1) * 2:
        if abs(choice.images - choice.target) < 1 and choice.images:
            return
        waiting = [cost(name, sign) for name in names if (name in inside) == (sign < 0)]
        heapq.heapify(waiting)
        while waiting and (abs(choice.images - choice.target) >= 1 or not choice.images):
            name = heapq.heappop(waiting)[2]
            now = cost(name, sign)  # moves of others may have raised it
            if waiting and now > waiting[0]:
                heapq.heappush(waiting, now)
                continue
            before = abs(choice.images - choice.target)
            after = choice.images + sign * content[name].total()
            nearer = abs(after - choice.target) < before or not choice.images
            if nearer and after and now[1] < float("inf") and not (now[0] and before <= largest):
                choice.change(content[name], sign)
                inside ^= {name}


def folds(targets: Sequence[int], groups: Sequence[str], count: int, seed: int) -> list[list[int]]:
    """`count` folds of whole groups, with equal shares of every class as far as the groups allow. An image of group ''
    is alone.

    Large groups go first, each to the fold that has least of its classes. (StratifiedGroupKFold of scikit-learn does
    about the same, but takes minutes for 100,000 images without a group.)
    """
    together, single = _together(groups)
    generator = np.random.default_rng(seed)
    names = _large_first(together, generator)
    total = Counter(targets)
    have = [Counter[int]() for _ in range(count)]
    sizes = [0] * count
    rows: list[list[int]] = [[] for _ in range(count)]

    def put(content: Counter[int], its_rows: Sequence[int]) -> None:
        def cost(fold: int) -> tuple[float, int, int]:
            growth = sum(((have[fold][t] + n) ** 2 - have[fold][t] ** 2) / total[t] for t, n in content.items())
            return round(growth, 9), sizes[fold], fold

        best = min(range(count), key=cost)
        have[best].update(content)
        sizes[best] += len(its_rows)
        rows[best] += its_rows

    for name in names:
        put(Counter(targets[row] for row in together[name]), together[name])
    for row in generator.permutation(single):
        put(Counter((targets[row],)), [int(row)])
    return [sorted(fold) for fold in rows]


def _together(groups: Sequence[str]) -> tuple[dict[str, list[int]], list[int]]:
    """The rows of each group of several images, and the rows of images that are alone."""
    together: defaultdict[str, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        if group:
            together[group].append(row)
    single = [row for row, group in enumerate(groups) if not group or len(together[group]) == 1]
    return {name: rows for name, rows in together.items() if len(rows) > 1}, single


def _large_first(together: dict[str, list[int]], generator: np.random.Generator) -> list[str]:
    """The names of groups, large ones first, in random order among equals. Independent of the order of the rows."""
    names = sorted(together)
    generator.shuffle(names)
    return sorted(names, key=lambda name: -len(together[name]))
