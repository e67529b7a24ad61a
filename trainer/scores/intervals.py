"""How sure a figure is: bootstrap over the images. Imports neither torch nor pandas: the launcher uses it too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.base.figures import Counts, class_f1, macro_f1

RESAMPLES = 2000
_CHUNK = 250

Labels = NDArray[np.integer[Any]]
Interval = tuple[float, float]
"""Lower and upper bound."""
Statistic = Callable[[Counts], NDArray[np.float64]]
"""A figure as a function of the counts of b resamples (b, classes)."""


def interval(targets: Labels, predicted: Labels, classes: int, level: float = 0.95, seed: int = 0) -> Interval | None:
    """Percentile bootstrap interval of the macro F1 (Efron and Tibshirani 1993, ch. 13): images are drawn with
    replacement within each class, so that every resample has the classes of the set.

    None where all resamples are alike, since each class is all right or all wrong: the bootstrap cannot draw what did
    not occur, and an interval without width would pass for certainty. `in_words` says what is known all the same."""
    return _width(_percentiles(_resampled(targets, predicted, classes, seed), level))


def mean_interval(
    targets: Labels, predictions: Sequence[Labels], classes: int, level: float = 0.95, seed: int = 0
) -> Interval | None:
    """The same for the mean of the macro F1 of several predictions on the same images, drawn together."""
    drawn = np.mean([_resampled(targets, own, classes, seed) for own in predictions], axis=0)
    return _width(_percentiles(drawn, level))


def class_intervals(
    targets: Labels, predicted: Labels, classes: int, level: float = 0.95, seed: int = 0
) -> list[Interval | None]:
    """The same for the F1 of each class."""
    f1 = np.nan_to_num(_resampled(targets, predicted, classes, seed, class_f1))
    return [_width(_percentiles(f1[:, c], level)) for c in range(classes)]


def rule_of_three(images: int) -> float:
    """The share of new images that may be wrong at most (95 %) where none of `images` was: 3/N (J. Hanley and
    A. Lippman-Hand: If Nothing Goes Wrong, Is Everything All Right?, JAMA 249, 1983)."""
    return min(1.0, 3 / images)


def in_words(found: Sequence[float] | None, f1: float, images: int) -> str:
    """How sure the macro F1 of so many images is, for a line of text: the interval, or why there is none."""
    if found is not None:
        return f"95 % of resamples: {found[0]:.3f} to {found[1]:.3f}"
    if f1 == 1:
        share = f"up to {100 * rule_of_three(images):.1f} % of new ones may be wrong, by the rule of three"
        return f"no interval, since none of {images} images is wrong; {share}"
    return "no interval, since each class is all right or all wrong"


def in_table(found: Sequence[float] | None, f1: float, digits: int = 3) -> str:
    """The same for a cell of a table."""
    if found is not None:
        return f"{found[0]:.{digits}f} to {found[1]:.{digits}f}"
    return "no mistake" if f1 == 1 else "none"


def differences(
    targets: Labels,
    best: Sequence[Labels],
    others: Sequence[Sequence[Labels]],
    classes: int,
    level: float = 0.95,
    seed: int = 0,
    of: Statistic = macro_f1,
) -> list[Interval]:
    """Intervals of the figure of `best` minus that of each of `others` on the same images (paired bootstrap, Efron and
    Tibshirani 1993, ch. 16). Where one has 0 in it the two are not distinguishable.

    Each is given by the predictions of as many copies of the images (clean, corrupted), whose mean figure is compared.
    An image is drawn with all its copies, the same for all.
    """
    models = [best, *others]
    copies = [predicted for model in models for predicted in model]
    drawn = np.array(_all_resampled(targets, copies, classes, seed, of))
    means = drawn.reshape(len(models), len(best), -1).mean(axis=1)
    return [_percentiles(means[0] - other, level) for other in means[1:]]


def _draws(targets: Labels, seed: int) -> list[NDArray[np.intp]]:
    """Row numbers of RESAMPLES resamples in chunks (b, N): equal for equal targets and seed, so that they pair."""
    generator = np.random.default_rng(seed)
    rows = [np.flatnonzero(targets == c) for c in np.unique(targets)]
    return [
        np.concatenate([own[generator.integers(len(own), size=(_CHUNK, len(own)))] for own in rows], axis=1)
        for _ in range(RESAMPLES // _CHUNK)
    ]


def _resampled(
    targets: Labels, predicted: Labels, classes: int, seed: int, of: Statistic = macro_f1
) -> NDArray[np.float64]:
    return _all_resampled(targets, [predicted], classes, seed, of)[0]


def _all_resampled(
    targets: Labels, predictions: Sequence[Labels], classes: int, seed: int, of: Statistic
) -> list[NDArray[np.float64]]:
    """The figure (RESAMPLES, …) of each of `predictions` on the same resamples. A product of matrices takes a fraction
    of the time of confusion matrices, and sums of counts are exact in it."""
    one_hot = np.eye(classes, dtype=np.float32)
    labels = one_hot[targets]
    labelled = labels.sum(0, dtype=np.float64)  # the same in each resample
    parts: list[list[NDArray[np.float64]]] = [[] for _ in predictions]
    for chunk in _draws(targets, seed):
        drawn = _times_drawn(chunk)
        for values, predicted in zip(parts, predictions, strict=True):
            taken = one_hot[predicted]
            counts = (drawn @ taken).astype(np.float64), (drawn @ (labels * taken)).astype(np.float64)
            values.append(of(Counts(np.broadcast_to(labelled, counts[0].shape), *counts)))
    return [np.concatenate(values) for values in parts]


def _times_drawn(rows: NDArray[np.intp]) -> NDArray[np.float32]:
    """How often each image is in each of b resamples (b, N)."""
    cells = rows + np.arange(len(rows))[:, None] * rows.shape[1]
    return np.bincount(cells.ravel(), minlength=rows.size).reshape(rows.shape).astype(np.float32)


def _percentiles(values: NDArray[np.float64], level: float) -> Interval:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return round(float(low), 6), round(float(high), 6)


def _width(found: Interval) -> Interval | None:
    return found if found[0] < found[1] else None
