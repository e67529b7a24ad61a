"""Read and check the images and labels of a data folder."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from trainer.base import layout, spelling
from trainer.base.errors import DataError
from trainer.base.files import data_folder, write_text
from trainer.base.plural import counted
from trainer.config.schema import DataConfig
from trainer.data import csv_file, from_csv, from_folders
from trainer.data.rows import Table
from trainer.images import files
from trainer.images.examined import digests, unreadable

MOST = 50
"""Errors that a message lists."""
FEW = 10
"""Names that a note lists."""


def data_root(config: DataConfig) -> Path:
    """The folder of `data.root`, $DATA_DIR or the default `data`. Raises DataError if it does not exist."""
    return data_folder(config.root)


def read_training(root: Path, config: DataConfig, faults_file: Path | None = None) -> Table:
    """Read the training images of `root`, and those of its own validation split, and check each of them. Prints notes.

    Raises DataError with the errors of `examine`. If they are too many for a message, `faults_file` gets all of them.
    """
    table, faults = examine(root, config)
    say_notes(table)
    if faults:
        raise DataError("\n".join(in_short(faults, str(root), faults_file)))
    present = set(table.targets)
    absent = [name for target, name in enumerate(table.class_names) if target not in present]
    if absent:
        print(f"warning: {listed(absent, 'class')} of meta.csv without an image in train.csv")
    return table


def in_short(faults: Sequence[str], where: str, faults_file: Path | None = None) -> list[str]:
    """The first errors, their number, and what to do."""
    lines, more = list(faults[:MOST]), len(faults) - MOST
    if more > 0:
        lines.append(f"… and {more} more" + (f"; see {faults_file}" if faults_file else ""))
        if faults_file is not None:
            write_text(faults_file, "\n".join(faults) + "\n")
    return [*lines, f"{counted(len(faults), 'error')} in {where}; correct the data, then run again"]


def listed(names: Sequence[str], what: str) -> str:
    """`class 'a'`, or `3 classes (a, b, c)`: the names, or the first of many."""
    if len(names) == 1:
        return f"{what} '{names[0]}'"
    return f"{counted(len(names), what)} ({', '.join(names[:FEW])}{', …' * (len(names) > FEW)})"


def say_notes(table: Table) -> None:
    """Print what was left out, and how the tables were read."""
    for note in table.notes:
        print(f"note: {note}")


def examine(root: Path, config: DataConfig) -> tuple[Table, list[str]]:
    """The readable training images of `root`, and all errors with file and row: missing, unreadable and empty images,
    names that are not UTF-8, labels that are not in meta.csv, duplicate IDs, classes with one image.

    Raises DataError if there is no list of images.
    """
    try:
        parts = layout.find(root)
        layout.enter(root, parts.train, parts.validation)
    except OSError as error:
        raise DataError(f"{error.filename}: the folder cannot be read: {error.strerror}") from None
    why_not = layout.why_not_trainable(parts, config.format)
    if why_not is not None:
        above = layout.above(root)
        instead = f"give the folder above it: --data {above}" if above is not None else ""
        raise DataError(f"{root}: {why_not}; {instead or 'or draw an example: python -m trainer sample-data DIR'}")
    csv = layout.is_csv(parts, config.format)
    if not csv and config.group_column not in (from_csv.USUAL_GROUP, from_csv.NO_GROUPS):
        raise DataError(
            f"data.group_column={config.group_column}: {root} has class folders and no train.csv, so no image has a "
            "group; write a train.csv with the columns ID, target and "
            f"{config.group_column}, or remove data.group_column"
        )
    table, faults, places, incomplete = from_csv.read(parts, config) if csv else from_folders.read(parts)
    faults += _lonely(root, table, places, incomplete)
    broken = dict(unreadable(table.paths))
    faults += [f"{places[row]}: {reason}{advice(table.paths[row])}" for row, reason in broken.items()]
    alike = _in_other_case(table.class_names)
    notes = [*table.notes, *([f"{alike}: they are different classes"] if alike else [])]
    return replace(table, places=places, notes=notes).without(broken), faults


def _lonely(root: Path, table: Table, places: Sequence[str], incomplete: Container[int]) -> list[str]:
    """Errors on classes with too few images, and on a single class. None on classes in `incomplete`: other images of
    theirs have errors of their own, after whose fix there are more."""
    counts, faults = Counter(table.targets), []
    for target, name in enumerate(table.class_names):
        if counts[target] == 1 and table.held_out is None and target not in incomplete:
            place = places[table.targets.index(target)]
            faults.append(f"{place}: class '{name}' has one image; training and validation need one each; add another")
    others_to_come = any(target in incomplete for target in range(len(table.class_names)) if not counts[target])
    if len(counts) == 1 and not others_to_come:
        only = table.class_names[table.targets[0]]
        every = "the only image is" if len(table) == 1 else f"all {len(table)} images are"
        faults.append(f"{root}: {every} of one class, '{only}'; add images of another class")
    return faults


def advice(path: Path) -> str:
    """What to do about a file that is no image, after a semicolon. Empty for any other file."""
    advice = files.ADVICE.get(path.suffix.lower()) if path.suffix and not files.is_image(path.name) else None
    return f"; {advice}" if advice else ""


def _in_other_case(names: Sequence[str]) -> str:
    """The first class names that differ only in the case of letters."""
    by_key: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):  # a table may have one name twice, which is an error of its own
        by_key.setdefault(name.casefold(), []).append(name)
    alike = [" and ".join(f"'{name}'" for name in same) for same in by_key.values() if len(same) > 1]
    return f"classes {', '.join(alike[:FEW])} differ only in the case of letters" if alike else ""


def read_test(root: Path) -> Table:
    """The images to predict: those of sample_submission.csv in its order, or those in test/ by name, or those of a
    folder of images alone. `root` may be one image.

    Raises DataError with all errors: missing images, IDs that occur twice, names that are not UTF-8.
    """
    if root.is_file():
        return Table([root.name], [root], [], [], [])
    try:
        parts = layout.find(root)
        layout.enter(root, parts.test)
    except OSError as error:
        raise DataError(f"{error.filename}: the folder cannot be read: {error.strerror}") from None
    folder = parts.test or (root if _has_images_alone(parts) else None)
    found = files.images_below(folder, root) if folder is not None else files.Found()
    if parts.sample_csv is not None:
        return _read_sample(parts, parts.sample_csv, found)
    if not found.images and not found.faults:
        left_out = files.left_out_in_words(found)
        raise DataError(
            f"{root}: no test images: add sample_submission.csv, or images in test/{f' ({left_out})' * bool(left_out)}"
        )
    if found.faults:
        raise DataError("\n".join(found.faults))
    words = files.left_out_in_words(found)
    return Table(
        [name for name, _ in found.images],
        [path for _, path in found.images],
        [],
        [],
        [],
        notes=[words] if words else [],
    )


def classes_of(root: Path) -> dict[str, str] | None:
    """Label → class name of the training data in `root`, without a look at its images. None if there are none, or if
    they cannot be read."""
    with suppress(OSError, DataError):
        parts = layout.find(root)
        if parts.meta_csv is not None or parts.train_csv is not None:
            return from_csv.classes(parts)
        if parts.train is not None:
            names = sorted({spelling.visible(folder.name) for folder in parts.classes})
            return dict(zip(names, names, strict=True)) or None
    return None


def say_other_classes(root: Path, names: Sequence[str], labels: Sequence[str] | None, so: str) -> None:
    """Print a note, which ends with `so`, if the data folder has training data of other classes than a model. `labels`
    are those of the model's classes. None: they are unknown, and labels that have no names are compared by number."""
    theirs = classes_of(root)
    if theirs is None:
        return
    ours = dict(zip(labels if labels is not None else names, names, strict=True))
    if labels is None:
        unnamed = all(label == name and label.isdigit() for label, name in theirs.items())
        same = len(theirs) == len(ours) if unnamed else set(theirs.values()) == set(names)
    else:
        are_named = all(any(label != name for label, name in classes.items()) for classes in (theirs, ours))
        same = theirs == ours if are_named else theirs.keys() == ours.keys()
    if not same:
        in_words = f"{_classes_in_short(theirs)}; the model has {_classes_in_short(ours)}"
        print(f"note: {root} has other classes than the model: {in_words}; {so}")


