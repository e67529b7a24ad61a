"""Data: what lies in a data folder, checked before anything trains on it, and the images as tensors."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, default_collate

from trainer.base.errors import DataError, nearest
from trainer.base.files import data_folder, write_text
from trainer.config.schema import DataConfig
from trainer.images.decode import Images
from trainer.images.reading import SUFFIXES, find_image, unreadable


@dataclass(frozen=True)
class Table:
    """Images and what is known of them. Lists are aligned; `targets` index `class_names` (empty for test images)."""

    ids: list[str]
    paths: list[Path]
    targets: list[int]
    class_names: list[str]
    labels: list[str]
    """The label of each class as the data folder writes it: what a submission contains."""
    groups: list[str] | None = None
    places: list[str] = field(default_factory=list)
    """Where messages say that each training image is: `train.csv:2: train/a.jpg`."""

    def __len__(self) -> int:
        return len(self.ids)

    def without(self, rows: Container[int]) -> Table:
        """The table without `rows`."""
        kept = [row for row in range(len(self)) if row not in rows]

        def of(values: list[Any]) -> list[Any]:
            return [values[row] for row in kept] if values else []

        groups = None if self.groups is None else of(self.groups)
        columns = {name: of(getattr(self, name)) for name in ("ids", "paths", "targets", "places")}
        return replace(self, **columns, groups=groups)


@dataclass(frozen=True)
class Split:
    """Row numbers of the two sides, and a name for the split: equal fingerprints may be compared and ensembled."""

    train: list[int]
    val: list[int]
    fingerprint: str
    folds_fingerprint: str | None = None
    """A name for the whole cut into folds, where there is one: the folds of one name join to all training images."""


def data_root(config: DataConfig) -> Path:
    """The folder that `data.root`, $DATA_DIR or the default `data` names. Raises DataError where there is none."""
    return data_folder(config.root)


def read_training(root: Path, config: DataConfig, faults_file: Path | None = None) -> Table:
    """The training images of `root`, every one of them opened and checked.

    Raises DataError that names every fault of `examine`.
    """
    table, faults = examine(root, config)
    if faults:
        shown, more = faults[:50], len(faults) - 50
        if more > 0:
            shown.append(f"… and {more} more" + (f": see {faults_file}" if faults_file else ""))
            if faults_file is not None:
                write_text(faults_file, "\n".join(faults) + "\n")
        plural = "s" * (len(faults) > 1)
        shown.append(f"{len(faults)} fault{plural} in {root}: mend or remove what is named, then run again")
        raise DataError("\n".join(shown))
    present = set(table.targets)
    for target, name in enumerate(table.class_names):
        if target not in present:
            print(f"note: class '{name}' of meta.csv has no image in train.csv")
    return table


def examine(root: Path, config: DataConfig) -> tuple[Table, list[str]]:
    """The training images of `root` that can be read, and every fault by file and row: missing, unreadable and empty
    images, labels that meta.csv does not have, duplicate IDs, classes with one image.

    Raises DataError where there is no list of images at all.
    """
    is_csv = (root / "train.csv").is_file()
    if config.format == "csv" or (config.format == "auto" and is_csv):
        table, faults, places = _read_csv(root, config)
    else:
        table, faults, places = _read_folders(root)
    counts = Counter(table.targets)
    for target, name in enumerate(table.class_names):
        if counts[target] == 1:
            place = places[table.targets.index(target)]
            faults.append(f"{place}: class '{name}' has one image: it cannot be trained on and validated; add one")
    if len(counts) == 1:
        only = table.class_names[table.targets[0]]
        faults.append(f"{root}: all {len(table)} images are of one class, '{only}': there is nothing to tell apart")
    broken = dict(unreadable(table.paths))
    faults += [f"{places[row]}: {reason}" for row, reason in broken.items()]
    return replace(table, places=places).without(broken), faults


def _read_csv(root: Path, config: DataConfig) -> tuple[Table, list[str], list[str]]:
    frame = _csv(root / "train.csv", ("ID", "target"))
    faults: list[str] = []
    if (root / "meta.csv").is_file():
        meta = _csv(root / "meta.csv", ("target", "class_name"))
        meta = meta.iloc[sorted(range(len(meta)), key=lambda i: _label_order(meta["target"].iloc[i]))]
        labels, names = list(meta["target"]), list(meta["class_name"])
        for column, values in (("target", labels), ("class_name", names)):
            faults += [f"meta.csv: {column} '{v}' stands {n} times" for v, n in Counter(values).items() if n > 1]
        known = f"meta.csv has {labels[0]} to {labels[-1]}" if labels else "meta.csv has none"
    else:
        labels = sorted(set(frame["target"]) - {""}, key=_label_order)
        names, known = [str(label) for label in labels], ""
    index = {label: position for position, label in enumerate(labels)}

    table = Table([], [], [], names, labels, [] if config.group_column in frame else None)
    places: list[str] = []
    first_row: dict[str, int] = {}
    for row, (image_id, label) in enumerate(zip(frame["ID"], frame["target"], strict=True), start=2):
        place = f"train.csv:{row}"
        if image_id in first_row:
            faults.append(f"{place}: ID '{image_id}' stands in row {first_row[image_id]} already")
            continue
        first_row[image_id] = row
        if label not in index:
            faults.append(f"{place}: ID '{image_id}': label '{label}' is out of range; {known or 'it is empty'}")
            continue
        path = find_image(root, image_id)
        if path is None:
            faults.append(f"{place}: train/{image_id}: the file is missing")
            continue
        table.ids.append(image_id)
        table.paths.append(path)
        table.targets.append(index[label])
        places.append(f"{place}: train/{image_id}")
        if table.groups is not None:
            table.groups.append(frame[config.group_column].iloc[row - 2])
    if not len(frame):
        faults.append("train.csv:1: there is no row below the header")
    return table, faults, places


def _read_folders(root: Path) -> tuple[Table, list[str], list[str]]:
    base = root / "train" if (root / "train").is_dir() else root
    names = sorted(d.name for d in base.iterdir() if d.is_dir() and not d.name.startswith("."))
    if base == root:
        names = [name for name in names if name != "test"]
    if not names:
        raise DataError(
            f"{root}: there is neither a train.csv nor a folder a class below {base}; lay the data out as either, "
            f"or draw an example: python -m trainer sample-data DIR"
        )
    table, places, faults = Table([], [], [], names, names), [], []
    for target, name in enumerate(names):
        files = _image_files(base / name)
        if not files:
            faults.append(f"{base / name}: there is no image in the folder of class '{name}'")
        for path in files:
            table.ids.append(str(path.relative_to(base)))
            table.paths.append(path)
            table.targets.append(target)
            places.append(str(path.relative_to(root)))
    return table, faults, places


def read_test(root: Path) -> Table:
    """The images to predict: those of sample_submission.csv in its order, else those of test/ by name.

    Raises DataError where one is missing or there is none.
    """
    sample = root / "sample_submission.csv"
    if sample.is_file():
        ids = list(_csv(sample, ("ID",))["ID"])
        paths = [find_image(root, image_id, "test") for image_id in ids]
        repeated = [f"sample_submission.csv: ID '{i}' stands {n} times" for i, n in Counter(ids).items() if n > 1]
        missing = [
            f"sample_submission.csv:{row}: test/{image_id}: the file is missing"
            for row, (image_id, path) in enumerate(zip(ids, paths, strict=True), start=2)
            if path is None
        ]
        if repeated or missing:
            raise DataError("\n".join([*repeated, *missing]))
        found = [path for path in paths if path is not None]
    else:
        found = _image_files(root / "test")
        ids = [str(path.relative_to(root / "test")) for path in found]
    if not found:
        raise DataError(f"{root}: there is nothing to predict: neither sample_submission.csv nor an image in test/")
    return Table(ids, found, [], [], [])


def _image_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def _csv(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", skip_blank_lines=False)
    except FileNotFoundError:
        raise DataError(f"{path}: the file is missing") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path}: not a CSV file in UTF-8: {' '.join(str(error).split())}") from None
    for column in columns:
        if column not in frame:
            raise DataError(f"{path}:1: there is no column '{column}'; {nearest(column, map(str, frame.columns))}")
    return frame


def _label_order(label: str) -> tuple[int, int, str]:
    return (0, int(label), "") if label.isascii() and label.isdigit() else (1, 0, label)


def split(table: Table, config: DataConfig) -> Split:
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


def training_fingerprint(table: Table) -> str:
    """A name for the images of `table` and their labels, whatever the order of the rows."""
    order = sorted(range(len(table)), key=table.ids.__getitem__)
    labels = [(table.ids[row], table.class_names[table.targets[row]]) for row in order]
    images = content_fingerprint(table.paths[row] for row in order)
    return hashlib.sha256(repr((labels, images)).encode()).hexdigest()[:16]


def content_fingerprint(paths: Iterable[Path]) -> str:
    """A name for what the files hold: the first 16 digits of a SHA-256 over them, in their order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


