"""What a classifier gets right and wrong on its validation images: confusion matrix, report, worst mistakes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from trainer import checkpoint, data, gallery
from trainer.errors import ConfigError
from trainer.files import write_text

SHOWN = 24
"""Worst mistakes in the gallery."""


@dataclass(frozen=True)
class Validation:
    """Validation predictions: ids (N), targets (N,), probabilities (N, C), class names (C)."""

    ids: list[str]
    targets: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    class_names: list[str]

    @property
    def predicted(self) -> NDArray[np.int64]:
        predicted: NDArray[np.int64] = np.argmax(self.probabilities, axis=1)
        return predicted


def analyze(path: Path, output: Path, root: Path | None) -> dict[str, Any]:
    """Write confusion_matrix.png, classification_report.csv and worst_mistakes.png into `output`.

    `path` is a best.ckpt or an ensemble.json, `root` the data folder for the thumbnails (None: without them). Returns
    macro F1, accuracy and the number of mistakes. Raises ConfigError where there are no validation predictions.
    """
    validation = read(path)
    output.mkdir(parents=True, exist_ok=True)
    gallery.save(_confusion(validation), output / "confusion_matrix.png")
    report = _report(validation)
    write_text(output / "classification_report.csv", report.to_csv(float_format="%.4f", index_label="class"))
    wrong = np.flatnonzero(validation.predicted != validation.targets).tolist()
    worst = sorted(wrong, key=lambda row: -float(validation.probabilities[row].max()))
    figure, missing = _gallery(validation, worst[:SHOWN], root)
    gallery.save(figure, output / "worst_mistakes.png")
    if missing and root is None:
        print("note: no data folder is named: the worst mistakes are shown without pictures (data.root=DIR)")
    elif missing:
        print(
            f"note: not found in {root}, so shown without picture: {', '.join(missing[:5])}{' …' * (len(missing) > 5)}"
        )
    macro = float(report.loc["macro avg", "f1-score"])
    print(f"{len(validation.ids)} validation images: macro F1 {macro:.4f}, {len(wrong)} mistakes; {output}")
    return {"f1": macro, "accuracy": 1 - len(wrong) / len(validation.ids), "mistakes": len(wrong)}


def read(path: Path) -> Validation:
    """The validation predictions of a checkpoint, of an ensemble by the file beside its ensemble.json, or of a
    val_predictions.npz itself."""
    if path.suffix in (".json", ".npz"):
        stored = path.parent / "val_predictions.npz" if path.suffix == ".json" else path
        if not stored.is_file():
            what = "the ensemble has no validation predictions" if path.is_file() else "there is no such file"
            raise ConfigError(f"{path}: {what}; name a best.ckpt or an ensemble whose members share a split")
        try:
            with np.load(stored, allow_pickle=False) as arrays:
                return Validation(
                    arrays["ids"].tolist(), arrays["targets"], arrays["probabilities"], arrays["class_names"].tolist()
                )
        except (ValueError, KeyError, EOFError, BadZipFile) as error:
            raise ConfigError(f"{stored}: not a val_predictions.npz of a run: {error}") from None
    loaded = checkpoint.load(path)
    if not loaded.validation:
        raise ConfigError(f"{path}: carries no validation predictions; name the best.ckpt of a run")
    return Validation(
        loaded.validation["ids"],
        loaded.validation["targets"].numpy(),
        loaded.validation["probabilities"].numpy(),
        loaded.class_names,
    )


def _report(validation: Validation) -> Any:
    import pandas as pd
    from sklearn.metrics import classification_report

    # Macro figures are over the classes that occur, as val_f1 is.
    present = sorted(set(validation.targets.tolist()) | set(validation.predicted.tolist()))
    made = classification_report(
        validation.targets,
        validation.predicted,
        labels=present,
        target_names=[validation.class_names[c] for c in present],
        output_dict=True,
        zero_division=0.0,
    )
    accuracy = float((validation.predicted == validation.targets).mean())
    made.pop("micro avg", None)
    made["accuracy"] = dict.fromkeys(("precision", "recall", "f1-score"), accuracy) | {"support": len(validation.ids)}
    frame = pd.DataFrame(made).T
    frame["support"] = frame["support"].astype(int)
    return frame


def _confusion(validation: Validation) -> Figure:
    """Counts in the cells, coloured by their share of the row, so that rare classes show too."""
    classes = len(validation.class_names)
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (validation.targets, validation.predicted), 1)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = max(5.0, 2.6 + 0.45 * classes)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(classes), validation.class_names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(classes), validation.class_names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(f"{len(validation.ids)} validation images, accuracy {np.trace(counts) / max(1, counts.sum()):.1%}")
    for row, column in zip(*np.nonzero(counts), strict=True):
        colour = "white" if shares[row, column] > 0.6 else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=9)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    return figure


def _gallery(validation: Validation, rows: list[int], root: Path | None) -> tuple[Figure, list[str]]:
    """The mistakes made with the most confidence, and the ids whose picture could not be shown."""
    if not rows:
        return gallery.gallery([], 1, f"No mistake on {len(validation.ids)} validation images"), []
    tiles = []
    for row in rows:
        image_id, target, predicted = validation.ids[row], validation.targets[row], validation.predicted[row]
        caption = (
            f"{image_id}\n{validation.class_names[target]}\n→ {validation.class_names[predicted]} "
            f"({validation.probabilities[row, predicted]:.0%})"
        )
        tiles.append(gallery.Tile(data.find_image(root, image_id) if root is not None else None, caption))
    missing = [validation.ids[row] for row, tile in zip(rows, tiles, strict=True) if tile.path is None]
    return gallery.gallery(tiles, 6, "Wrong, and most sure of it: true → predicted (probability)"), missing
