"""The outcome of a validation: what is known of it besides its scores, and the file that keeps its probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.base.files import replacing
from trainer.models import checkpoint
from trainer.scores import calibration, intervals


@dataclass(frozen=True)
class Outcome:
    """A validation: rows of the table (N), targets (N,), probabilities (N, classes) of the clean copies and of the
    corrupted ones, where there are."""

    rows: list[int]
    targets: torch.Tensor
    clean: torch.Tensor
    corrupted: torch.Tensor | None

    @property
    def pooled(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Probabilities and targets of all copies."""
        copies = [self.clean] if self.corrupted is None else [self.clean, self.corrupted]
        return torch.cat(copies).numpy(), self.targets.repeat(len(copies)).numpy()


def certainty(outcome: Outcome, calibrated: bool = True) -> dict[str, Any]:
    """95 % intervals of the macro F1 (None where there is none), the temperature, and the calibration error before and
    after it. Not `calibrated`: only the error of the probabilities as they are."""
    classes, targets = outcome.clean.shape[1], outcome.targets.numpy()
    bounds: dict[str, Any] = {
        f"{name}_interval": intervals.interval(targets, copy.argmax(1).numpy(), classes)
        for name, copy in (("val_f1", outcome.clean), ("val_f1_corrupted", outcome.corrupted))
        if copy is not None
    }
    return bounds | (calibration_figures(outcome) if calibrated else {"ece": _calibration_error(*outcome.pooled)})


def _calibration_error(probabilities: NDArray[np.float32], targets: NDArray[np.int64]) -> float:
    return round(calibration.expected_error(probabilities, targets), 6)


def calibration_figures(outcome: Outcome) -> dict[str, float]:
    """The temperature, and the expected calibration error before and after it, all copies pooled."""
    probabilities, targets = outcome.pooled
    temperature = calibration.fit_temperature(probabilities, targets)
    return {
        "temperature": temperature,
        "ece": _calibration_error(probabilities, targets),
        "ece_calibrated": _calibration_error(calibration.temper(probabilities, temperature), targets),
    }


def save_validation(path: Path, kept: checkpoint.Checkpoint) -> None:
    """val_predictions.npz: ids (N,), targets (N,), class_names (C,), probabilities (N, C), split_fingerprint. Where
    there are, also corrupted (N, C) and folds_fingerprint."""
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
