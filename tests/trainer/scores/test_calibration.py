"""Temperature and reliability of large validations."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from trainer.scores import calibration

CLASSES = 1000
TARGETS = np.arange(6_000) % CLASSES


def probabilities() -> Any:
    chance = np.random.default_rng(0)
    drawn = chance.random((len(TARGETS), CLASSES), dtype=np.float32) ** 8
    drawn[np.arange(len(TARGETS)), np.where(chance.random(len(TARGETS)) < 0.8, TARGETS, 5)] += 40
    drawn[3] = 0.0
    drawn[3, 7] = 1.0
    return drawn / drawn.sum(1, keepdims=True)


def test_a_temperature_changes_each_row_as_the_formula_says() -> None:
    drawn = probabilities()
    logits = np.log(np.maximum(drawn.astype(np.float64), 1e-12)) / 1.7
    scaled = np.exp(logits - logits.max(1, keepdims=True))
    expected = (scaled / scaled.sum(1, keepdims=True)).astype(np.float32)
    np.testing.assert_array_equal(calibration.temper(drawn, 1.7), expected)
    assert calibration.temper(drawn[:0], 1.7).shape == (0, CLASSES)
    # the temperature whose tempered probabilities are `drawn` is found again
    assert calibration.fit_temperature(expected, TARGETS) == pytest.approx(
        calibration.fit_temperature(drawn, TARGETS) / 1.7, rel=0.01
    )


@pytest.mark.parametrize(
    ("compute", "times"),
    [
        (lambda drawn: calibration.temper(drawn, 1.5), 2),
        (lambda drawn: calibration.fit_temperature(drawn, TARGETS), 4),
    ],
)
def test_its_memory_is_a_few_times_that_of_the_probabilities(
    monkeypatch: pytest.MonkeyPatch, compute: Callable[[Any], Any], times: int
) -> None:
    monkeypatch.setattr(calibration, "_TOGETHER", 2**16)
    drawn = probabilities()
    compute(drawn)  # imports
    tracemalloc.start()
    try:
        compute(drawn)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < times * drawn.nbytes
