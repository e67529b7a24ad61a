"""The result of a validation: probabilities, intervals, calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.base.figures import F1, Copy
from trainer.scores import calibration, intervals


@dataclass(frozen=True)
class Outcome:
    """A validation: rows of the table (N), targets (N,), and probabilities (N, classes) of the clean and perhaps the
    corrupted copies."""

    rows: list[int]
    targets: torch.Tensor
    clean: torch.Tensor
    corrupted: torch.Tensor | None

    @property
    def copies(self) -> dict[Copy, NDArray[np.float32]]:
        """Probabilities (N, classes) by the name of the copy."""
        copies: dict[Copy, NDArray[np.float32]] = {"clean": self.clean.numpy()}
        return copies if self.corrupted is None else {**copies, "corrupted": self.corrupted.numpy()}

    @property
    def pooled(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Probabilities and targets of all copies in sequence."""
        copies = list(self.copies.values())
        return np.concatenate(copies), np.tile(self.targets.numpy(), len(copies))


def certainty(outcome: Outcome, calibrated: bool = True) -> dict[str, Any]:
    """95 % intervals of the macro F1 (or None), the temperature, and the calibration error before and after it. If not
    `calibrated`: only the error before it."""
    classes, targets = outcome.clean.shape[1], outcome.targets.numpy()
    bounds: dict[str, Any] = {
        f"{F1.column(copy)}_interval": intervals.interval(targets, probabilities.argmax(1), classes)
        for copy, probabilities in outcome.copies.items()
    }
    return bounds | (calibration_figures(outcome) if calibrated else {"ece": _calibration_error(*outcome.pooled)})


def _calibration_error(probabilities: NDArray[np.float32], targets: NDArray[np.int64]) -> float:
    return round(calibration.expected_error(probabilities, targets), 6)


def calibration_figures(outcome: Outcome) -> dict[str, float]:
    """The temperature, and the expected calibration error before and after it, over all copies."""
    probabilities, targets = outcome.pooled
    temperature = calibration.fit_temperature(probabilities, targets)
    return {
        "temperature": temperature,
        "ece": _calibration_error(probabilities, targets),
        "ece_calibrated": _calibration_error(calibration.temper(probabilities, temperature), targets),
    }
