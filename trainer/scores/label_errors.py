"""Likely label errors, from probabilities that a model gave to images it was not trained on.

Confident learning (C. Northcutt, L. Jiang, I. Chuang: Confident Learning: Estimating Uncertainty in Dataset Labels,
JAIR 70, 2021), as cleanlab has it.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.base.files import write_text

PICTURED = 24
WEAK = 0.4
"""Cohen's kappa of predictions and labels below which a model judges no labels: fair agreement at best (J. Landis and
G. Koch: The Measurement of Observer Agreement for Categorical Data, Biometrics 33, 1977). With one label of 20 planted
wrong in drawn predictions, 4 to 9 % of what such models listed were wrong labels: hardly more than of any images."""


@dataclass(frozen=True)
class LabelError:
    """An image (a row of what was given) whose label is likely to be wrong, and the class that it is likely of."""

    row: int
    suggested: int
    score: float
    """How well the label fits: (p(label) − max of the others + 1) / 2, 0 not at all, 1 certainly."""


def find_label_errors(targets: NDArray[np.int64], probabilities: NDArray[np.float32]) -> list[LabelError]:
    """Rows whose label is likely to be wrong, the surest first.

    `targets` (N,) are the labels given, `probabilities` (N, C) those of a model that did not see the image in training.
    A row is one where a class that is not its label is above that class's threshold, the mean probability of the class
    over the images with its label: the off-diagonal of the confident joint.
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
        n_jobs=1,  # no processes for what takes milliseconds
    )
    scores = get_normalized_margin_for_each_label(targets, probabilities)
    others = probabilities.copy()
    others[np.arange(len(targets)), targets] = -1
    return [LabelError(int(row), int(others[row].argmax()), round(float(scores[row]), 4)) for row in rows]


def doubt(targets: NDArray[np.int64], probabilities: NDArray[np.float32]) -> str | None:
    """Why the list of a model that is near chance is worth nothing; None where the model is good enough to judge."""
    predicted, classes = probabilities.argmax(1), range(probabilities.shape[1])
    agrees = float((predicted == targets).mean())
    guessed = float(sum((targets == c).mean() * (predicted == c).mean() for c in classes))
    if guessed == 1 or (agrees - guessed) / (1 - guessed) >= WEAK:
        return None
    return (
        f"the model is right about {agrees:.0%} of the images, where guessing would be about {guessed:.0%}: what it "
        "doubts are its own mistakes; believe a better model's list"
    )


def write(predictions: Path, output: Path, root: Path | None) -> list[LabelError]:
    """Write label_errors.csv and label_errors.png into `output`.

    `predictions` is a val_predictions.npz, or what `val_predictions.read` takes, `root` the data folder of the
    pictures. Raises ConfigError where `predictions` has none.
    """
    from trainer.images import gallery, reading  # here, so that `find_label_errors` is had without them
    from trainer.scores import val_predictions  # here, so that `find_label_errors` is had without them

    validation = val_predictions.read(predictions)
    errors = find_label_errors(validation.targets, validation.probabilities)
    names = validation.class_names
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["ID", "label", "suggested", "score", *(f"p_{name}" for name in names)])
    tiles = []
    for error in errors:
        image_id, label = validation.ids[error.row], names[validation.targets[error.row]]
        chances = validation.probabilities[error.row]
        suggested = names[error.suggested]
        rows.writerow([image_id, label, suggested, f"{error.score:.4f}", *(f"{p:.4f}" for p in chances)])
        caption = f"{image_id}\n{label}\n→ {suggested} ({chances[error.suggested]:.0%})"
        tiles.append(gallery.Tile(reading.find_image(root, image_id) if root else None, caption))
    write_text(output / "label_errors.csv", table.getvalue())
    more = f", the {PICTURED} surest" if len(tiles) > PICTURED else ""
    title = f"Likely label errors{more}: label → suggested (probability)" if tiles else "No likely label error"
    gallery.save(gallery.gallery(tiles[:PICTURED], 6, title), output / "label_errors.png")
    places = f"{output / 'label_errors.csv'}, {output / 'label_errors.png'}"
    print(f"{len(errors)} likely label errors in {len(validation.ids)} images: {places}")
    if (why := doubt(validation.targets, validation.probabilities)) is not None:
        print(f"note: {why}")
    if tiles and root is None:
        print("note: no data folder is named: they are shown without pictures (data.root=DIR)")
    return errors
