"""Likely label errors, from a model's probabilities for images outside its training set.

Confident learning (C. Northcutt, L. Jiang, I. Chuang: Confident Learning: Estimating Uncertainty in Dataset Labels,
JAIR 70, 2021), as in cleanlab.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.base.files import write_csv
from trainer.base.plural import counted

PICTURED = 24
WEAK = 0.4
"""Lowest Cohen's kappa of predictions and labels for a useful list. Below it is fair agreement at best (J. Landis and
G. Koch: The Measurement of Observer Agreement for Categorical Data, Biometrics 33, 1977). In a simulation with 5 %
wrong labels, 4 to 9 % of the images listed by such models had wrong labels: hardly more than in a random list."""


@dataclass(frozen=True)
class LabelError:
    """An image (a row of the input) with a probably wrong label, and its suggested class."""

    row: int
    suggested: int
    score: float
    """Quality of the label, 0 (wrong) to 1 (certain): (p(label) − max of the others + 1) / 2."""


def find_label_errors(targets: NDArray[np.int64], probabilities: NDArray[np.float32]) -> list[LabelError]:
    """Rows with probably wrong labels, most certain first.

    `targets` (N,) are the labels, `probabilities` (N, C) those of a model that did not train on the image. The
    threshold of a class is its mean probability over the images with its label. A row is listed if another class than
    its label is above that class's threshold: the off-diagonal of the confident joint.
    """
    if len(set(targets.tolist())) < 2:
        return []
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_normalized_margin_for_each_label

    probabilities = np.asarray(probabilities, np.float64)
    rows = find_label_issues(
        targets,
        probabilities,
        filter_by="confident_learning",
        return_indices_ranked_by="normalized_margin",
        n_jobs=1,  # it takes milliseconds: no extra processes
    )
    scores = get_normalized_margin_for_each_label(targets, probabilities)
    others = probabilities[rows]
    others[np.arange(len(rows)), targets[rows]] = -1
    listed = zip(rows.tolist(), others.argmax(1).tolist(), scores[rows].tolist(), strict=True)
    return [LabelError(row, suggested, round(score, 4)) for row, suggested, score in listed]


def doubt(targets: NDArray[np.int64], probabilities: NDArray[np.float32]) -> str | None:
    """The reason if the model is too close to chance for a useful list. None if it is good enough."""
    predicted, classes = probabilities.argmax(1), range(probabilities.shape[1])
    agrees = float((predicted == targets).mean())
    guessed = float(sum((targets == c).mean() * (predicted == c).mean() for c in classes))
    if guessed == 1 or (agrees - guessed) / (1 - guessed) >= WEAK:
        return None
    return (
        f"the model is right about {agrees:.0%} of the images, and guessing would be right about {guessed:.0%}; the "
        "list has mostly mistakes of the model; use the list of a better model"
    )


def write(predictions: Path, output: Path, root: Path | None) -> list[LabelError]:
    """Write label_errors.csv and label_errors.png into `output`.

    `predictions` is a val_predictions.npz or another file for `val_predictions.read`. `root` is the data folder for the
    pictures. Raises ConfigError if `predictions` has no validation predictions.
    """
    from trainer.data.table import say_other_classes  # here, because `find_label_errors` does not need it
    from trainer.images import files, gallery  # here, because `find_label_errors` does not need it
    from trainer.images.lettering import Lettering  # here, because `find_label_errors` does not need it
    from trainer.scores import val_predictions  # here, because `find_label_errors` does not need it

    validation = val_predictions.read(predictions)
    if root is not None:
        say_other_classes(root, validation.class_names, None, "the list is of the model's own validation images")
    errors = find_label_errors(validation.targets, validation.probabilities)
    names = validation.class_names
    text = Lettering([*names, *(validation.ids[error.row] for error in errors[:PICTURED])])
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["ID", "label", "suggested", "score", *(f"p_{name}" for name in names)])
    tiles: list[gallery.Tile] = []
    for error in errors:
        image_id, label = validation.ids[error.row], names[validation.targets[error.row]]
        chances = validation.probabilities[error.row]
        suggested = names[error.suggested]
        rows.writerow([image_id, label, suggested, f"{error.score:.4f}", *(f"{p:.4f}" for p in chances)])
        if len(tiles) == PICTURED:
            continue
        caption = f"{text(image_id)}\n{text(label)}\n→ {text(suggested)} ({chances[error.suggested]:.0%})"
        tiles.append(gallery.Tile(files.find_image(root, image_id) if root else None, caption))
    write_csv(output / "label_errors.csv", table.getvalue())
    more = f", the {PICTURED} surest" if len(errors) > PICTURED else ""
    title = f"Likely label errors{more}: label → suggested (probability)" if tiles else "No likely label error"
    gallery.save(gallery.gallery(tiles, 6, title), output / "label_errors.png")
    text.write_legend(output / "names_in_label_errors.txt")
    places = f"{output / 'label_errors.csv'}, {output / 'label_errors.png'}"
    print(f"{counted(len(errors), 'likely label error')} in {counted(len(validation.ids), 'image')}: {places}")
    if (why := doubt(validation.targets, validation.probabilities)) is not None:
        print(f"note: {why}")
    if tiles and root is None:
        print("note: no data folder, so label_errors.png has no pictures; add --data DIR")
    elif root is not None and (lacking := sum(tile.path is None for tile in tiles)):
        print(f"note: {lacking} of {counted(len(tiles), 'picture')} are not in label_errors.png: not found in {root}")
    return errors
