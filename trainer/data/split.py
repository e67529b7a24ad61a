"""Split the images into training and validation."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from trainer.base.errors import DataError
from trainer.base.plural import counted
from trainer.config.schema import DataConfig
from trainer.data import grouped
from trainer.data.rows import Table
from trainer.data.table import FEW, listed

NOTABLE = 0.1
"""Relative difference of the validation share from the wanted one that is worth a note."""


Side = tuple[list[int], list[int]]
"""Row numbers of the training and the validation images."""
PARTITION = ("val_fraction", "split_seed", "folds", "group_column")
"""The fields of the configuration that determine the partition."""


@dataclass(frozen=True)
class Split:
    """Row numbers of the two sides, and a fingerprint. Runs with equal fingerprints can be compared and ensembled."""

    train: list[int]
    val: list[int]
    fingerprint: str = ""
    folds_fingerprint: str | None = None
    """Fingerprint of the whole cut into folds, if there are folds. Folds with one fingerprint cover all images."""
    notes: tuple[str, ...] = ()
    """Lines for the user: classes without validation images, and a share that groups have changed."""


def split_images(table: Table, config: DataConfig) -> Split:
    """The data folder's own split. Without one: split by `data.split_seed`, stratified by class. No group is on both
    sides. An image without a group is a group of its own.

    With `data.folds` fold `data.fold` is for validation, otherwise a share of `data.val_fraction`: exactly, or as near
    as whole groups allow, which is within the size of one group.

    Raises DataError if there are too few images or groups.
    """
    sides = partition(table, config)
    split = checked_side(table, config, sides)
    names = [f"{image_id}={table.class_names[t]}" for image_id, t in zip(table.ids, table.targets, strict=True)]
    return replace(
        split,
        fingerprint=_name_of(names, [split.train, split.val]),
        folds_fingerprint=_name_of(names, [side for _, side in sides]) if config.folds else None,
    )


def partition(table: Table, config: DataConfig) -> list[Side]:
    """The sides of every fold; of the one split without folds. Depends on no other key than `PARTITION`. Raises
    DataError."""
    if not len(table):
        raise DataError(f"{_asked(config)}: there is no image to split")
    if table.held_out is not None:
        return [_own(table, config)]
    if table.groups is not None:
        _check_groups(table, config)
    if config.folds:
        return _folds(table, config)
    return [_share(table, config) if table.groups is None else _share_of_groups(table, config)]


def checked_side(table: Table, config: DataConfig, sides: Sequence[Side]) -> Split:
    """The split of `data.fold` in a partition, without fingerprints. Raises DataError."""
    fold = config.fold if config.folds else 0
    train, val = sides[fold]
    if not val:
        what = f"data.fold={fold}: no image is in this fold"
        raise DataError(f"{what}: too few groups for data.folds={config.folds}; use fewer folds, or add groups")
    counts = Counter(table.targets)
    untrained, unseen = (sorted(counts.keys() - {table.targets[row] for row in side}) for side in (train, val))
    if untrained:
        names = ", ".join(table.class_names[target] for target in untrained[:FEW])
        hint = "add images" if table.own_split else f"use {_fewer(config)}, another data.split_seed, or add images"
        raise DataError(f"{_asked(config, table)}: no training image of class {names} in this split; {hint}")
    notes = []
    if unseen:
        named = [f"{table.class_names[target]} ({counted(counts[target], 'image')})" for target in unseen]
        more = f" and {len(named) - FEW} more" if len(named) > FEW else ""
        which = f"class {named[0]} has" if len(named) == 1 else f"classes {', '.join(named[:FEW])}{more} have"
        hint = "add images" if table.own_split else f"use {_more(config)}, or another data.split_seed"
        notes.append(
            f"{_asked(config, table)}: {which} no validation image in this split; F1 is not measured there; {hint}"
        )
    if table.groups is not None and not config.folds and table.held_out is None:
        notes += _note_on_share(table, config, val)
    return Split(train, sorted(val), notes=tuple(notes))


def _asked(config: DataConfig, table: Table | None = None) -> str:
    """What determines the split: the data folder itself, or a key with its value."""
    if table is not None and table.held_out is not None:
        return f"the data folder's own split ({table.own_split})"
    return f"data.folds={config.folds}" if config.folds else f"data.val_fraction={config.val_fraction:g}"


def _size(table: Table) -> str:
    return f"{counted(len(table), 'image')} in {counted(len(set(table.targets)), 'class')}"


def _own(table: Table, config: DataConfig) -> Side:
    """The data folder's own split. Raises DataError if it has no images, if groups are on both sides, or with folds."""
    assert table.held_out is not None
    if config.folds:
        raise DataError(
            f"data.folds={config.folds}: the data folder has its own validation split ({table.own_split}), which is "
            "one fold; use data.folds=null, or merge its images into the training images"
        )
    train, val = ([row for row, held in enumerate(table.held_out) if held is side] for side in (False, True))
    if not train or not val:
        what = "training" if not train else "validation"
        raise DataError(
            f"the data folder's own split ({table.own_split}) has no {what} image; add images, or remove the split: "
            "then data.val_fraction of the images are for validation"
        )
    if table.groups is not None:
        both = sorted({table.groups[row] for row in train} & {table.groups[row] for row in val} - {""})
        if both:
            raise DataError(
                f"{listed(both, 'group')} of column '{config.group_column}' is on both sides of {table.own_split}; "
                "move its images to one side, or ignore groups with data.group_column=none"
            )
    return train, val


def _groups(table: Table) -> list[str]:
    """A group for each image. Images without one are alone."""
    named = zip(table.groups or [], table.ids, strict=True)
    return [group or f"\0{image_id}" for group, image_id in named]


