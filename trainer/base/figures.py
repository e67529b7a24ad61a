"""The metrics of a validation. To add a metric, add an entry to `FIGURES`.

The columns of history.csv and metrics.json, the choices of `training.monitor`, the report, the model card and the
leaderboard use the entry. Only the functions import numpy, so importing this module is fast.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Labels = NDArray[np.integer[Any]]
    Probabilities = NDArray[np.floating[Any]]

Copy = Literal["clean", "corrupted", "mean"]
"""The copies of the validation images: clean, corrupted, or the mean of both values."""
SUFFIXES: dict[Copy, str] = {"clean": "", "corrupted": "_corrupted", "mean": "_mean"}


@dataclass(frozen=True)
class Counts:
    """Image counts per class (..., classes): with this label, with this prediction, and with both."""

    labelled: Floats
    predicted: Floats
    right: Floats


@dataclass(frozen=True)
class Figure:
    """One metric: a function of counts (..., classes), or of targets (N,) and probabilities (N, classes). Only a
    function of counts has a bootstrap interval and a comparison between runs."""

    name: str
    """Column names are `val_<name>`, `val_<name>_corrupted` and `val_<name>_mean`."""
    words: str
    short: str
    """Name in headings."""
    of_counts: Callable[[Counts], Floats] | None = None
    of_probabilities: Callable[[Labels, Probabilities], float] | None = None
    better: Literal["higher", "lower"] = "higher"
    highest: float | None = 1.0
    """The largest possible value. None: no limit."""
    copies: tuple[Copy, ...] = ("clean", "corrupted", "mean")
    leaderboard: tuple[Copy, ...] = ("clean", "corrupted")
    """Copies with a column in leaderboard.csv."""

    def column(self, copy: Copy = "clean") -> str:
        return f"val_{self.name}{SUFFIXES[copy]}"

    def of_labels(self, targets: Labels, predicted: Labels, classes: int) -> float:
        """The value for predicted classes (N,). Raises TypeError for a function of probabilities."""
        if self.of_counts is None:
            raise TypeError(f"{self.words} is a function of probabilities")
        return float(self.of_counts(count(targets, predicted, classes)))

    def value(self, targets: Labels, probabilities: Probabilities) -> float:
        if self.of_probabilities is not None:
            return self.of_probabilities(targets, probabilities)
        return self.of_labels(targets, probabilities.argmax(1), probabilities.shape[1])


def count(targets: Labels, predicted: Labels, classes: int) -> Counts:
    """Counts (classes,) from true and predicted class indices (N,)."""
    import numpy as np

    right = targets[targets == predicted]
    counts = (np.bincount(labels, minlength=classes).astype(np.float64) for labels in (targets, predicted, right))
    return Counts(*counts)


def class_f1(counts: Counts) -> Floats:
    """F1 per class (..., classes). NaN for a class without labels and predictions."""
    import numpy as np

    seen = counts.labelled + counts.predicted
    with np.errstate(invalid="ignore"):
        return np.where(seen > 0, 2 * counts.right / seen, np.nan)


def macro_f1(counts: Counts) -> Floats:
    """The mean over the classes that occur as label or prediction, as in scikit-learn."""
    import numpy as np

    return np.asarray(np.nanmean(class_f1(counts), axis=-1))


def accuracy(counts: Counts) -> Floats:
    import numpy as np

    return np.asarray(counts.right.sum(-1) / counts.labelled.sum(-1))


def cross_entropy(targets: Labels, probabilities: Probabilities) -> float:
    import numpy as np

    own = probabilities[np.arange(len(targets)), targets]
    return float(-np.log(np.maximum(own, 1e-12)).mean(dtype=np.float64))


F1 = Figure("f1", "macro F1", "F1", of_counts=macro_f1)
ACCURACY = Figure(
    "accuracy", "accuracy", "accuracy", of_counts=accuracy, copies=("clean", "corrupted"), leaderboard=("clean",)
)
LOSS = Figure(
    "loss", "mean cross-entropy in nats", "loss", of_probabilities=cross_entropy,
    better="lower", highest=None, copies=("clean",), leaderboard=(),
)  # fmt: skip

FIGURES: tuple[Figure, ...] = (F1, ACCURACY, LOSS)
"""All metrics, in column order. Always read `figures.FIGURES`, so that a test can add an entry."""

MAIN = F1.column()
"""The main metric of a run, for progress, status, champion and ensembles."""
DEFAULT_MONITOR = F1.column("mean")


@dataclass(frozen=True)
class Column:
    """A metric on clean images, on corrupted images, or the mean of both."""

    figure: Figure
    copy: Copy

    @property
    def name(self) -> str:
        return self.figure.column(self.copy)

    @property
    def parts(self) -> tuple[Copy, ...]:
        """The copies in this column's mean."""
        return ("clean", "corrupted") if self.copy == "mean" else (self.copy,)

    @property
    def short(self) -> str:
        short = self.figure.short
        return {
            "clean": f"val {short}",
            "corrupted": f"corrupted {short}",
            "mean": f"the mean of val {short} and corrupted {short}",
        }[self.copy]

    @property
    def words(self) -> str:
        words = self.figure.words
        return {
            "clean": f"{words}, clean validation images",
            "corrupted": f"{words}, corrupted copies of the validation images",
            "mean": f"mean of the two {words}",
        }[self.copy]

    def worth(self, value: float) -> float:
        """The value for comparisons: higher is better."""
        return value if self.figure.better == "higher" else -value


