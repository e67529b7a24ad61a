"""Split the images into training and validation."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.base.errors import DataError
from trainer.config.schema import DataConfig
from trainer.data.table import Table


@dataclass(frozen=True)
class Split:
    """Row numbers of the two sides, and a fingerprint. Runs with equal fingerprints can be compared and ensembled."""

    train: list[int]
    val: list[int]
    fingerprint: str
    folds_fingerprint: str | None = None
    """Fingerprint of the whole cut into folds, if there are folds. Folds with one fingerprint cover all images."""


def split_images(table: Table, config: DataConfig) -> Split:
    """Split by `data.split_seed`, stratified by class. No group is on both sides.

    With `data.folds` fold `data.fold` is for validation, otherwise a share of `data.val_fraction`.

    Raises DataError if there are too few images or groups.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, StratifiedShuffleSplit

    rows = np.arange(len(table))
    if table.groups is not None:
        _check_groups(table, config)
    seed, fold = config.split_seed, config.fold if config.folds else 0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a class with fewer images than folds; see our own warning below
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
        raise DataError(f"data.fold={fold} has no image: too few groups for data.folds={config.folds}; use fewer folds")
    counts = Counter(table.class_names[t] for t in table.targets)
    untrained, unseen = (sorted(counts.keys() - {table.class_names[table.targets[r]] for r in s}) for s in (train, val))
    if untrained:
        raise DataError(f"no training image of class {', '.join(untrained)} in this split; use another data.split_seed")
    for name in unseen:
        hint = "fewer folds" if config.folds else "a larger data.val_fraction"
        print(
            f"warning: class {name} ({counts[name]} images) has no validation image in this split; its F1 is not "
            f"measured; use {hint} or another data.split_seed"
        )
    names = [f"{image_id}={table.class_names[t]}" for image_id, t in zip(table.ids, table.targets, strict=True)]
    return Split(
        [int(r) for r in train],
        sorted(int(r) for r in val),
        _name_of(names, [train, val]),
        _name_of(names, [side for _, side in sides]) if config.folds else None,
    )


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
