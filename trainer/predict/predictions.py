"""Predictions on disk: the results, and a cache so that no model predicts the same images twice."""

from __future__ import annotations

import csv
import io
import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from trainer.base import provenance
from trainer.base.files import replacing, write_csv
from trainer.base.plural import counted

KEPT = 200
"""Largest number of files in $CACHE_DIR/predictions. The oldest are removed."""


@dataclass(frozen=True)
class Predictions:
    """Probabilities (N, classes) float32 of the images `ids`, and the names and labels of the classes."""

    ids: list[str]
    probabilities: torch.Tensor
    class_names: list[str]
    labels: list[str]


@dataclass(frozen=True)
class Origin:
    """The origin of predictions. Equal origins give equal predictions."""

    sha256: str
    """SHA-256 of the checkpoint file or of ensemble.json."""
    test_fingerprint: str
    tta: str
    precision: str
    code: str = field(default_factory=provenance.software_fingerprint)
    """Fingerprint of the software. Another version of the trainer, Pillow, timm, … may give other predictions."""


def save(path: Path, predictions: Predictions, origin: Origin) -> None:
    """Write predictions.npz: ids (N,), probabilities (N, C), class_names (C,), labels (C,), and the origin:
    checkpoint_sha256, test_fingerprint, tta, precision, code."""
    with replacing(path) as temporary:
        np.savez_compressed(
            temporary,
            ids=np.array(predictions.ids),
            probabilities=predictions.probabilities.numpy(),
            class_names=np.array(predictions.class_names),
            labels=np.array(predictions.labels),
            checkpoint_sha256=np.array(origin.sha256),
            test_fingerprint=np.array(origin.test_fingerprint),
            tta=np.array(origin.tta),
            precision=np.array(origin.precision),
            code=np.array(origin.code),
        )


def read(path: Path, ids: Sequence[str], origin: Origin) -> Predictions | None:
    """Predictions from a file of `save`. None if their origin or their images are different."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            keys = ("checkpoint_sha256", "test_fingerprint", "tta", "precision", "code")
            stored_origin = Origin(*(str(stored[key]) for key in keys))
            if stored_origin != origin or stored["ids"].tolist() != list(ids):
                return None
            predictions = Predictions(
                list(ids),
                torch.from_numpy(stored["probabilities"]),
                stored["class_names"].tolist(),
                stored["labels"].tolist(),
            )
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error):  # missing, foreign or damaged
        return None
    fits = predictions.probabilities.shape == (len(predictions.ids), len(predictions.class_names))
    return predictions if fits and bool(torch.isfinite(predictions.probabilities).all()) else None


def stored(source: Path, ids: Sequence[str], origin: Origin) -> tuple[Predictions, Path] | None:
    """Stored predictions of the checkpoint or ensemble.json `source`, and their file: in the cache, or predictions.npz
    in the folder of `source`."""
    cached = _place(origin)
    for path in [*([cached] if cached else []), source.parent / "predictions.npz"]:
        predictions = read(path, ids, origin)
        if predictions is not None:
            return predictions, path
    return None


def keep(predictions: Predictions, origin: Origin) -> None:
    """Store predictions in the cache, if there is one, and remove the oldest beyond `KEPT`. If the cache is not
    writable, print a note."""
    place = _place(origin)
    if place is None:
        return
    try:
        save(place, predictions, origin)
        # Another process may have removed a file since the listing.
        ages = {path: path.stat().st_mtime_ns for path in place.parent.glob("*.npz") if path.exists()}
        for old in sorted(ages, key=ages.__getitem__)[:-KEPT]:
            old.unlink(missing_ok=True)
    except OSError as error:
        print(f"note: {place}: cannot store predictions: {error.strerror}")


def _place(origin: Origin) -> Path | None:
    cache = os.environ.get("CACHE_DIR")
    name = f"{origin.sha256[:24]}-{origin.test_fingerprint}-{origin.tta}-{origin.precision}-{origin.code}.npz"
    return Path(cache) / "predictions" / name if cache else None


def _made_by(folder: Path) -> str | None:
    """SHA-256 of the checkpoint or ensemble.json behind a predictions.npz. None if unknown."""
    try:
        with np.load(folder / "predictions.npz", allow_pickle=False) as stored:
            return str(stored["checkpoint_sha256"])
    except Exception:  # a damaged file can raise any error
        return None


def write(predictions: Predictions, output: Path, origin: Origin) -> None:
    """Write submission.csv (ID,target; see `csv_bytes`) and predictions.npz. Print a note if they replace those of
    another model."""
    if (output / "submission.csv").exists() and _made_by(output) != origin.sha256:
        print(f"note: replaced {output / 'submission.csv'} of another model (to keep both, use --output DIR)")
    save(output / "predictions.npz", predictions, origin)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["ID", "target"])
    choices = predictions.probabilities.argmax(1).tolist()
    writer.writerows([i, predictions.labels[c]] for i, c in zip(predictions.ids, choices, strict=True))
    write_csv(output / "submission.csv", out.getvalue())
    print(f"predicted {counted(len(predictions.ids), 'image')}: {output / 'submission.csv'}")
    if len(predictions.ids) == 1:
        print(_in_words(predictions))


def _in_words(predictions: Predictions) -> str:
    """The two most likely classes of the first image, with their probabilities."""
    chances = predictions.probabilities[0]
    likely = chances.argsort(descending=True, stable=True)[:2].tolist()
    names, labels = predictions.class_names, predictions.labels
    words = [f"{names[c]}{f' (label {labels[c]})' * (labels[c] != names[c])} {float(chances[c]):.1%}" for c in likely]
    return f"{predictions.ids[0]}: {', then '.join(words)}"