def columns() -> dict[str, Column]:
    """All columns by name, in the order of history.csv."""
    return dict(_columns(FIGURES))


@functools.lru_cache(maxsize=4)
def _columns(figures: tuple[Figure, ...]) -> dict[str, Column]:
    by_name: dict[str, Column] = {}
    for column in (Column(figure, copy) for copy in SUFFIXES for figure in figures if copy in figure.copies):
        if column.name in by_name:  # a figure called f1_mean would take the place of the mean of f1
            raise ValueError(f"two figures have the column {column.name}; rename '{column.figure.name}'")
        by_name[column.name] = column
    return by_name


def on_leaderboard(copy: Copy) -> tuple[str, ...]:
    """The columns of leaderboard.csv for this copy."""
    return _on_leaderboard(FIGURES, copy)


@functools.lru_cache(maxsize=8)
def _on_leaderboard(figures: tuple[Figure, ...], copy: Copy) -> tuple[str, ...]:
    return tuple(name for name, of in _columns(figures).items() if of.copy == copy and copy in of.figure.leaderboard)


def values(targets: Labels, copies: Mapping[Copy, Probabilities]) -> dict[str, float]:
    """All metrics by column, with six digits, from probabilities (N, classes) of the clean and perhaps the corrupted
    copies. Without corrupted copies the columns `_corrupted` and `_mean` are missing."""
    return _by_column({copy: {figure: figure.value(targets, p) for figure in FIGURES} for copy, p in copies.items()})


def values_of_labels(targets: Labels, copies: Mapping[Copy, Labels], classes: int) -> dict[str, float]:
    """The same from predicted classes (N,). Metrics of probabilities are missing."""
    counted = [figure for figure in FIGURES if figure.of_counts is not None]
    return _by_column(
        {
            copy: {figure: figure.of_labels(targets, predicted, classes) for figure in counted}
            for copy, predicted in copies.items()
        }
    )


def _by_column(by_copy: Mapping[Copy, Mapping[Figure, float]]) -> dict[str, float]:
    by_name: dict[str, float] = {}
    for name, column in columns().items():
        parts = [by_copy.get(part, {}).get(column.figure) for part in column.parts]
        known = [round(value, 6) for value in parts if value is not None]
        if len(known) == len(parts):
            by_name[name] = round(sum(known) / len(known), 6)
    return by_name


def score(by_column: Mapping[str, float], monitor: str) -> float:
    """The value of `training.monitor`. Without corrupted copies the clean value stands for a mean."""
    return by_column[monitor] if monitor in by_column else by_column[columns()[monitor].figure.column()]
