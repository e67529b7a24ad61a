"""Validation predictions of runs: joined over folds, and compared image by image. Import it lazily: it needs numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.base import figures
from trainer.scores import intervals


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
    """The content of val_predictions.npz; None if it is missing or not readable. Classes are sorted by name."""
    try:
        with np.load(run_dir / "val_predictions.npz", allow_pickle=False) as content:
            names = [str(name) for name in content["class_names"]]
            place = np.argsort(np.argsort(names))  # of each class among the sorted names
            order = np.argsort(content["ids"])
            cut = content["folds_fingerprint"] if "folds_fingerprint" in content else content["split_fingerprint"]
            corrupted = place[content["corrupted"].argmax(1)][order] if "corrupted" in content else None
            return Predictions(
                content["ids"][order],
                place[content["targets"]][order],
                place[content["probabilities"].argmax(1)][order],
                corrupted,
                tuple(sorted(names)),
                str(cut),
            )
    except Exception:  # a damaged file raises many kinds of errors: zlib.error, tokenize.TokenError, struct.error, …
        return None


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
