"""Split the images into training and validation."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from trainer.base.errors import DataError
from trainer.base.plural import counted
from trainer.config.schema import DataConfig
from trainer.data.table import Table

Side = tuple[NDArray[np.intp], NDArray[np.intp]]
"""Row numbers of the training and the validation images."""


@dataclass(frozen=True)
class Split:
    """Row numbers of the two sides, and a fingerprint. Runs with equal fingerprints can be compared and ensembled."""

    train: list[int]
    val: list[int]
    fingerprint: str = ""
    folds_fingerprint: str | None = None
    """Fingerprint of the whole cut into folds, if there are folds. Folds with one fingerprint cover all images."""
    notes: tuple[str, ...] = ()
    """Of classes without a validation image, each with its remedy."""


def split_images(table: Table, config: DataConfig) -> Split:
    """Split by `data.split_seed`, stratified by class. No group is on both sides.

    With `data.folds` fold `data.fold` is for validation, otherwise a share of `data.val_fraction`.

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
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, StratifiedShuffleSplit

    _check_counts(table, config)
    if table.groups is not None:
        _check_groups(table, config)
    rows, seed = np.arange(len(table)), config.split_seed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a class with fewer images than folds; see our own note below
            if table.groups is not None:
                grouped = StratifiedGroupKFold(_folds(config), shuffle=True, random_state=seed)
                return list(grouped.split(rows, table.targets, table.groups))
            if config.folds:
                return list(StratifiedKFold(config.folds, shuffle=True, random_state=seed).split(rows, table.targets))
            shuffle = StratifiedShuffleSplit(1, test_size=config.val_fraction, random_state=seed)
            return list(shuffle.split(rows, table.targets))
    except ValueError as error:
        raise DataError(f"{_asked(config)}: {_size(table)} cannot be split: {error}") from None


PARTITION = ("val_fraction", "split_seed", "folds", "group_column")
"""The fields of the configuration that determine the partition."""


def _folds(config: DataConfig) -> int:
    """Number of parts that groups are distributed to."""
    return config.folds or max(2, round(1 / config.val_fraction))


def _asked(config: DataConfig) -> str:
    return f"data.folds={config.folds}" if config.folds else f"data.val_fraction={config.val_fraction:g}"


def _size(table: Table) -> str:
    return f"{counted(len(table), 'image')} in {counted(len(set(table.targets)), 'class')}"


def _check_counts(table: Table, config: DataConfig) -> None:
    """Raises DataError, with our own words, if scikit-learn would refuse the numbers of images."""
    counts, images = Counter(table.targets), len(table)
    if not counts:
        raise DataError(f"{_asked(config)}: there is no image to split")
    largest, classes = max(counts.values()), len(counts)
    if (config.folds or table.groups is not None) and largest < _folds(config):
        better = f"data.folds={largest} or fewer" if config.folds else f"data.val_fraction={1 / largest:.2g} or more"
        raise DataError(
            f"{_asked(config)}: {_size(table)} cannot be split: a class has at most {counted(largest, 'image')}, fewer "
            f"than the {_folds(config)} parts; {f'use {better}' if largest > 1 else 'add images'}"
        )
    if config.folds or table.groups is not None:
        return
    val = math.ceil(images * config.val_fraction)
    for number, side in ((val, "validation"), (images - val, "training")):
        if number < classes:
            raise DataError(
                f"{_asked(config)}: {_size(table)} cannot be split: {side} gets {number}, and each class needs one "
                f"there; {_better_fraction(images, classes)}"
            )


def _better_fraction(images: int, classes: int) -> str:
    if images < 2 * classes:
        return "add images"
    low, high = math.ceil(100 * classes / images) / 100, math.floor(100 * (images - classes) / images) / 100
    return f"use data.val_fraction={low:g}" + (f" to {high:g}" if high > low else "") + ", or add images"


def checked_side(table: Table, config: DataConfig, sides: Sequence[Side]) -> Split:
    """The split of `data.fold` in a partition, without fingerprints. Raises DataError."""
    fold = config.fold if config.folds else 0
    train, val = sides[fold]
    if not len(val):
        what = f"data.fold={fold}: no image is in this fold"
        raise DataError(f"{what}: too few groups for data.folds={config.folds}; use fewer folds, or add groups")
    counts = Counter(table.class_names[t] for t in table.targets)
    untrained, unseen = (sorted(counts.keys() - {table.class_names[table.targets[r]] for r in s}) for s in (train, val))
    if untrained:
        raise DataError(
            f"data.split_seed={config.split_seed}: no training image of class {', '.join(untrained)} in this split; "
            "use another data.split_seed, or add images"
        )
    hint = "fewer folds" if config.folds else "a larger data.val_fraction"
    notes = [
        f"{_asked(config)}: class {name} ({counted(counts[name], 'image')}) has no validation image in this split; its "
        f"F1 is not measured; use {hint}, or another data.split_seed"
        for name in unseen
    ]
    return Split([int(r) for r in train], sorted(int(r) for r in val), notes=tuple(notes))


def _name_of(names: Sequence[str], parts: Sequence[Iterable[int]]) -> str:
    """A fingerprint of the parts, independent of the row order."""
    return hashlib.sha256(repr([sorted(names[row] for row in part) for part in parts]).encode()).hexdigest()[:16]


def _check_groups(table: Table, config: DataConfig) -> None:
    groups: dict[int, set[str]] = {}
    for target, group in zip(table.targets, table.groups or [], strict=True):
        groups.setdefault(target, set()).add(group)
    alone = [
        f"train.csv: every image of class '{table.class_names[target]}' is in group '{next(iter(names))}' of column "
        f"'{config.group_column}': it cannot be on both sides of the split"
        for target, names in sorted(groups.items())
        if len(names) == 1
    ]
    if alone:
        raise DataError(
            "\n".join([*alone, "add images of another group, or ignore groups with data.group_column=none"])
        )
