"""Read and check the images and labels of a data folder."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trainer.base.errors import DataError, nearest
from trainer.base.files import data_folder, write_text
from trainer.config.schema import DataConfig
from trainer.images.reading import SUFFIXES, find_image, unreadable


@dataclass(frozen=True)
class Table:
    """Images and their data: lists with one entry per image. `targets` index `class_names` (empty for test images)."""

    ids: list[str]
    paths: list[Path]
    targets: list[int]
    class_names: list[str]
    labels: list[str]
    """The label of each class in the data folder and in a submission."""
    groups: list[str] | None = None
    places: list[str] = field(default_factory=list)
    """The place of each training image for messages: `train.csv:2: train/a.jpg`."""

    def __len__(self) -> int:
        return len(self.ids)

    def without(self, rows: Container[int]) -> Table:
        """The table without `rows`."""
        remaining = [row for row in range(len(self)) if row not in rows]

        def of(values: list[Any]) -> list[Any]:
            return [values[row] for row in remaining] if values else []

        groups = None if self.groups is None else of(self.groups)
        columns = {name: of(getattr(self, name)) for name in ("ids", "paths", "targets", "places")}
        return replace(self, **columns, groups=groups)


def data_root(config: DataConfig) -> Path:
    """The folder of `data.root`, $DATA_DIR or the default `data`. Raises DataError if it does not exist."""
    return data_folder(config.root)


def read_training(root: Path, config: DataConfig, faults_file: Path | None = None) -> Table:
    """Read the training images of `root` and check each of them.

    Raises DataError with all errors of `examine`.
    """
    table, faults = examine(root, config)
    if faults:
        lines, more = faults[:50], len(faults) - 50
        if more > 0:
            lines.append(f"… and {more} more" + (f"; see {faults_file}" if faults_file else ""))
            if faults_file is not None:
                write_text(faults_file, "\n".join(faults) + "\n")
        plural = "s" * (len(faults) > 1)
        lines.append(f"{len(faults)} error{plural} in {root}; fix the files or remove them, then run again")
        raise DataError("\n".join(lines))
    present = set(table.targets)
    for target, name in enumerate(table.class_names):
        if target not in present:
            print(f"warning: class '{name}' of meta.csv has no image in train.csv")
    return table


def examine(root: Path, config: DataConfig) -> tuple[Table, list[str]]:
    """The readable training images of `root`, and all errors with file and row: missing, unreadable and empty images,
    labels that are not in meta.csv, duplicate IDs, classes with one image.

    Raises DataError if there is no list of images.
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
            faults.append(f"{place}: class '{name}' has one image; training and validation need one each; add another")
    if len(counts) == 1:
        only = table.class_names[table.targets[0]]
        faults.append(f"{root}: all {len(table)} images are of one class, '{only}'; add images of another class")
    broken = dict(unreadable(table.paths))
    faults += [f"{places[row]}: {reason}" for row, reason in broken.items()]
    return replace(table, places=places).without(broken), faults


def _read_csv(root: Path, config: DataConfig) -> tuple[Table, list[str], list[str]]:
    columns = _columns(root / "train.csv", ("ID", "target"))
    faults: list[str] = []
    if (root / "meta.csv").is_file():
        meta = _columns(root / "meta.csv", ("target", "class_name"))
        rows = zip(meta["target"], meta["class_name"], strict=True)
        pairs = sorted(rows, key=lambda pair: _label_order(pair[0]))
        labels, names = [label for label, _ in pairs], [name for _, name in pairs]
        for column, values in (("target", labels), ("class_name", names)):
            faults += [f"meta.csv: {column} '{v}' occurs {n} times" for v, n in Counter(values).items() if n > 1]
        known = f"meta.csv has {labels[0]} to {labels[-1]}" if labels else "meta.csv has none"
    else:
        labels = sorted(set(columns["target"]) - {""}, key=_label_order)
        names, known = list(labels), ""
    index = {label: position for position, label in enumerate(labels)}

    table = Table([], [], [], names, labels, [] if config.group_column in columns else None)
    places: list[str] = []
    first_row: dict[str, int] = {}
    for row, (image_id, label) in enumerate(zip(columns["ID"], columns["target"], strict=True), start=2):
        place = f"train.csv:{row}"
        if image_id in first_row:
            faults.append(f"{place}: ID '{image_id}' is already in row {first_row[image_id]}")
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
            table.groups.append(columns[config.group_column][row - 2])
    if not columns["ID"]:
        faults.append("train.csv:1: no rows below the header")
    return table, faults, places


