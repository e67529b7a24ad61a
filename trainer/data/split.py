"""Which images are trained on and which are held out for validation."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.base.errors import DataError
from trainer.config.schema import DataConfig
from trainer.data.table import Table


@dataclass(frozen=True)
class Split:
    """Row numbers of the two sides, and a name for the split: equal fingerprints may be compared and ensembled."""

    train: list[int]
    val: list[int]
    fingerprint: str
    folds_fingerprint: str | None = None
    """A name for the whole cut into folds, where there is one: the folds of one name join to all training images."""


def split_images(table: Table, config: DataConfig) -> Split:
    """Stratified by class and seeded by `data.split_seed`; where there are groups, no group is on both sides.

    With `data.folds` the validation side is fold `data.fold` of them, else a share `data.val_fraction`.

    Raises DataError where the images or groups are too few for it.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, StratifiedShuffleSplit

    rows = np.arange(len(table))
    if table.groups is not None:
        _check_groups(table, config)
    seed, fold = config.split_seed, config.fold if config.folds else 0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a class with fewer images than folds: told below in our words
            if table.groups is not None:
                folds = config.folds or max(2, round(1 / config.val_fraction))
                grouped = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
                sides = list(grouped.split(rows, table.targets, table.groups))
            elif config.folds:
                sides = list(StratifiedKFold(config.folds, shuffle=True, random_state=seed).split(rows, table.targets))
            else:
                shuffle = StratifiedShuffleSplit(1, test_size=config.val_fraction, random_state=seed)
                sides = list(shuffle.split(rows, table.targets))
        train, val = sides[fold]
    except ValueError as error:
        asked = f"data.folds={config.folds}" if config.folds else f"data.val_fraction={config.val_fraction}"
        raise DataError(
            f"{len(table)} images in {len(table.class_names)} classes cannot be split with {asked}: {error}"
        ) from None
    if not len(val):
        raise DataError(f"data.fold={fold} has no image: the groups are too few for data.folds={config.folds}")
    classes = {table.class_names[t] for t in table.targets}
    untrained, unseen = (
        ", ".join(sorted(classes - {table.class_names[table.targets[r]] for r in s})) for s in (train, val)
    )
    if untrained:
        raise DataError(f"the split leaves no image to train on for {untrained}; say another data.split_seed")
    if unseen:
        print(f"note: the split leaves no validation image for {unseen}: its groups are too few")
    names = [f"{image_id}={table.class_names[t]}" for image_id, t in zip(table.ids, table.targets, strict=True)]
    return Split(
        [int(r) for r in train],
        sorted(int(r) for r in val),
        _name_of(names, [train, val]),
        _name_of(names, [side for _, side in sides]) if config.folds else None,
    )


def _name_of(names: Sequence[str], parts: Sequence[Iterable[int]]) -> str:
    """Equal for equal parts, however the rows are ordered."""
    return hashlib.sha256(repr([sorted(names[row] for row in part) for part in parts]).encode()).hexdigest()[:16]


def _check_groups(table: Table, config: DataConfig) -> None:
    groups: dict[int, set[str]] = {}
    for target, group in zip(table.targets, table.groups or [], strict=True):
        groups.setdefault(target, set()).add(group)
    alone = [
        f"train.csv: every image of class '{table.class_names[target]}' is in group '{next(iter(found))}' of column "
        f"'{config.group_column}': it cannot be on both sides of the split"
        for target, found in sorted(groups.items())
        if len(found) == 1
    ]
    if alone:
        raise DataError("\n".join([*alone, "add images of another group, or ignore groups by data.group_column=none"]))
