"""Training images from train.csv, and perhaps meta.csv and the table of an own validation split."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from trainer.base.errors import DataError, nearest
from trainer.base.layout import TEST, TRAIN, VALIDATION, Layout, unread_in_words
from trainer.base.plural import counted
from trainer.base.spelling import visible
from trainer.config.schema import DataConfig
from trainer.data import csv_file
from trainer.data.csv_file import CsvFile
from trainer.data.rows import Table
from trainer.images import files

NO_GROUPS = "none"
"""The value of data.group_column that ignores groups."""
MISSING = frozenset(("", "nan", "NaN", "<NA>", "#N/A"))
"""What programs write for a value that is missing."""
NO_GROUP = MISSING | {"N/A", "null", "NULL", "None"}
WHOLE = re.compile(r"(\d+)\.0+")
"""A whole number as programs write it in a column that once had a missing value: 3.0."""
DIGITS = 100
"""Most digits of a label that is a number."""
USUAL_GROUP = "group"


@dataclass
class _Read:
    """The images read so far."""

    table: Table
    faults: list[str]
    places: list[str] = field(default_factory=list)
    by_id: dict[tuple[str, str], int] = field(default_factory=dict)
    """The line of each ID, by table and ID."""
    by_file: dict[Path, str] = field(default_factory=dict)
    """The place of the row of each file."""
    not_taken: set[Path] = field(default_factory=set)
    """Files of rows that are for test, or whose label is wrong."""
    without_file: set[str] = field(default_factory=set)
    """Messages on IDs without a file, without their place."""
    incomplete: set[int] = field(default_factory=set)
    """Classes that have an ID without a file."""


@dataclass(frozen=True)
class _Classes:
    names: list[str]
    labels: list[str]
    meanings: dict[str, int]
    """A value of the column `target` → the class."""
    numbers: dict[int, int]
    """The value as a number → the class, if only one class has it."""
    known: str
    """The valid labels, for a message."""

    def of(self, label: str) -> int | None:
        """The class of a value. 3.0 and 03 are 3, unless these are other classes."""
        if label in self.meanings:
            return self.meanings[label]
        number = _whole(label)
        return None if number is None else self.numbers.get(number)


def read(parts: Layout, config: DataConfig) -> tuple[Table, list[str], list[str], set[int]]:
    """The images of train.csv, all faults, the place of each image, and the classes whose images are not all there.
    Raises DataError if a table cannot be read."""
    assert parts.train_csv is not None
    training = _table(parts.train_csv, config)
    own = _table(parts.validation_csv, config) if parts.validation_csv is not None else None
    faults: list[str] = []
    sides, split, ignored = _sides(training, faults)
    labels = [*_labels(training, sides), *(own["target"] if own is not None else [])]
    classes = _from_meta(parts.meta_csv, faults) if parts.meta_csv is not None else _from_labels(labels)
    grouped = config.group_column in training
    table = Table(
        [],
        [],
        [],
        classes.names,
        classes.labels,
        [] if grouped else None,
        held_out=[] if own is not None or split else None,
        own_split=own.path.name if own is not None else f"column {split} of {training.path.name}" if split else "",
        notes=[
            *(note for table in (training, own) if table is not None for note in table.notes),
            *([ignored] * bool(ignored)),
        ],
    )
    if own is not None and split:
        faults.append(
            f"{own.path.name} and column {split} of {training.path.name} are two validation splits; remove one"
        )
    result = _Read(table, faults)
    _add(result, training, parts, classes, config, sides)
    if own is not None:
        _add(result, own, parts, classes, config, ["validation"] * len(own))
    table = replace(table, notes=[*table.notes, *_left_out(result, parts, sides)])
    return table, faults, result.places, result.incomplete


def classes(parts: Layout) -> dict[str, str]:
    """Label → class name of meta.csv; without it each label of train.csv is its own name. Raises DataError."""
    if parts.meta_csv is not None:
        named = _from_meta(parts.meta_csv, [])
    else:
        assert parts.train_csv is not None
        training = csv_file.read(parts.train_csv, ("ID", "target"), raw=("ID",))
        named = _from_labels(_labels(training, _sides(training, [])[0]))
    return dict(zip(named.labels, named.names, strict=True))


def _table(path: Path, config: DataConfig) -> CsvFile:
    grouping = () if config.group_column == NO_GROUPS else (config.group_column,)
    table = csv_file.read(path, ("ID", "target"), grouping, raw=("ID",))
    if grouping and config.group_column not in table and config.group_column != USUAL_GROUP:
        hint = nearest(config.group_column, table.columns)
        raise DataError(f"{path}:1: no column '{config.group_column}', which data.group_column names; {hint}")
    return table


def _from_meta(path: Path, faults: list[str]) -> _Classes:
    """The classes of meta.csv, in the order of their labels."""
    meta = csv_file.read(path, ("target", "class_name"))
    plain = _without_zeros(meta["target"])
    rows = sorted(zip(plain, meta["class_name"], strict=True), key=lambda pair: _label_order(pair[0]))
    labels, names = [label for label, _ in rows], [name for _, name in rows]
    for column, values in (("target", labels), ("class_name", names)):
        faults += [f"{path.name}: {column} '{v}' occurs {n} times" for v, n in Counter(values).items() if n > 1]
        faults += [f"{path.name}: a {column} is empty"] * ("" in values)
    known = f"meta.csv has {labels[0]} to {labels[-1]}" if labels else "meta.csv has none"
    meanings = {name: place for place, name in enumerate(names)}  # a table may have names where meta.csv has numbers
    meanings |= {label: place for place, label in enumerate(labels)}
    return _Classes(names, labels, meanings, _numbers(labels), known)


def _from_labels(column: Sequence[str]) -> _Classes:
    values = set(column) - MISSING
    plain = dict(zip(values, _without_zeros(list(values)), strict=True))
    labels = sorted(set(plain.values()), key=_label_order)
    place = {label: number for number, label in enumerate(labels)}
    return _Classes(list(labels), labels, {value: place[label] for value, label in plain.items()}, {}, "")


def _whole(label: str) -> int | None:
    plain = WHOLE.sub(r"\1", label)
    return int(plain) if _is_number(plain) else None


def _is_number(text: str) -> bool:
    """Whether the text is a whole number. Longer ones are text: Python refuses to convert thousands of digits."""
    return text.isascii() and text.isdigit() and len(text) <= DIGITS


def _numbers(labels: Sequence[str]) -> dict[int, int]:
    numbers = [_whole(label) for label in labels]
    once = Counter(numbers)
    return {number: place for place, number in enumerate(numbers) if number is not None and once[number] == 1}


def _without_zeros(values: Sequence[str]) -> list[str]:
    """Whole numbers without `.0`: all of them if all values are whole numbers, else those that are there without it:
    3.0 beside 3 is no class of its own."""
    plain = [WHOLE.sub(r"\1", value) for value in values]
    known = set(values)
    if all(value.isdigit() for value in plain):
        return plain
    return [short if short in known else value for short, value in zip(plain, values, strict=True)]


def _label_order(label: str) -> tuple[int, int, str]:
    return (0, int(label), label) if _is_number(label) else (1, 0, label)


def _sides(training: CsvFile, faults: list[str]) -> tuple[list[str], str, str]:
    """The side of each row (train, validation or test), the name of the column of the own validation split, and a note.
    Without such a split all rows are for training, except those for test, and the name is empty."""
    column = next((name for name in training.columns if name.lower() == "split"), None)
    values = [value.lower() for value in training[column]] if column else []
    words = {
        **dict.fromkeys(TRAIN, "train"),
        **dict.fromkeys(VALIDATION, "validation"),
        **dict.fromkeys(TEST, "test"),
    }
    sides = {words[value] for value in values if value in words}
    if column is None or not sides:
        seen = ", ".join(dict.fromkeys(value for value in values if value))
        ignored = (
            f"column {column} of {training.path.name} has no effect: none of its values is one of {', '.join(words)}"
        )
        return ["train"] * len(training), "", ignored if seen else ""
    for row, value in enumerate(values):
        if value not in words:
            faults.append(
                f"{training.place(row)}: {column} '{training[column][row]}' is unknown; valid: {', '.join(words)}; if "
                f"the column is not about training and validation, rename it"
            )
    if "train" not in sides:
        faults.append(f"{training.path.name}: column {column} has no row with one of {', '.join(TRAIN)}")
    return [words.get(value, "train") for value in values], column if "validation" in sides else "", ""


def _labels(training: CsvFile, sides: Sequence[str]) -> list[str]:
    """The labels of all rows but those for test, which may have any value instead of a label."""
    return [label for label, side in zip(training["target"], sides, strict=True) if side != "test"]


def _add(
    result: _Read, rows: CsvFile, parts: Layout, classes: _Classes, config: DataConfig, sides: Sequence[str]
) -> None:
    """Add the images of a table, and a fault for each row that has no image or no class."""
    table, faults = result.table, result.faults
    finders = {"train": files.finder(parts.root)}
    if table.held_out is not None:
        finders["validation"] = files.finder(parts.root, "validation")
    if not len(rows):
        faults.append(f"{rows.path.name}:1: no rows below the header")
    for row, (written, label) in enumerate(zip(rows["ID"], rows["target"], strict=True)):
        place, side, image_id = rows.place(row), sides[row], visible(written)
        if side == "test":
            result.not_taken.update(path for path in [finders["train"].find(written)[0]] if path is not None)
            continue
        if (rows.path.name, image_id) in result.by_id:
            faults.append(f"{place}: ID '{image_id}' is already in row {result.by_id[rows.path.name, image_id]}")
            continue
        result.by_id[rows.path.name, image_id] = rows.lines[row]
        target = classes.of(label)
        if target is None:
            why = "is empty" if label in MISSING else f"is out of range; {classes.known}"
            faults.append(f"{place}: ID '{image_id}': label '{label}' {why}{_nearest_label(label, classes)}")
            result.not_taken.update(path for path in [finders[side].find(written)[0]] if path is not None)
            continue
        path, why = finders[side].find(written)
        if path is None:
            folder = (parts.validation if side == "validation" else None) or parts.train
            missing = f"{folder.name if folder else 'train'}/{image_id}: {why}"
            result.without_file.add(missing)
            result.incomplete.add(target)
            faults.append(f"{place}: {missing}")
            continue
        if path in result.by_file:
            faults.append(f"{place}: ID '{image_id}' names the file of {result.by_file[path]}; remove one row")
            continue
        result.by_file[path] = place
        table.ids.append(_unique(image_id, path, parts, side))
        table.paths.append(path)
        table.targets.append(target)
        result.places.append(f"{place}: {path.relative_to(parts.root)}")
        if table.groups is not None:
            value = rows[config.group_column][row] if config.group_column in rows else ""
            table.groups.append("" if value in NO_GROUP else value)
        if table.held_out is not None:
            table.held_out.append(side == "validation")


def _nearest_label(label: str, classes: _Classes) -> str:
    if label in MISSING:
        return ""
    same = [known for known in classes.meanings if known.casefold() == label.casefold()]
    return f"; did you mean '{same[0]}'?" if same else ""


def _unique(image_id: str, path: Path, parts: Layout, side: str) -> str:
    """The ID of an image. Images of the own validation split have their folder in it, because train/ may have the same
    name."""
    folder = parts.validation
    if side == "train" or folder is None or not path.is_relative_to(folder):
        return image_id
    return visible(str(path.relative_to(parts.root)))


def _left_out(result: _Read, parts: Layout, sides: Iterable[str]) -> list[str]:
    """Notes on images and other files of the folders that no table names. Faults of their names are added."""
    notes = []
    own = result.table.own_split
    folders = [parts.train, parts.validation if parts.validation_csv is not None else None]
    found = files.Found()
    unlisted: dict[str, list[str]] = {}
    used = {*result.by_file, *result.not_taken}
    for folder in folders:
        if folder is not None:
            there = files.images_below(folder, parts.root)
            found.add(there)
            unlisted[folder.name] = [name for name, path in there.images if path not in used]
    result.faults.extend(fault for fault in found.faults if fault not in result.without_file)
    tables = " or ".join(path.name for path in (parts.train_csv, parts.validation_csv) if path is not None)
    parted = [files.unlisted_in_words(names, folder, tables) for folder, names in unlisted.items() if names]
    if parts.validation is not None and parts.validation_csv is None and not own:
        parted.append(
            f"{parts.validation.name}/, because there is no {parts.validation.name}.csv that names its images"
        )
    tests = sum(side == "test" for side in sides)
    if tests:
        parted.append(f"{counted(tests, 'row')} of column split of train.csv with the value test")
    unread = [part for part in parts.unread if not any(path.is_relative_to(part) for path in used)]
    if unread:
        parted.append(unread_in_words(unread))
    if parted:
        notes.append(f"left out: {', '.join(parted)}")
    words = files.left_out_in_words(found)
    return [*notes, *([words] if words else [])]
