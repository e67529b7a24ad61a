"""Intervals of the macro F1 and the temperature, against scikit-learn and against what is known."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import f1_score

from trainer.scores import calibration, intervals


def drawn(images: int, right: float, seed: int = 0, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    chance = np.random.default_rng(seed)
    targets = chance.integers(classes, size=images)
    wrong = (targets + chance.integers(1, classes, size=images)) % classes
    return targets, np.where(chance.random(images) < right, targets, wrong)


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Of balanced classes and errors spread evenly the expected macro F1 is about the share that is right."""
    covered = 0
    for seed in range(200):
        low, high = intervals.interval(*drawn(200, 0.8, seed), 4)
        covered += low <= 0.8 <= high
    assert 180 <= covered <= 199


def test_more_images_make_a_narrower_interval_and_no_width_is_none() -> None:
    narrow, wide = (np.diff(intervals.interval(*drawn(n, 0.8), 4))[0] for n in (2000, 100))
    assert narrow < wide / 3
    targets, _ = drawn(50, 1)
    collapsed = np.zeros_like(targets)  # each class is all right or all wrong, too
    for predicted in (targets, collapsed):
        assert intervals.interval(targets, predicted, 4) is intervals.mean_interval(targets, [predicted], 4) is None
        assert set(intervals.class_intervals(targets, predicted, 4)[1:]) == {None}
    one_wrong = np.where(np.arange(50) == 7, (targets + 1) % 4, targets)
    assert intervals.interval(targets, one_wrong, 4) is not None
    assert intervals.class_intervals(targets, one_wrong, 4).count(None) == 2


def test_where_there_is_no_interval_the_words_say_why_and_what_is_known() -> None:
    assert intervals.in_words((0.5, 0.75), 0.6, 60) == "95 % of resamples: 0.500 to 0.750"
    assert "none of 60 images is wrong; up to 5.0 % of new images" in intervals.in_words(None, 1, 60)
    assert "up to 100.0 %" in intervals.in_words(None, 1, 2)
    assert intervals.in_words(None, 0.5, 60) == "no interval: resampling cannot vary this result"
    assert [intervals.in_table(*of) for of in (((0, 1), 0.5), (None, 1), (None, 0.5))] == [
        "0.000 to 1.000",
        "no mistake",
        "none",
    ]
    assert (1 - intervals.rule_of_three(60)) ** 60 < 0.05, "so many wrong ones would have shown"


def test_pairs_tell_apart_what_intervals_alone_do_not() -> None:
    """The second is wrong wherever the first is, and on six images more of 300."""
    targets, first = drawn(300, 0.9)
    second = first.copy()
    extra = np.flatnonzero(first == targets)[:12]
    second[extra] = (targets[extra] + 1) % 4
    ((low, high),) = intervals.differences(targets, [first], [[second]], 4)
    assert 0 < low < high
    assert intervals.interval(targets, second, 4)[1] > intervals.interval(targets, first, 4)[0]
    ((low, high),) = intervals.differences(targets, [first], [[first]], 4)
    assert low == high == 0


def test_the_mean_of_two_is_surer_than_either_unless_they_err_together() -> None:
    targets, first = drawn(300, 0.8)
    _, second = drawn(300, 0.8)
    apart = np.where(np.roll(first == targets, 7), targets, (targets + 1) % 4)
    alone = intervals.interval(targets, first, 4)
    assert intervals.mean_interval(targets, [first, second], 4) == alone, "the same predictions"
    assert np.diff(intervals.mean_interval(targets, [first, apart], 4)) < 0.85 * np.diff(alone)


def test_class_intervals_hold_each_class_f1() -> None:
    targets, predicted = drawn(300, 0.8)
    each = f1_score(targets, predicted, average=None)
    for (low, high), value in zip(intervals.class_intervals(targets, predicted, 4), each, strict=True):
        assert low < value < high


