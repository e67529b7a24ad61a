"""Calibration of probabilities: reliability, expected calibration error, and temperature."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

BINS = 15
_LOWEST = 1e-12
_TOGETHER = 2**20
"""Probabilities that are computed with at once: in float64 all of a large validation would take gigabytes."""

Probabilities = NDArray[np.floating]


@dataclass(frozen=True)
class Reliability:
    """Equal bins of confidence (0 to 1). Per bin: image count, mean confidence, accuracy."""

    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]


def reliability(probabilities: Probabilities, targets: NDArray[np.integer], bins: int = BINS) -> Reliability:
    """The bins for probabilities (N, classes) and class indices (N,). Empty bins have zeros."""
    sure = probabilities.max(1).astype(np.float64)
    right = probabilities.argmax(1) == targets
    place = np.minimum((sure * bins).astype(int), bins - 1)
    counts = np.bincount(place, minlength=bins)
    some = np.maximum(counts, 1)
    return Reliability(
        counts,
        np.bincount(place, weights=sure, minlength=bins) / some,
        np.bincount(place, weights=right, minlength=bins) / some,
    )


def expected_error(probabilities: Probabilities, targets: NDArray[np.integer], bins: int = BINS) -> float:
    """Expected calibration error, 0 to 1: the gap between confidence and accuracy, averaged over the images (Naeini,
    Cooper and Hauskrecht 2015)."""
    curve = reliability(probabilities, targets, bins)
    return float((curve.counts * np.abs(curve.confidence - curve.accuracy)).sum() / max(1, curve.counts.sum()))


def temper(probabilities: Probabilities, temperature: float) -> NDArray[np.float32]:
    """softmax(log p / temperature). Above 1 probabilities are less confident, below 1 more. The class order stays."""
    result = np.empty(probabilities.shape, np.float32)
    for rows in _blocks(probabilities):
        logits = np.log(np.maximum(probabilities[rows].astype(np.float64), _LOWEST)) / temperature
        scaled = np.exp(logits - logits.max(1, keepdims=True))
        result[rows] = scaled / scaled.sum(1, keepdims=True)
    return result


def _blocks(probabilities: Probabilities) -> list[slice]:
    """Slices of the rows, with about `_TOGETHER` numbers each."""
    images, classes = probabilities.shape
    step = max(1, _TOGETHER // max(1, classes))
    return [slice(row, min(row + step, images)) for row in range(0, images, step)]


def tempered(probabilities: torch.Tensor, temperature: float) -> torch.Tensor:
    """Probabilities (N, classes) at the temperature of the calibration."""
    if temperature == 1:
        return probabilities
    return torch.from_numpy(temper(probabilities.numpy(), temperature))


def fit_temperature(probabilities: Probabilities, targets: NDArray[np.integer]) -> float:
    """The temperature (Guo et al. 2017) with the least cross-entropy on these images, from 1/4 to 4.

    A normal prior on the logarithm of the temperature, with the weight of one image, pulls it towards 1. Without it the
    temperature of a set without mistakes would go to 0, and the model would be overconfident.
    """
    from scipy.optimize import minimize_scalar

    if not len(targets):
        return 1.0
    logits = probabilities.astype(np.float64)
    np.log(np.maximum(logits, _LOWEST, out=logits), out=logits)

    def cost(log_temperature: float) -> float:
        losses = []
        for rows in _blocks(logits):
            scaled = logits[rows] / np.exp(log_temperature)
            scaled -= scaled.max(1, keepdims=True)
            own = targets[rows]
            losses.append(np.log(np.exp(scaled).sum(1)) - scaled[np.arange(len(own)), own])
        return float(np.concatenate(losses).sum() + log_temperature**2 / 2)

    minimum = minimize_scalar(cost, bounds=(-np.log(4), np.log(4)), method="bounded")
    return round(float(np.exp(minimum.x)), 4)
