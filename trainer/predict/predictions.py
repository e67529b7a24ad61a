"""Predictions on disk: as results, and kept so that no model has to predict the same images twice."""

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
from trainer.base.files import replacing, write_text

KEPT = 200
"""Files in $CACHE_DIR/predictions; the newest stay."""


@dataclass(frozen=True)
class Predictions:
    """Probabilities (N, classes) float32 of the images `ids`, and the names and labels of the classes."""

    ids: list[str]
    probabilities: torch.Tensor
    class_names: list[str]
    labels: list[str]


@dataclass(frozen=True)
class Origin:
    """What predictions were made with: equal origins give equal predictions."""

    sha256: str
    """Of the checkpoint's file, or of ensemble.json."""
    test_fingerprint: str
    tta: str
    precision: str
    code: str = field(default_factory=provenance.code_fingerprint)
    """Of the trainer that made them: another version may see an image in another way."""


def save(path: Path, predictions: Predictions, origin: Origin) -> None:
    """predictions.npz: ids (N,), probabilities (N, C), class_names (C,), labels (C,), and whence they are:
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
    """What `save` left, where it is of that origin and of the very images asked for; else None."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            keys = ("checkpoint_sha256", "test_fingerprint", "tta", "precision", "code")
            found = Origin(*(str(stored[key]) for key in keys))
            if found != origin or stored["ids"].tolist() != list(ids):
                return None
            made = Predictions(
                list(ids),
                torch.from_numpy(stored["probabilities"]),
                stored["class_names"].tolist(),
                stored["labels"].tolist(),
            )
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error):  # none, not ours, or damaged
        return None
    fits = made.probabilities.shape == (len(made.ids), len(made.class_names))
    return made if fits and bool(torch.isfinite(made.probabilities).all()) else None


def stored(source: Path, ids: Sequence[str], origin: Origin) -> tuple[Predictions, Path] | None:
    """Kept predictions of the checkpoint or ensemble.json `source`, and their file: in the cache, or predictions.npz
    beside `source`."""
    cached = _place(origin)
    for path in [*([cached] if cached else []), source.parent / "predictions.npz"]:
        made = read(path, ids, origin)
        if made is not None:
            return made, path
    return None


def keep(predictions: Predictions, origin: Origin) -> None:
    """Put predictions into the cache, where there is one, and take the oldest beyond `KEPT` out of it. A cache that
    cannot be written costs nothing but a note."""
    place = _place(origin)
    if place is None:
        return
    try:
        save(place, predictions, origin)
        # Another process may have taken a file away since the folder was listed.
        ages = {path: path.stat().st_mtime_ns for path in place.parent.glob("*.npz") if path.exists()}
        for old in sorted(ages, key=ages.__getitem__)[:-KEPT]:
            old.unlink(missing_ok=True)
    except OSError as error:
        print(f"note: {place}: predictions could not be kept: {error.strerror}")


def _place(origin: Origin) -> Path | None:
    cache = os.environ.get("CACHE_DIR")
    name = f"{origin.sha256[:24]}-{origin.test_fingerprint}-{origin.tta}-{origin.precision}-{origin.code}.npz"
    return Path(cache) / "predictions" / name if cache else None


def _made_by(folder: Path) -> str | None:
    """SHA-256 of the checkpoint or ensemble.json whose predictions lie there; None where that is not known."""
    try:
        with np.load(folder / "predictions.npz", allow_pickle=False) as stored:
            return str(stored["checkpoint_sha256"])
    except Exception:  # whatever its bytes provoke
        return None


def write(predictions: Predictions, output: Path, origin: Origin) -> None:
    """submission.csv (ID,target) and predictions.npz. What another model has left of them is replaced with a note."""
    if (output / "submission.csv").exists() and _made_by(output) != origin.sha256:
        print(f"note: {output / 'submission.csv'} was another model's and is replaced (--output DIR keeps both)")
    save(output / "predictions.npz", predictions, origin)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["ID", "target"])
    choices = predictions.probabilities.argmax(1).tolist()
    writer.writerows([i, predictions.labels[c]] for i, c in zip(predictions.ids, choices, strict=True))
    write_text(output / "submission.csv", out.getvalue())
    print(f"{len(predictions.ids)} images predicted: {output / 'submission.csv'}")