def sure(targets: np.ndarray, temperature: float, seed: int = 0) -> np.ndarray:
    """Probabilities that are right as often as they say at temperature 1, made surer by dividing by `temperature`."""
    chance = np.random.default_rng(seed)
    logits = chance.normal(0, 1.5, (len(targets), 4))
    honest = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for row, p in enumerate(honest):
        targets[row] = chance.choice(4, p=p)
    return np.asarray(calibration.temper(honest, temperature))


def test_the_temperature_that_spoilt_probabilities_is_found_and_mends_them() -> None:
    targets = np.zeros(4000, int)
    probabilities = sure(targets, 0.5)
    temperature = calibration.fit_temperature(probabilities, targets)
    assert temperature == pytest.approx(2, rel=0.1)
    mended = calibration.temper(probabilities, temperature)
    assert calibration.expected_error(mended, targets) < calibration.expected_error(probabilities, targets) / 3
    assert np.array_equal(mended.argmax(1), probabilities.argmax(1))


def test_a_set_without_a_mistake_does_not_make_a_model_sure_beyond_evidence() -> None:
    targets = np.arange(20) % 4
    probabilities = np.full((20, 4), 0.1)
    probabilities[np.arange(20), targets] = 0.7
    temperature = calibration.fit_temperature(probabilities, targets)
    assert 0.25 <= temperature < 1
    assert calibration.fit_temperature(probabilities[:0], targets[:0]) == 1.0


def test_reliability_counts_every_image_once() -> None:
    targets = np.zeros(500, int)
    found = calibration.reliability(sure(targets, 1.0), targets)
    assert found.counts.sum() == 500 and len(found.counts) == calibration.BINS
    assert np.all(found.accuracy[found.counts == 0] == 0)


def test_many_differences_are_those_of_pairs_and_copies_are_averaged() -> None:
    targets, best = drawn(200, 0.85)
    close, far = (np.where(np.arange(200) % step == 0, (targets + 1) % 4, targets) for step in (7, 2))
    found = intervals.differences(targets, [best], [[close], [far], [best]], 4)
    for other, (low, high) in zip((close, far), found, strict=False):
        (alone,) = intervals.differences(targets, [best], [[other]], 4)
        assert (low, high) == pytest.approx(alone, abs=2e-6)
    assert found[0][0] < 0 < found[0][1] and found[1][0] > 0 and found[2] == (0, 0)
    ((low, high),) = intervals.differences(targets, [best, best], [[close, far]], 4)
    assert (low + high) / 2 == pytest.approx(sum(sum(each) / 2 for each in found[:2]) / 2, abs=0.02)


def test_a_class_that_is_never_true_nor_predicted_makes_no_difference() -> None:
    targets = np.arange(60) % 3
    other = np.where(np.arange(60) < 6, (targets + 1) % 3, targets)
    ((low, high),) = intervals.differences(targets, [targets], [[other]], 9)
    (fewer,) = intervals.differences(targets, [targets], [[other]], 3)
    assert (low, high) == pytest.approx(fewer, abs=2e-6) and low > 0


def test_many_classes_and_images_have_the_same_intervals_with_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    targets, predicted = drawn(300, 0.8, classes=17)
    other = drawn(300, 0.7, 1, classes=17)[1]

    def all_intervals() -> list[object]:
        pair = intervals.differences(targets, [predicted, other], [[other, predicted]], 17)
        return [intervals.interval(targets, predicted, 17), *intervals.class_intervals(targets, predicted, 17), *pair]

    by_product = all_intervals()
    monkeypatch.setattr(intervals, "DENSE", 0)
    assert all_intervals() == by_product

    monkeypatch.setattr(intervals, "RESAMPLES", intervals._CHUNK)
    targets, predicted = drawn(20_000, 0.8, classes=1000)
    tracemalloc.start()
    assert intervals.interval(targets, predicted, 1000) is not None
    assert tracemalloc.get_traced_memory()[1] < 400e6
    tracemalloc.stop()