def _share(table: Table, config: DataConfig) -> Side:
    """A share of `data.val_fraction` without groups. Raises DataError if a side has fewer images than classes."""
    from sklearn.model_selection import StratifiedShuffleSplit

    lonely = [table.class_names[target] for target, count in Counter(table.targets).items() if count == 1]
    if lonely:
        have = "has one image" if len(lonely) == 1 else "have one image each"
        raise DataError(
            f"{_asked(config)}: {listed(lonely, 'class')} {have}; training and validation need one each; add others"
        )
    images, classes = len(table), len(set(table.targets))
    val = math.ceil(config.val_fraction * images)
    for number, side in ((val, "validation"), (images - val, "training")):
        if number < classes:
            raise DataError(
                f"{_asked(config)}: {_size(table)} cannot be split: {side} gets {number}, and each class needs one "
                f"there; {_better_fraction(images, classes)}"
            )
    shuffle = StratifiedShuffleSplit(1, test_size=config.val_fraction, random_state=config.split_seed)
    train_rows, val_rows = next(shuffle.split(np.arange(images), table.targets))
    return [int(row) for row in train_rows], [int(row) for row in val_rows]


def _better_fraction(images: int, classes: int) -> str:
    if images < 2 * classes:
        return "add images"
    low, high = math.ceil(100 * classes / images) / 100, math.floor(100 * (images - classes) / images) / 100
    return f"use data.val_fraction={low:g}" + (f" to {high:g}" if high > low else "") + ", or add images"


def _share_of_groups(table: Table, config: DataConfig) -> Side:
    """A share of `data.val_fraction` of whole groups. Raises DataError if it is off by more than one group."""
    val = grouped.choose(table.targets, table.groups or [], config.val_fraction, config.split_seed)
    off, largest, groups = _difference(table, config, val)
    if off > largest or not val:
        share = len(val) / len(table)
        raise DataError(
            f"{_asked(config)}: of {len(table)} images {config.val_fraction * len(table):.0f} would be for validation, "
            f"but whole groups of column '{config.group_column}' can only give {len(val)}: {groups}, and every class "
            f"needs a group for training; use data.val_fraction={share or 0.5:.2f}, smaller groups, or "
            "data.group_column=none"
        )
    return _others(table, val), val


def _note_on_share(table: Table, config: DataConfig, val: Sequence[int]) -> list[str]:
    """A note if groups have changed the share of the validation images."""
    off, _, groups = _difference(table, config, val)
    if off <= max(1, NOTABLE * config.val_fraction * len(table)):
        return []
    return [
        f"{_asked(config)}: {len(val)} of {len(table)} images are for validation ({len(val) / len(table):.2f}), "
        f"because groups stay whole, and {groups}"
    ]


def _difference(table: Table, config: DataConfig, val: Sequence[int]) -> tuple[float, int, str]:
    """How many images validation differs from its share; images of the largest group; and that group in words."""
    sizes = Counter(_groups(table))
    name, largest = max(sizes.items(), key=lambda item: (item[1], item[0]))
    of = counted(len(sizes), "group")
    groups = f"the largest of {of}, '{name}', has {largest} images" if largest > 1 else "each has one image"
    return abs(len(val) - config.val_fraction * len(table)), largest, groups


def _folds(table: Table, config: DataConfig) -> list[Side]:
    """The folds. Raises DataError if there are more folds than images of the largest class, or a fold is empty."""
    from sklearn.model_selection import StratifiedKFold

    assert config.folds is not None
    largest = max(Counter(table.targets).values())
    if config.folds > largest:
        better = f"use data.folds={largest} or fewer" if largest > 1 else "add images"
        raise DataError(
            f"{_asked(config)}: {_size(table)} cannot be split: a class has at most {counted(largest, 'image')}, fewer "
            f"than the {config.folds} parts; {better}"
        )
    if table.groups is None:
        folds = StratifiedKFold(config.folds, shuffle=True, random_state=config.split_seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a class with fewer images than folds; see our own note
            pairs = list(folds.split(np.arange(len(table)), table.targets))
        return [([int(row) for row in train], [int(row) for row in val]) for train, val in pairs]
    parts = grouped.folds(table.targets, table.groups, config.folds, config.split_seed)
    return [(_others(table, part), part) for part in parts]


def _others(table: Table, rows: Sequence[int]) -> list[int]:
    inside = set(rows)
    return [row for row in range(len(table)) if row not in inside]


def _fewer(config: DataConfig) -> str:
    """What leaves more images for training."""
    return "fewer folds" if config.folds else "a smaller data.val_fraction"


def _more(config: DataConfig) -> str:
    """What gives validation more images."""
    return "fewer folds" if config.folds else "a larger data.val_fraction"


def _name_of(names: Sequence[str], parts: Sequence[Iterable[int]]) -> str:
    """A fingerprint of the parts, independent of the row order."""
    return hashlib.sha256(repr([sorted(names[row] for row in part) for part in parts]).encode()).hexdigest()[:16]


def _check_groups(table: Table, config: DataConfig) -> None:
    """Raises DataError if a class has only one group."""
    groups: defaultdict[int, set[str]] = defaultdict(set)
    for target, group in zip(table.targets, _groups(table), strict=True):
        groups[target].add(group)
    alone = [
        f"train.csv: every image of class '{table.class_names[target]}' is in group '{next(iter(names))}' of column "
        f"'{config.group_column}': it cannot be on both sides of the split"
        for target, names in sorted(groups.items())
        if len(names) == 1
    ]
    if alone:
        more = [f"… and {len(alone) - 20} more"] if len(alone) > 20 else []
        raise DataError(
            "\n".join([*alone[:20], *more, "add images of another group, or ignore groups with data.group_column=none"])
        )
