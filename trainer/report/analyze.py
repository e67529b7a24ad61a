"""What a classifier gets right and wrong on its validation images: a report in HTML, figures, a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.base.figures import ACCURACY, F1
from trainer.base.files import write_text
from trainer.images import gallery
from trainer.report import plots, report, subject
from trainer.scores.val_predictions import Validation

SHOWN = 24
"""Worst mistakes in worst_mistakes.png."""


def analyze(path: Path, output: Path, root: Path | None) -> dict[str, Any]:
    """Write report.html, confusion_matrix.png, classification_report.csv and worst_mistakes.png into `output`.

    `path` is a best.ckpt, an ensemble.json or a val_predictions.npz, `root` the data folder for the thumbnails (None:
    without them). Returns macro F1, accuracy and the number of mistakes. Raises ConfigError where there are no
    validation predictions.
    """
    analysed = subject.read(path)
    validation = analysed.validation
    output.mkdir(parents=True, exist_ok=True)
    gallery.save(plots.confusion(validation), output / "confusion_matrix.png")
    table = _report(validation)
    write_text(output / "classification_report.csv", table.to_csv(float_format="%.4f", index_label="class"))
    worst = report.mistakes(validation.targets, validation.probabilities)
    figure, missing = plots.worst(validation, worst[:SHOWN], root)
    gallery.save(figure, output / "worst_mistakes.png")
    if missing and root is None:
        print("note: no data folder is named: the worst mistakes are shown without pictures (data.root=DIR)")
    elif missing:
        print(
            f"note: not found in {root}, so shown without picture: {', '.join(missing[:5])}{' …' * (len(missing) > 5)}"
        )
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

    # Macro figures are over the classes that occur, as `figures.F1` is.
    present = sorted(set(validation.targets.tolist()) | set(validation.predicted.tolist()))
    made = classification_report(
        validation.targets,
        validation.predicted,
        labels=present,
        target_names=[validation.class_names[c] for c in present],
        output_dict=True,
        zero_division=0.0,
    )
    accuracy = ACCURACY.value(validation.targets, validation.probabilities)
    made.pop("micro avg", None)
    made["accuracy"] = dict.fromkeys(("precision", "recall", "f1-score"), accuracy) | {"support": len(validation.ids)}
    frame = pd.DataFrame(made).T
    frame["support"] = frame["support"].astype(int)
    return frame
