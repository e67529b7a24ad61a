"""Validation predictions of runs and ensembles: the arrays in a checkpoint, and the file val_predictions.npz."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.base.errors import ConfigError
from trainer.base.figures import Copy
from trainer.base.files import replacing
from trainer.models import checkpoint


@dataclass(frozen=True)
class Validation:
    """Validation predictions: ids (N), targets (N,), probabilities (N, C), class names (C)."""

    ids: list[str]
    targets: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    class_names: list[str]
    corrupted: NDArray[np.float32] | None = None
    """Probabilities (N, C) of the corrupted copies, or None."""
    split_fingerprint: str | None = None
    folds_fingerprint: str | None = None

    @property
    def predicted(self) -> NDArray[np.int64]:
        predicted: NDArray[np.int64] = np.argmax(self.probabilities, axis=1)
        return predicted

    @property
    def copies(self) -> dict[Copy, NDArray[np.float32]]:
        """Probabilities (N, C) of the clean and perhaps the corrupted copies, by name."""
        copies: dict[Copy, NDArray[np.float32]] = {"clean": self.probabilities}
        return copies if self.corrupted is None else {**copies, "corrupted": self.corrupted}


def arrays(
    ids: list[str],
    targets: torch.Tensor,
    clean: torch.Tensor,
    corrupted: torch.Tensor | None,
    split_fingerprint: str,
    folds_fingerprint: str | None,
) -> dict[str, Any]:
    """The `validation` of a checkpoint: ids (N), targets (N,), and probabilities (N, C) of both copies by key. Without
    corrupted copies or folds, their keys are missing."""
    values = {
        "ids": ids,
        "targets": targets,
        "probabilities": clean,
        "split_fingerprint": split_fingerprint,
        "corrupted": corrupted,
        "folds_fingerprint": folds_fingerprint,
    }
    return {key: value for key, value in values.items() if value is not None}


def write(path: Path, validation: dict[str, Any], class_names: list[str]) -> None:
    """Write `arrays` and class_names (C,) as a val_predictions.npz."""
    content: dict[str, Any] = {key: np.asarray(value) for key, value in validation.items()}
    with replacing(path) as temporary:
        np.savez_compressed(temporary, class_names=np.array(class_names), **content)


def read(path: Path) -> Validation:
    """The validation predictions of a checkpoint, of an ensemble.json (from the file in its folder), or of a
    val_predictions.npz. Raises ConfigError if there are none."""
    if path.suffix not in (".json", ".npz"):
        return of(checkpoint.load(path), path)
    stored = path.parent / "val_predictions.npz" if path.suffix == ".json" else path
    if not stored.is_file():
        what = "the ensemble has no validation predictions" if path.is_file() else "file not found"
        raise ConfigError(f"{path}: {what}; give a best.ckpt, or an ensemble of members with one split")
    try:
        with np.load(stored, allow_pickle=False) as arrays:
            return _validation(dict(arrays), arrays["class_names"].tolist())
    except OSError:  # a system error: it has the file name
        raise
    except Exception as error:  # a damaged file: zlib.error, tokenize.TokenError, struct.error, …
        raise ConfigError(f"{stored}: not a val_predictions.npz of a run: {error}") from None


def of(loaded: checkpoint.Checkpoint, path: Path) -> Validation:
    """The validation predictions of a checkpoint from `path`. Raises ConfigError if it has none."""
    if not loaded.validation and "lightning" in loaded.versions:
        raise ConfigError(
            f"{path}: a checkpoint of Lightning has no validation predictions to analyse; predict with it, or train "
            "here with model.weights=FILE and analyse the new best.ckpt"
        )
    if not loaded.validation:
        raise ConfigError(f"{path}: has no validation predictions; give the best.ckpt of a run")
    return _validation(loaded.validation, loaded.class_names)


def _validation(stored: dict[str, Any], class_names: list[str]) -> Validation:
    def known(key: str) -> Any:
        return np.asarray(stored[key]) if key in stored else None

    def named(key: str) -> str | None:
        return str(stored[key]) if key in stored else None

    return Validation(
        [str(image_id) for image_id in stored["ids"]],
        np.asarray(stored["targets"]),
        np.asarray(stored["probabilities"]),
        class_names,
        known("corrupted"),
        named("split_fingerprint"),
        named("folds_fingerprint"),
    )
