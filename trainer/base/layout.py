"""The layout of a data folder: its tables, and its folders for training, validation and test.

Trainer and launcher use the same rules, so `submit` refuses what `train` would refuse.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from trainer.base.errors import DataError
from trainer.base.spelling import visible

TRAIN = ("train", "training")
VALIDATION = ("val", "valid", "validation")
TEST = ("test", "testing")
"""Names of the folders of a split, in any case. They are never classes of a folder that has class folders directly."""
UNREAD = ("dev", "devel", "development", "eval", "evaluation", "holdout")
"""Other names of a split that people use, in any case. Beside training data nothing reads such a folder or table."""
SYSTEM = frozenset(
    ("__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found", "#recycle")
)
"""Folders that operating systems and storage devices make. They have no images of the data set."""
_EFFECTIVE = os.access in os.supports_effective_ids


@dataclass(frozen=True)
class Layout:
    """The parts of a data folder. None: there is no such part."""

    root: Path
    train: Path | None
    validation: Path | None
    test: Path | None
    train_csv: Path | None
    validation_csv: Path | None
    meta_csv: Path | None
    sample_csv: Path | None
    classes: tuple[Path, ...]
    """Class folders with training images, by name: those in `train`, or those in `root` if there is no `train`."""
    results: tuple[Path, ...] = ()
    """Folders in `root` with results of runs. They are not classes."""
    unread: tuple[Path, ...] = ()
    """Folders and tables in `root` whose names are in `UNREAD`. Beside `train.csv` or `train` they have no role."""

    @property
    def read(self) -> tuple[Path, ...]:
        """Everything of the root that training reads: tables and folders. The class folders, if they are in `root`."""
        parts = (self.train_csv, self.validation_csv, self.meta_csv, self.train, self.validation)
        here = () if self.train is not None else self.classes
        return (*(part for part in parts if part is not None), *here)


def find(root: Path) -> Layout:
    """The layout of the data folder `root`. Raises DataError if two parts have one role, and OSError."""
    folders: list[Path] = []
    files: list[Path] = []
    with os.scandir(root) as entries:
        for entry in entries:
            if not is_hidden(entry.name):
                (folders if is_folder(entry) else files).append(Path(entry.path))
    train = _role(root, folders, TRAIN)
    validation = _role(root, folders, VALIDATION)
    test = _role(root, folders, TEST)
    roles = {train, validation, test}
    candidates = _folders(train) if train is not None else [folder for folder in folders if folder not in roles]
    results = [folder for folder in candidates if folder.parent == root and _has_results(folder)]
    return Layout(
        root,
        train,
        validation,
        test,
        _role(root, files, ["train.csv"]),
        _role(root, files, [f"{name}.csv" for name in VALIDATION]),
        _role(root, files, ["meta.csv"]),
        _role(root, files, ["sample_submission.csv"]),
        tuple(sorted((c for c in candidates if c not in results), key=lambda folder: visible(folder.name))),
        tuple(sorted(results)),
        tuple(sorted(_unread(folders, files))),
    )


def enter(*folders: Path | None) -> None:
    """Raises PermissionError if this user can list a folder and cannot open its files (no right to search it)."""
    for folder in folders:
        if folder is not None and not os.access(folder, os.X_OK, effective_ids=_EFFECTIVE):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def is_csv(layout: Layout, kind: str) -> bool:
    """Whether `data.format` = `kind` (auto, csv or imagefolder) means train.csv for this folder."""
    return kind == "csv" or (kind == "auto" and layout.train_csv is not None)


def why_not_trainable(layout: Layout, kind: str) -> str | None:
    """Why a run with `data.format` = `kind` cannot train on the folder, judged by its top level. None: it can."""
    if is_csv(layout, kind):
        return None if layout.train_csv is not None else "has no train.csv, which data.format=csv needs"
    if layout.classes:
        return None
    folder = layout.train.name if layout.train is not None else "train"
    wants = f"has no class folders in {folder}/, which data.format=imagefolder needs"
    return wants if kind == "imagefolder" else f"has neither train.csv nor class folders in {folder}/"


def above(root: Path) -> Path | None:
    """The data folder that has `root` as one of its parts, such as its train/. None: there is none."""
    if root.resolve().name.lower() not in (*TRAIN, *VALIDATION, *TEST):
        return None
    with suppress(OSError, DataError):
        parts = find(root.resolve().parent)
        if parts.train_csv is not None or (parts.train is not None and parts.classes):
            return root.parent if root.name not in ("", "..") else root.resolve().parent
    return None


def class_folders(folder: Path) -> list[Path]:
    """The folders in `folder` that are not hidden, by name."""
    return sorted(_folders(folder), key=lambda found: visible(found.name))


def is_hidden(name: str) -> bool:
    """Whether a file or folder belongs to a program and not to the data set, as `.ipynb_checkpoints`."""
    return name.startswith(".") or name in SYSTEM


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether a name is a folder, also through links. A link that leads in circles is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_file(entry: os.DirEntry[str]) -> bool:
    """Whether a name is a regular file, also through links. A link that leads in circles is none."""
    try:
        return entry.is_file()
    except OSError:
        return False


def unread_in_words(parts: Iterable[Path]) -> str:
    """A note on the folders and tables of a split that are not read because of their names."""
    names = ", ".join(part.name + "/" * part.is_dir() for part in parts)
    return f"{names}, which nothing reads (the names of a validation split are val/ and val.csv)"


def _unread(folders: Iterable[Path], files: Iterable[Path]) -> list[Path]:
    names = (*UNREAD, *(f"{name}.csv" for name in UNREAD))
    return [path for path in (*folders, *files) if visible(path.name).lower() in names]


def _folders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return [Path(entry.path) for entry in entries if is_folder(entry) and not is_hidden(entry.name)]


def _role(root: Path, paths: Iterable[Path], names: Sequence[str]) -> Path | None:
    """The one of `paths` with one of `names`. Raises DataError if there are several."""
    found = sorted(path for path in paths if visible(path.name).lower() in names)
    if len(found) > 1:
        raise DataError(
            f"{root}: {' and '.join(path.name for path in found)} have one meaning; merge them, or remove one"
        )
    return found[0] if found else None


TRAINING = ".training"
"""A file in the folder of a run that is in progress."""


def _has_results(folder: Path) -> bool:
    """Whether a folder is that of a run, or has runs of this program: `outputs` and `runs` are their usual places."""
    runs = ("config.yaml", "job.yaml", "data_faults.txt", TRAINING)
    try:
        if any((folder / name).is_file() for name in ("progress.json", TRAINING)):
            return True
        return any((child / name).is_file() for child in _folders(folder) for name in runs)
    except OSError:
        return False
