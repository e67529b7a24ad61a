"""Validation predictions of runs: joined over folds, and compared image by image. Import it lazily: it needs numpy."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from launcher.record import trainer_files
from launcher.record.trainer_files import LIMITS, PREDICTIONS
from trainer.base import figures
from trainer.scores import intervals

UNPACKED = 4 * LIMITS[PREDICTIONS]
"""Largest size in bytes of the arrays in a file of predictions."""
CLASSES = 100_000
"""The most classes."""
LONGEST = 1000
"""Characters of the longest id, name or fingerprint."""


@dataclass(frozen=True)
class Predictions:
    """Validation predictions of one model, or of all folds of one configuration, sorted by image id."""

    ids: NDArray[np.str_]
    targets: NDArray[np.int64]
    """(N,) class numbers."""
    clean: NDArray[np.int64]
    """(N,) predicted class numbers."""
    corrupted: NDArray[np.int64] | None
    """The same for the corrupted copies; None if there are none."""
    class_names: tuple[str, ...]
    cut: str
    """Fingerprint of the folds, else of the split. Predictions of equal fingerprint may be compared and joined."""

    @property
    def copies(self) -> dict[figures.Copy, NDArray[np.int64]]:
        """Predicted class numbers (N,) by the name of the copy."""
        return {"clean": self.clean} if self.corrupted is None else {"clean": self.clean, "corrupted": self.corrupted}

    def parts(self, column: figures.Column) -> list[NDArray[np.int64]] | None:
        """The predictions that a figure needs; None if they are missing."""
        copies = self.copies
        return [copies[part] for part in column.parts] if copies.keys() >= set(column.parts) else None


def load(run_dir: Path) -> Predictions | None:
    """The content of val_predictions.npz; None if it is missing, not readable or not whole. Classes are sorted by
    name. Any trainer may have written the file, so that its size, the types and the numbers in it are checked."""
    try:
        with trainer_files.open_file(run_dir, PREDICTIONS, LIMITS[PREDICTIONS]) as file:
            if not _is_small(file):
                return None
            with np.load(file, allow_pickle=False) as content:
                return _checked(content)
    except Exception:  # a damaged file raises many kinds of errors: zlib.error, tokenize.TokenError, struct.error, …
        return None


def _is_small(file: BufferedReader) -> bool:
    """Whether an archive has few members that are not too large together. Its list of members is measured before it is
    read."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - 2**16 - 22))
    end = file.read()
    at = end.rfind(b"PK\x05\x06")
    if (
        at < 0
        or len(end) < at + 22
        or int.from_bytes(end[at + 12 : at + 16], "little") > 2**16
        or end[at - 20 : at - 16] == b"PK\x06\x07"
    ):
        return False
    file.seek(0)
    with zipfile.ZipFile(file) as archive:
        small = sum(member.file_size for member in archive.infolist()) <= UNPACKED
    file.seek(0)
    return small


def _checked(content: Mapping[str, NDArray[Any]]) -> Predictions | None:
    class_names = content["class_names"]
    if not (class_names.ndim == 1 and _is_text(class_names) and len(class_names) <= CLASSES):
        return None
    names = [str(name) for name in class_names]
    ids, targets, probabilities = content["ids"], content["targets"], content["probabilities"]
    corrupted = content.get("corrupted")
    cut = content["folds_fingerprint"] if "folds_fingerprint" in content else content["split_fingerprint"]
    valid = (
        len(set(names)) == len(names)
        and ids.ndim == 1
        and _is_text(ids)
        and cut.ndim == 0
        and _is_text(cut)
        and targets.shape == ids.shape
        and targets.dtype.kind in "iu"
        and (not len(ids) or (int(targets.min()) >= 0 and int(targets.max()) < len(names)))
        and all(
            _is_probability(each, (len(ids), len(names))) for each in (probabilities, corrupted) if each is not None
        )
    )
    if not valid:
        return None
    place = np.argsort(np.argsort(names))  # of each class among the sorted names
    order = np.argsort(ids)
    return Predictions(
        ids[order],
        place[targets.astype(np.int64)][order],
        place[probabilities.argmax(1)][order],
        None if corrupted is None else place[corrupted.argmax(1)][order],
        tuple(sorted(names)),
        str(cut)[:LONGEST],
    )


def _is_text(values: NDArray[Any]) -> bool:
    """Whether these are texts of at most LONGEST characters. A size of 0 allows any number of them in a small file."""
    return values.dtype.kind == "U" and 0 < values.itemsize <= 4 * LONGEST


def _is_probability(values: NDArray[Any], shape: tuple[int, int]) -> bool:
    return values.shape == shape and values.dtype.kind == "f" and bool(np.isfinite(values).all())


def joined(parts: Sequence[Predictions]) -> Predictions | None:
    """The predictions of several folds as one set: each image predicted by the model that was not trained on it. None
    if they are not folds of one partition."""
    first = parts[0]
    if any((part.cut, part.class_names) != (first.cut, first.class_names) for part in parts):
        return None
    ids = np.concatenate([part.ids for part in parts])
    order = np.argsort(ids)
    if (ids[order][1:] == ids[order][:-1]).any():
        return None
    worse = [part.corrupted for part in parts if part.corrupted is not None]
    return Predictions(
        ids[order],
        np.concatenate([part.targets for part in parts])[order],
        np.concatenate([part.clean for part in parts])[order],
        np.concatenate(worse)[order] if len(worse) == len(parts) else None,
        first.class_names,
        first.cut,
    )


def scores(joint: Predictions) -> dict[str, Any]:
    """The figures of predicted classes and the 95 % intervals of the macro F1 (None if there is none), with the names
    of metrics.json."""
    classes = len(joint.class_names)
    return figures.values_of_labels(joint.targets, joint.copies, classes) | {
        f"{figures.F1.column(copy)}_interval": intervals.interval(joint.targets, predicted, classes)
        for copy, predicted in joint.copies.items()
    }


def distinguishable(
    best: Predictions, others: Sequence[Predictions | None], column: figures.Column
) -> list[bool | None]:
    """For each of `others`: whether its figure differs significantly from that of `best`, that is, whether the 95 %
    interval of the difference (paired bootstrap) excludes 0. None if they were not validated on the same images, or if
    predicted classes do not determine the figure."""
    own, figure = best.parts(column), column.figure.of_counts
    pairs = [(row, parts) for row, other in enumerate(others) if (parts := _comparable(best, other, column))]
    differs: list[bool | None] = [None] * len(others)
    if own is None or figure is None or not pairs:
        return differs
    classes = len(best.class_names)
    compared = intervals.differences(best.targets, own, [parts for _, parts in pairs], classes, of=figure)
    for (row, _), (low, high) in zip(pairs, compared, strict=True):
        differs[row] = not low <= 0 <= high
    return differs


def _comparable(best: Predictions, other: Predictions | None, column: figures.Column) -> list[NDArray[np.int64]] | None:
    if other is None or (other.cut, other.class_names) != (best.cut, best.class_names):
        return None
    same = np.array_equal(other.ids, best.ids) and np.array_equal(other.targets, best.targets)
    return other.parts(column) if same else None