def _read_folders(root: Path) -> tuple[Table, list[str], list[str]]:
    base = root / "train" if (root / "train").is_dir() else root
    names = sorted(d.name for d in base.iterdir() if d.is_dir() and not d.name.startswith("."))
    if base == root:
        names = [name for name in names if name != "test"]
    if not names:
        raise DataError(
            f"{root}: no train.csv, and no class folders in {base}; add one of them, "
            f"or draw an example: python -m trainer sample-data DIR"
        )
    table, places, faults = Table([], [], [], names, names), [], []
    for target, name in enumerate(names):
        files = _image_files(base / name)
        if not files:
            faults.append(f"{base / name}: the folder of class '{name}' has no image")
        for path in files:
            table.ids.append(str(path.relative_to(base)))
            table.paths.append(path)
            table.targets.append(target)
            places.append(str(path.relative_to(root)))
    return table, faults, places


def read_test(root: Path) -> Table:
    """The images to predict: those of sample_submission.csv in its order, or those in test/ by name.

    Raises DataError if an image is missing, or there are no images.
    """
    sample = root / "sample_submission.csv"
    if sample.is_file():
        ids = _columns(sample, ("ID",))["ID"]
        paths = [find_image(root, image_id, "test") for image_id in ids]
        repeated = [f"sample_submission.csv: ID '{i}' occurs {n} times" for i, n in Counter(ids).items() if n > 1]
        missing = [
            f"sample_submission.csv:{row}: test/{image_id}: the file is missing"
            for row, (image_id, path) in enumerate(zip(ids, paths, strict=True), start=2)
            if path is None
        ]
        if repeated or missing:
            raise DataError("\n".join([*repeated, *missing]))
        images = [path for path in paths if path is not None]
    else:
        images = _image_files(root / "test")
        ids = [str(path.relative_to(root / "test")) for path in images]
    if not images:
        raise DataError(f"{root}: no test images: add sample_submission.csv, or images in test/")
    return Table(ids, images, [], [], [])


def _image_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def _columns(path: Path, required: Sequence[str]) -> dict[str, list[str]]:
    """The values of each column by name. Missing values at the end of a row are empty. Raises DataError."""
    try:
        rows = _rows(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"{path}: the file is missing") from None
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path}: not a CSV file in UTF-8: {error}") from None
    header = rows[0]
    for column in required:
        if column not in header:
            raise DataError(f"{path}:1: no column '{column}'; {nearest(column, header)}")
    places = {name: header.index(name) for name in header}
    return {name: [row[at] if at < len(row) else "" for row in rows[1:]] for name, at in places.items()}


def _rows(text: str) -> list[list[str]]:
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # a column may hold the whole text of a page
    try:
        rows = list(csv.reader(io.StringIO(text, newline=None), strict=True))
    except csv.Error as error:
        if "end of data" in str(error):
            raise csv.Error("a quotation mark is not closed") from None
        rows = list(csv.reader(io.StringIO(text, newline=None)))  # quotation marks inside fields
    if not rows or not rows[0]:
        raise csv.Error("it is empty" if not text.strip() else "its first line is empty")
    for number, row in enumerate(rows, start=1):
        if len(row) > len(rows[0]):
            raise csv.Error(f"row {number} has {len(row)} fields, its header {len(rows[0])}")
    return rows


def _label_order(label: str) -> tuple[int, int, str]:
    return (0, int(label), label) if label.isascii() and label.isdigit() else (1, 0, label)


def training_fingerprint(table: Table) -> str:
    """A fingerprint of the images and labels of `table`, independent of the row order."""
    order = sorted(range(len(table)), key=table.ids.__getitem__)
    labels = [(table.ids[row], table.class_names[table.targets[row]]) for row in order]
    images = content_fingerprint(table.paths[row] for row in order)
    return hashlib.sha256(repr((labels, images)).encode()).hexdigest()[:16]


def content_fingerprint(paths: Iterable[Path]) -> str:
    """A fingerprint of the file contents, in order: the first 16 digits of a SHA-256."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]
