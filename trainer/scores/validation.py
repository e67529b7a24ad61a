"""The result of a validation: intervals, calibration, and the file with its probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.base.figures import F1, Copy
from trainer.base.files import replacing
from trainer.models import checkpoint
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
        made: dict[Copy, NDArray[np.float32]] = {"clean": self.clean.numpy()}
        return made if self.corrupted is None else {**made, "corrupted": self.corrupted.numpy()}

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


def save_validation(path: Path, kept: checkpoint.Checkpoint) -> None:
    """Write val_predictions.npz: ids (N,), targets (N,), class_names (C,), probabilities (N, C), split_fingerprint.
    Optional: corrupted (N, C) and folds_fingerprint."""
    more: dict[str, Any] = {
        key: np.asarray(kept.validation[key]) for key in ("corrupted", "folds_fingerprint") if key in kept.validation
    }
    with replacing(path) as temporary:
        np.savez_compressed(
            temporary,
            ids=np.array(kept.validation["ids"]),
            targets=kept.validation["targets"].numpy(),
            class_names=np.array(kept.class_names),
            probabilities=kept.validation["probabilities"].numpy(),
            split_fingerprint=np.array(kept.validation["split_fingerprint"]),
            **more,
        )
