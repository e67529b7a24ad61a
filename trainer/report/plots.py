"""Plots of an analysis: confusion matrix, worst mistakes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from trainer.base.plural import counted
from trainer.images import files, gallery
from trainer.images.lettering import Lettering
from trainer.scores.val_predictions import Validation

LABELLED = 60
"""Most classes whose names and counts are in the confusion matrix. More would not be legible."""
INCHES = 10 / 72
"""Height of the letters of the names there."""


def confusion(validation: Validation, text: Lettering) -> Figure:
    """Cells have counts. The colour is the share of the row, so that rare classes are visible. Of more than `LABELLED`
    classes only the colours and the numbers of the classes are drawn."""
    classes = len(validation.class_names)
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (validation.targets, validation.predicted), 1)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    names = [gallery.fitted(text(name)) for name in validation.class_names] if classes <= LABELLED else []
    side = max(5.0, 2.6 + 0.45 * min(classes, LABELLED))
    label = max(0.0, max(map(gallery.width, names), default=0.0) * INCHES - 1)  # longer than there is room for
    figure = Figure(figsize=(side + 0.8 + label, side + label * 0.7), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if names:
        axes.set_xticks(range(classes), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(classes), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(
        f"{counted(len(validation.ids), 'validation image')}, accuracy {np.trace(counts) / max(1, counts.sum()):.1%}"
    )
    for row, column in zip(*np.nonzero(counts), strict=True) if classes <= LABELLED else ():
        colour = "white" if shares[row, column] > 0.6 else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=9)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    return figure


def worst(validation: Validation, rows: list[int], root: Path | None, text: Lettering) -> tuple[Figure, list[str]]:
    """The most confident mistakes, and the IDs without a picture."""
    if not rows:
        return gallery.gallery([], 1, f"No mistake on {counted(len(validation.ids), 'validation image')}"), []
    tiles = []
    for row in rows:
        image_id, target, predicted = validation.ids[row], validation.targets[row], validation.predicted[row]
        caption = (
            f"{text(image_id)}\n{text(validation.class_names[target])}\n→ {text(validation.class_names[predicted])} "
            f"({validation.probabilities[row, predicted]:.0%})"
        )
        tiles.append(gallery.Tile(files.find_image(root, image_id) if root is not None else None, caption))
    missing = [validation.ids[row] for row, tile in zip(rows, tiles, strict=True) if tile.path is None]
    return gallery.gallery(tiles, 6, "Most confident mistakes: true → predicted (probability)"), missing