View = Callable[[NDArray[np.uint8], int, int], NDArray[np.uint8]]
"""(H, W, 3) uint8 RGB, epoch (or copy), row → (img_size, img_size, 3) uint8."""


class ImageDataset(Dataset[tuple[torch.Tensor, int, int]]):
    """Item (epoch, row) is (image, target, row): uint8 of shape (img_size, img_size, 3), target -1 where unknown.

    A view with a true `sees_all(epoch)` gets every pixel of the file, else what `images` takes for enough.
    """

    def __init__(self, table: Table, augmentation: View, images: Images | None = None) -> None:
        self.table = table
        self.augmentation = augmentation
        self.images = Images(table.paths, None) if images is None else images

    def __getitem__(self, item: tuple[int, int]) -> tuple[torch.Tensor, int, int]:
        epoch, row = item
        sees_all = getattr(self.augmentation, "sees_all", None)
        image = self.images.whole(row) if sees_all is not None and sees_all(epoch) else self.images(row)
        augmented = self.augmentation(image, epoch, row)
        target = self.table.targets[row] if self.table.targets else -1
        return torch.from_numpy(augmented), target, row


def collate(items: list[tuple[torch.Tensor, int, int]]) -> list[torch.Tensor]:
    """Images (N, 3, S, S) uint8, whose channels lie last in memory as they come and as convolutions want them, targets
    (N,) and rows (N,)."""
    images, targets, rows = default_collate(items)
    return [images.permute(0, 3, 1, 2), targets, rows]
