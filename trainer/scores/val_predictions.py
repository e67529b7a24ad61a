"""Read the validation predictions of runs and ensembles, for analysis."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.base.errors import ConfigError
from trainer.base.figures import Copy
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
        made: dict[Copy, NDArray[np.float32]] = {"clean": self.probabilities}
        return made if self.corrupted is None else {**made, "corrupted": self.corrupted}


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
