"""Analyse a classifier's validation predictions: an HTML report, plots and a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.base.figures import ACCURACY, F1
from trainer.base.files import write_text
from trainer.images import gallery
from trainer.report import plots, report, subject
from trainer.scores.val_predictions import Validation

SHOWN = 24
"""Number of mistakes in worst_mistakes.png."""


def analyze(path: Path, output: Path, root: Path | None) -> dict[str, Any]:
    """Write report.html, confusion_matrix.png, classification_report.csv and worst_mistakes.png into `output`.

    `path` is a best.ckpt, an ensemble.json or a val_predictions.npz. `root` is the data folder for the thumbnails
    (None: the folder that the checkpoint was trained on; without it there are no thumbnails). Returns macro F1,
    accuracy and the number of mistakes. Raises ConfigError if there are no validation predictions.
    """
    analysed = subject.read(path)
    validation = analysed.validation
    root = root or analysed.data_folder
    output.mkdir(parents=True, exist_ok=True)
    gallery.save(plots.confusion(validation), output / "confusion_matrix.png")
    table = _report(validation)
    write_text(output / "classification_report.csv", table.to_csv(float_format="%.4f", index_label="class"))
    worst = report.mistakes(validation.targets, validation.probabilities)
    figure, missing = plots.worst(validation, worst[:SHOWN], root)
    gallery.save(figure, output / "worst_mistakes.png")
    if missing and root is None:
        print("note: no data folder, so the report has no pictures; add --data DIR")
    elif missing:
        print(f"note: no picture, because not found in {root}: {', '.join(missing[:5])}{' …' * (len(missing) > 5)}")
    report.write(output / "report.html", analysed, root)
    macro = F1.value(validation.targets, validation.probabilities)
    print(
        f"{len(validation.ids)} validation images: macro F1 {macro:.4f}, {len(worst)} mistakes; "
        f"{output / 'report.html'}"
    )
    return {
        "f1": macro,
        "accuracy": ACCURACY.value(validation.targets, validation.probabilities),
        "mistakes": len(worst),
    }


def _report(validation: Validation) -> Any:
    import pandas as pd
    from sklearn.metrics import classification_report

    # Macro averages are over the classes that occur, like `figures.F1`.
    present = sorted(set(validation.targets.tolist()) | set(validation.predicted.tolist()))
    rows = classification_report(
        validation.targets,
        validation.predicted,
        labels=present,
        target_names=[validation.class_names[c] for c in present],
        output_dict=True,
        zero_division=0.0,
    )
    accuracy = ACCURACY.value(validation.targets, validation.probabilities)
    rows.pop("micro avg", None)
    rows["accuracy"] = dict.fromkeys(("precision", "recall", "f1-score"), accuracy) | {"support": len(validation.ids)}
    frame = pd.DataFrame(rows).T
    frame["support"] = frame["support"].astype(int)
    return frame
