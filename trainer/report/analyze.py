"""Analyse a classifier's validation predictions: an HTML report, plots and a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.base.activity import doing
from trainer.base.figures import ACCURACY, F1
from trainer.base.files import write_csv
from trainer.base.plural import counted
from trainer.data.table import say_other_classes
from trainer.images import gallery
from trainer.images.lettering import Lettering
from trainer.report import plots, report, subject
from trainer.scores.val_predictions import Validation

SHOWN = 24
"""Number of mistakes in worst_mistakes.png."""


def analyze(path: Path, output: Path, root: Path | None) -> dict[str, Any]:
    """Write report.html, confusion_matrix.png, classification_report.csv and worst_mistakes.png into `output`.

    `path` is a best.ckpt, an ensemble.json or a val_predictions.npz. `root` is the data folder for the thumbnails
    (None: there are none). Returns macro F1, accuracy and the number of mistakes. Raises ConfigError if there are no
    validation predictions.
    """
    analysed = subject.read(path)
    validation = analysed.validation
    if root is not None:
        say_other_classes(root, validation.class_names, None, "the report is on the model's own validation images")
    output.mkdir(parents=True, exist_ok=True)
    worst = report.mistakes(validation.targets, validation.probabilities)
    text = Lettering([*validation.class_names, *(validation.ids[row] for row in worst[:SHOWN])])
    with doing("drawing the confusion matrix and the worst mistakes"):
        gallery.save(plots.confusion(validation, text), output / "confusion_matrix.png")
        write_table(validation, output / "classification_report.csv")
        figure, missing = plots.worst(validation, worst[:SHOWN], root, text)
        gallery.save(figure, output / "worst_mistakes.png")
    text.write_legend(output / "names_in_report.txt")
    if missing and root is None:
        print("note: no data folder, so the report has no pictures; add --data DIR")
    elif missing:
        print(f"note: no picture, because not found in {root}: {', '.join(missing[:5])}{' …' * (len(missing) > 5)}")
    with doing("writing the report"):
        report.write(output / "report.html", analysed, root)
    macro = F1.value(validation.targets, validation.probabilities)
    print(
        f"{counted(len(validation.ids), 'validation image')}: macro F1 {macro:.4f}, {counted(len(worst), 'mistake')}; "
        f"{output / 'report.html'}"
    )
    return {
        "f1": macro,
        "accuracy": ACCURACY.value(validation.targets, validation.probabilities),
        "mistakes": len(worst),
    }


def write_table(validation: Validation, path: Path) -> None:
    """Write precision, recall, F1 and the number of images of each class as a table; see `csv_bytes`."""
    write_csv(path, _report(validation).to_csv(float_format="%.4f", index_label="class"))


def _report(validation: Validation) -> Any:
    import pandas as pd
    from sklearn.metrics import classification_report

    # Macro averages are over the classes that occur, like `figures.F1`.
    present = sorted(set(validation.targets.tolist()) | set(validation.predicted.tolist()))
    # By number, and not by name: a class may have the name of a row below the classes.
    rows = classification_report(
        validation.targets,
        validation.predicted,
        labels=present,
        target_names=[str(c) for c in present],
        output_dict=True,
        zero_division=0.0,
    )
    accuracy = ACCURACY.value(validation.targets, validation.probabilities)
    rows.pop("micro avg", None)
    rows["accuracy"] = dict.fromkeys(("precision", "recall", "f1-score"), accuracy) | {"support": len(validation.ids)}
    frame = pd.DataFrame(rows).T
    frame.index = [validation.class_names[int(name)] if name.isdigit() else name for name in frame.index]
    frame["support"] = frame["support"].astype(int)
    return frame