def _classes_in_short(classes: Mapping[str, str]) -> str:
    words = [label if label == name else f"{label} {name}" for label, name in classes.items()]
    return f"{', '.join(words[:FEW])}{', …' * (len(words) > FEW)} ({len(words)})"


def has_test_images(root: Path) -> bool:
    """Whether the folder has anything to predict, by its top level. `read_test` may still find faults."""
    if root.is_file():
        return True
    try:
        parts = layout.find(root)
    except (OSError, DataError):
        return True  # `read_test` says what is wrong
    return parts.sample_csv is not None or parts.test is not None or _has_images_alone(parts)


def _has_images_alone(parts: layout.Layout) -> bool:
    """Whether a folder has images directly in it and nothing to train on, so that its images are to be predicted."""
    if parts.train is not None or parts.train_csv is not None or parts.validation is not None:
        return False
    return any(files.is_image(path.name) and not layout.is_hidden(path.name) for path in parts.root.iterdir())


def _read_sample(parts: layout.Layout, path: Path, found: files.Found) -> Table:
    """The images of sample_submission.csv in its order. IDs stay as they are written there."""
    sample = csv_file.read(path, ("ID",), raw=("ID",))
    finder = files.finder(parts.root, "test")
    folder = parts.test.name if parts.test is not None else "test"
    images: dict[Path, str] = {}
    ids, faults, missing = [], [], set()
    rows: dict[str, int] = {}
    for row, image_id in enumerate(sample["ID"]):
        place, seen = sample.place(row), spelling.visible(image_id)
        if seen in rows:
            faults.append(f"{place}: ID '{seen}' is already in row {rows[seen]}")
            continue
        rows[seen] = sample.lines[row]
        image, why = finder.find(image_id)
        if image is None:
            missing.add(f"{folder}/{seen}: {why}")
            faults.append(f"{place}: {folder}/{seen}: {why}")
        elif image in images:
            faults.append(f"{place}: ID '{seen}' names the file of {images[image]}")
        else:
            images[image] = place
            ids.append(image_id)
    if not len(sample):
        faults.append(f"{path.name}:1: no rows below the header")
    faults += [fault for fault in found.faults if fault not in missing]
    if faults:
        raise DataError("\n".join(faults))
    unlisted = [name for name, image in found.images if image not in images]
    notes = [
        *sample.notes,
        *([f"left out: {files.unlisted_in_words(unlisted, folder, path.name)}"] if unlisted else []),
    ]
    words = files.left_out_in_words(found)
    return Table(ids, list(images), [], [], [], notes=[*notes, *([words] if words else [])])


def training_fingerprint(table: Table) -> str:
    """A fingerprint of the images and labels of `table`, independent of the row order."""
    order = sorted(range(len(table)), key=table.ids.__getitem__)
    labels = [(table.ids[row], table.class_names[table.targets[row]]) for row in order]
    images = content_fingerprint(table.paths[row] for row in order)
    return hashlib.sha256(repr((labels, images)).encode()).hexdigest()[:16]


def content_fingerprint(paths: Iterable[Path]) -> str:
    """A fingerprint of the file contents, in order: the first 16 digits of a SHA-256."""
    digest = hashlib.sha256()
    for own in digests(list(paths)):
        digest.update(own)
    return digest.hexdigest()[:16]
