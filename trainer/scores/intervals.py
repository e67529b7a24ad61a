"""Confidence intervals of metrics: bootstrap over the images. The launcher uses it too: no torch, no pandas."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.base.figures import Counts, class_f1, macro_f1
from trainer.base.plural import counted

RESAMPLES = 2000
_CHUNK = 250
DENSE = 2**20
"""Most images × classes for matrix products."""

Labels = NDArray[np.integer[Any]]
Interval = tuple[float, float]
"""Lower and upper bound."""
Statistic = Callable[[Counts], NDArray[np.float64]]
"""A metric as a function of the counts of b resamples (b, classes)."""


def interval(targets: Labels, predicted: Labels, classes: int, level: float = 0.95, seed: int = 0) -> Interval | None:
    """Percentile bootstrap interval of the macro F1 (Efron and Tibshirani 1993, ch. 13). It draws images with
    replacement within each class, so that every resample has all classes.

    None if all resamples are equal, because each class is all right or all wrong: an interval of width 0 would look
    certain. `in_words` then says what is known."""
    return _width(_percentiles(_resampled(targets, predicted, classes, seed), level))


def mean_interval(
    targets: Labels, predictions: Sequence[Labels], classes: int, level: float = 0.95, seed: int = 0
) -> Interval | None:
    """The same for the mean macro F1 of several predictions on the same images, with the same resamples."""
    drawn = np.mean([_resampled(targets, own, classes, seed) for own in predictions], axis=0)
    return _width(_percentiles(drawn, level))


def class_intervals(
    targets: Labels, predicted: Labels, classes: int, level: float = 0.95, seed: int = 0
) -> list[Interval | None]:
    """The same for the F1 of each class."""
    f1 = np.nan_to_num(_resampled(targets, predicted, classes, seed, class_f1))
    return [_width(_percentiles(f1[:, c], level)) for c in range(classes)]


def rule_of_three(images: int) -> float:
    """The largest share of wrong new images (95 %) if none of `images` is wrong: 3/N (J. Hanley and A. Lippman-Hand: If
    Nothing Goes Wrong, Is Everything All Right?, JAMA 249, 1983)."""
    return min(1.0, 3 / images)


def in_words(bounds: Sequence[float] | None, f1: float, images: int) -> str:
    """The interval of a macro F1 for a line of text, or the reason why there is none."""
    if bounds is not None:
        return f"95 % of resamples: {bounds[0]:.3f} to {bounds[1]:.3f}"
    if f1 == 1:
        share = f"up to {100 * rule_of_three(images):.1f} % of new images may be wrong (rule of three)"
        return f"no interval: none of {counted(images, 'image')} is wrong; {share}"
    return "no interval: resampling cannot vary this result"


def in_table(bounds: Sequence[float] | None, f1: float, digits: int = 3) -> str:
    """The same for a cell of a table."""
    if bounds is not None:
        return f"{bounds[0]:.{digits}f} to {bounds[1]:.{digits}f}"
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
    """Intervals of the metric of `best` minus that of each of `others` on the same images (paired bootstrap, Efron and
    Tibshirani 1993, ch. 16). If an interval contains 0, the two are not distinguishable.

    Each has predictions for the same number of copies of the images (clean, corrupted). The comparison uses the mean
    over the copies. A resample draws an image with all its copies, the same for all.
    """
    models = [best, *others]
    copies = [predicted for model in models for predicted in model]
    drawn = np.array(_all_resampled(targets, copies, classes, seed, of))
    means = drawn.reshape(len(models), len(best), -1).mean(axis=1)
    return [_percentiles(means[0] - other, level) for other in means[1:]]


def _draws(targets: Labels, seed: int) -> Iterator[NDArray[np.intp]]:
    """Row numbers of RESAMPLES resamples in chunks (b, N). Equal targets and seeds give equal (paired) resamples."""
    generator = np.random.default_rng(seed)
    rows = [np.flatnonzero(targets == c) for c in np.unique(targets)]
    for _ in range(RESAMPLES // _CHUNK):
        yield np.concatenate([own[generator.integers(len(own), size=(_CHUNK, len(own)))] for own in rows], axis=1)


def _resampled(
    targets: Labels, predicted: Labels, classes: int, seed: int, of: Statistic = macro_f1
) -> NDArray[np.float64]:
    return _all_resampled(targets, [predicted], classes, seed, of)[0]


def _all_resampled(
    targets: Labels, predictions: Sequence[Labels], classes: int, seed: int, of: Statistic
) -> list[NDArray[np.float64]]:
    """The metric (RESAMPLES, …) of each of `predictions` on the same resamples."""
    labelled = np.bincount(targets, minlength=classes).astype(np.float64)  # the same in each resample
    count = _by_product if len(targets) * classes <= DENSE else _by_counting
    parts: list[list[NDArray[np.float64]]] = [[] for _ in predictions]
    for chunk in _draws(targets, seed):
        counts = count(targets, predictions, classes, chunk)
        for values, (predicted, right) in zip(parts, counts, strict=True):
            values.append(of(Counts(np.broadcast_to(labelled, predicted.shape), predicted, right)))
    return [np.concatenate(values) for values in parts]


Pairs = Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]
"""Per model: how often each class is predicted, and how often rightly, in each of b resamples (b, classes)."""


def _by_product(targets: Labels, predictions: Sequence[Labels], classes: int, chunk: NDArray[np.intp]) -> Pairs:
    """By matrix products, whose sums of counts are exact. The fastest way for few images and classes."""
    one_hot = np.eye(classes, dtype=np.float32)
    labels, drawn = one_hot[targets], _times_drawn(chunk)
    for predicted in predictions:
        taken = one_hot[predicted]
        yield (drawn @ taken).astype(np.float64), (drawn @ (labels * taken)).astype(np.float64)


def _times_drawn(rows: NDArray[np.intp]) -> NDArray[np.float32]:
    """How often each image is in each of b resamples (b, N)."""
    cells = rows + np.arange(len(rows))[:, None] * rows.shape[1]
    return np.bincount(cells.ravel(), minlength=rows.size).reshape(rows.shape).astype(np.float32)


def _by_counting(targets: Labels, predictions: Sequence[Labels], classes: int, chunk: NDArray[np.intp]) -> Pairs:
    """By counting classes. Takes no memory for images × classes."""
    start = np.arange(len(chunk))[:, None] * classes
    for predicted in predictions:
        cells = start + predicted[chunk]
        right = cells[(predicted == targets)[chunk]]
        counts = (np.bincount(of.ravel(), minlength=start.size * classes) for of in (cells, right))
        yield tuple(count.reshape(-1, classes).astype(np.float64) for count in counts)  # type: ignore[misc]


def _percentiles(values: NDArray[np.float64], level: float) -> Interval:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return round(float(low), 6), round(float(high), 6)


def _width(bounds: Interval) -> Interval | None:
    return bounds if bounds[0] < bounds[1] else None
