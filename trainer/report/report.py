"""report.html: the whole analysis in one file, without network and scripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from trainer.augment.corruption import HELD_OUT, KINDS, Corruption
from trainer.base import figures
from trainer.base.figures import F1, LOSS, Copy
from trainer.base.files import write_text
from trainer.base.names import GROUPED
from trainer.base.plural import counted
from trainer.report import charts, pictures
from trainer.report.subject import MemberRow, Subject
from trainer.scores import calibration, intervals, label_errors
from trainer.scores.intervals import Interval
from trainer.scores.val_predictions import Validation

SHOWN = 12
"""Number of pictures in a gallery."""
MATRIX = 100
"""Most classes with a confusion matrix. For more the page would be tens of megabytes."""
PAIRS = 30
"""Number of confused pairs of classes instead."""

Probabilities = NDArray[np.float32]
Targets = NDArray[np.int64]


@dataclass(frozen=True)
class Score:
    """A macro F1 with its 95 % interval (or None). For a single copy also the number of mistakes."""

    name: Copy
    f1: float
    interval: Interval | None
    wrong: int | None = None


@dataclass(frozen=True)
class ClassRow:
    name: str
    images: int
    precision: float
    recall: float
    f1: float
    interval: Interval | None
    corrupted: float | None


@dataclass(frozen=True)
class KindRow:
    """Images with one kind of corruption: accuracy without and with it, and the Wilson interval of the latter."""

    name: str
    held_out: bool
    images: int
    clean: float
    corrupted: float
    low: float
    high: float


@dataclass(frozen=True)
class Diagram:
    name: str
    error: float
    bubbles: list[charts.Bubble]


def write(path: Path, subject: Subject, root: Path | None) -> None:
    """Write the report to `path`. `root` is the data folder of the pictures, or None."""
    environment = Environment(
        loader=PackageLoader("trainer.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = breakable
    write_text(path, environment.get_template("report.html.j2").render(content(subject, root)))


def breakable(name: str) -> Markup:
    """A name with a possible line break after each underscore."""
    return Markup("_<wbr>").join(name.split("_"))


def content(subject: Subject, root: Path | None) -> dict[str, Any]:
    """The values for the template, by name."""
    validation = subject.validation
    targets, names = validation.targets, validation.class_names
    headline = scores(validation)
    kinds = kinds_of(subject)
    corruption = None if subject.corruption_seed is None else Corruption(subject.corruption_seed)
    source = pictures.Source(validation, root, corruption, kinds)
    wrong = {name: mistakes(targets, p) for name, p in validation.copies.items()}
    errors = label_errors.find_label_errors(targets, validation.probabilities)
    return {
        "subject": subject,
        "title": subject.config.get("model", {}).get("name", subject.path.stem) if not subject.method else "Ensemble",
        "facts": facts(subject),
        "names": names,
        "images": len(targets),
        "headline": headline,
        "meaning": meaning(subject, headline),
        "monitor": chose.name if (chose := monitored(subject)) else None,
        "main": F1,
        "figures": figure_rows(validation),
        "curves": curves(subject),
        "matrices": {name: matrix(targets, p) for name, p in validation.copies.items()} if len(names) <= MATRIX else {},
        "confused": {name: confused(targets, p, names) for name, p in validation.copies.items()},
        "classes": classes(validation),
        "kinds": by_kind(validation, kinds),
        "lost": None if validation.corrupted is None else len(set(wrong["corrupted"]) - set(wrong["clean"])),
        "diagrams": diagrams(subject),
        "mistakes": {name: [source.mistake(row, name) for row in rows[:SHOWN]] for name, rows in wrong.items()},
        "wrong": {name: len(rows) for name, rows in wrong.items()},
        "label_errors": [source.label_error(error.row, error.suggested) for error in errors[:SHOWN]],
        "suspected": len(errors),
        "doubt": label_errors.doubt(targets, validation.probabilities),
        "pictured": root is not None,
        "votes": votes(subject, headline),
        "provenance": provenance(subject),
        "config": yaml.safe_dump(subject.config, sort_keys=False, allow_unicode=True) if subject.config else "",
        "chart": charts,
        "in_table": intervals.in_table,
        "in_words": intervals.in_words,
        "counted": counted,
    }


def facts(subject: Subject) -> list[str]:
    """The line below the title: images, classes, model settings."""
    known, metrics, validation = subject.config, subject.metrics, subject.validation
    parts = [counted(len(validation.targets), "validation image"), counted(len(validation.class_names), "class")]
    if subject.method:
        by = f", {subject.weighting} weights" if subject.weighting else ""
        return [f"{subject.method.replace('_', ' ')}{by}", *parts]
    if known:
        parts.append(f"{known['data']['img_size']} px")
    if known and "epoch" in metrics:
        parts.append(f"epoch {metrics['epoch']} of {known['training']['epochs']}")
    return parts


def mistakes(targets: Targets, probabilities: Probabilities) -> list[int]:
    """Rows of mistakes, most confident first."""
    wrong = np.flatnonzero(probabilities.argmax(1) != targets).tolist()
    return sorted(wrong, key=lambda row: -float(probabilities[row].max()))


def scores(validation: Validation) -> list[Score]:
    """Macro F1 of the clean and the corrupted copies, and their mean."""
    targets, count = validation.targets, len(validation.class_names)
    predicted = {name: p.argmax(1) for name, p in validation.copies.items()}
    rows = [
        Score(
            name,
            F1.of_labels(targets, guess, count),
            intervals.interval(targets, guess, count),
            int((guess != targets).sum()),
        )
        for name, guess in predicted.items()
    ]
    if len(rows) > 1:
        both = intervals.mean_interval(targets, list(predicted.values()), count)
        rows.append(Score("mean", sum(score.f1 for score in rows) / len(rows), both))
    return rows


def meaning(subject: Subject, headline: list[Score]) -> str:
    """What the metrics mean for new documents, and why they are too high."""
    clean, *more = headline
    images = len(subject.validation.targets)
    judged = " that the model did not train on"
    if subject.method:
        judged = " that no member trained on"
    if subject.folds:
        judged = ". Each was predicted by the fold of each model that did not train on it"
    text = (
        f"Measured on {counted(images, 'image')}{judged}. The macro F1 of similar documents is {_likely(clean, images)}"
    )
    if more:
        text += f", and of rotated, worn or photographed documents {_likely(more[0], images)}"
    if subject.origin.get("groups"):
        text += f". The intervals are too narrow: {GROUPED}"
    if subject.method:
        leans = "Both values are" if more else "The value is"
        text += f". {leans} a little too high, because the members were chosen on the same images."
        if subject.tta != "none":
            text += f" Predictions with --tta {subject.tta} were not measured: these values are without it."
        return text + (" The mean of the folds, which predicts new images, was not measured." if subject.folds else "")
    return f"{text}. {_leaning(monitored(subject), bool(more))}."


def monitored(subject: Subject) -> figures.Column | None:
    """The metric that chose the checkpoint. None for an ensemble, or if unknown."""
    if subject.method:
        return None
    return figures.columns().get(subject.config.get("training", {}).get("monitor", ""))


def _leaning(chose: figures.Column | None, several: bool) -> str:
    """Which F1 is too high, and why. `several`: there are clean and corrupted values."""
    value = "Both values are" if several else "The value is"
    if chose and chose.figure != F1:
        return f"{value} a little too high, because {chose.short} chose the checkpoint"
    if several and chose and chose.copy != "clean":
        if chose.copy == "mean":
            return "Both values are a little too high, because their mean chose the checkpoint"
        return "The corrupted value is a little too high, because it chose the checkpoint"
    return f"The {'clean ' * several}value is a little too high, because it chose the checkpoint"


def figure_rows(validation: Validation) -> list[tuple[str, float, float | None]]:
    """Every metric: its name, and its values for clean and corrupted copies (or None)."""
    values = figures.values(validation.targets, validation.copies)
    return [
        (figure.words, values[figure.column()], values.get(figure.column("corrupted"))) for figure in figures.FIGURES
    ]


def _likely(score: Score, images: int) -> str:
    if score.interval is not None:
        return f"likely between {score.interval[0]:.2f} and {score.interval[1]:.2f}"
    if not score.wrong:
        share = 100 * intervals.rule_of_three(images)
        return f"near 1, but up to {share:.0f} % of new images may be wrong (rule of three)"
    return f"about {score.f1:.2f}, without an interval: resampling cannot vary this result"


def curves(subject: Subject) -> list[charts.Chart]:
    """Loss, F1 and the monitored metric by epoch. Empty if the history is unknown."""
    history = subject.history
    if not history or not {"epoch", "step"} <= history[0].keys():
        return []
    per_epoch = max(entry["step"] for entry in history if entry["epoch"] == history[0]["epoch"])
    x = [entry["step"] / per_epoch for entry in history]
    steps = [entry["step"] for entry in history]
    chosen = steps.index(subject.metrics["step"]) if subject.metrics.get("step") in steps else None

    def series(*wanted: tuple[str, str, str]) -> list[tuple[str, str, list[float]]]:
        return [(name, tone, [e[key] for e in history]) for name, tone, key in wanted if key in history[0]]

    loss = series(("training", "quiet", "train_loss"), ("validation", "clean", LOSS.column()))
    drawn = [charts.lines("Loss", x, loss, chosen)] if loss else []
    chose = monitored(subject)
    for figure in dict.fromkeys([F1, chose.figure if chose else F1]):
        own = series(("clean", "clean", figure.column()), ("corrupted", "corrupted", figure.column("corrupted")))
        if own and figure != LOSS:
            drawn.append(charts.lines(figure.words[0].upper() + figure.words[1:], x, own, chosen, top=figure.highest))
    return drawn


def matrix(targets: Targets, probabilities: Probabilities) -> list[list[tuple[int, float]]]:
    """Count and share of the row, for each true class (rows) and predicted class (columns)."""
    from sklearn.metrics import confusion_matrix

    counts = confusion_matrix(targets, probabilities.argmax(1), labels=range(probabilities.shape[1]))
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return [list(zip(*pair, strict=True)) for pair in zip(counts.tolist(), shares.round(3).tolist(), strict=True)]


def confused(targets: Targets, probabilities: Probabilities, names: Sequence[str]) -> list[tuple[str, str, int, float]]:
    """The true and the predicted class that are confused most often: names, images, and share of the true class."""
    predicted, count = probabilities.argmax(1), len(names)
    wrong = predicted != targets
    pairs, images = np.unique(targets[wrong].astype(np.int64) * count + predicted[wrong], return_counts=True)
    of_class = np.bincount(targets, minlength=count)
    most = np.lexsort((pairs, -images))[:PAIRS]
    rows = [(int(pairs[at]) // count, int(pairs[at]) % count, int(images[at])) for at in most]
    return [(names[true], names[other], n, n / int(of_class[true])) for true, other, n in rows]


def classes(validation: Validation) -> list[ClassRow]:
    """The classes that occur, lowest F1 first."""
    targets, predicted = validation.targets, validation.predicted
    classes = len(validation.class_names)
    counts = figures.count(targets, predicted, classes)
    f1 = np.nan_to_num(figures.class_f1(counts)).tolist()
    precision = (counts.right / np.maximum(counts.predicted, 1)).tolist()
    recall = (counts.right / np.maximum(counts.labelled, 1)).tolist()
    ranges = intervals.class_intervals(targets, predicted, classes)
    worse: list[float | None] = [None] * classes
    if validation.corrupted is not None:
        corrupted = figures.count(targets, validation.corrupted.argmax(1), classes)
        worse = np.nan_to_num(figures.class_f1(corrupted)).tolist()
    rows = [
        ClassRow(name, int(counts.labelled[c]), precision[c], recall[c], f1[c], ranges[c], worse[c])
        for c, name in enumerate(validation.class_names)
        if counts.labelled[c] or counts.predicted[c]
    ]
    return sorted(rows, key=lambda row: (row.f1, row.corrupted or 0.0))


def kinds_of(subject: Subject) -> list[tuple[str, ...]]:
    """The kinds of corruption of each image's copy. Empty if unknown."""
    seed, validation = subject.corruption_seed, subject.validation
    if seed is None or validation.corrupted is None:
        return []
    corruption = Corruption(seed)
    return [corruption.kinds(image_id) for image_id in validation.ids]


def by_kind(validation: Validation, kinds: list[tuple[str, ...]]) -> list[KindRow]:
    """The kinds of corruption that occur, the most harmful first."""
    from scipy.stats import binomtest

    if not kinds or validation.corrupted is None:
        return []
    before = validation.predicted == validation.targets
    after = validation.corrupted.argmax(1) == validation.targets
    rows = []
    for kind in KINDS:
        took = np.array([kind in own for own in kinds])
        images = int(took.sum())
        if not images:
            continue
        right = int(after[took].sum())
        sure = binomtest(right, images).proportion_ci(method="wilson")
        name = kind.replace("_", " ")
        clean = float(before[took].mean())
        rows.append(KindRow(name, kind in HELD_OUT, images, clean, right / images, float(sure.low), float(sure.high)))
    return sorted(rows, key=lambda row: row.corrupted)


def diagrams(subject: Subject) -> list[Diagram]:
    """Reliability of all copies, without the temperature and (if known) with it."""
    copies = list(subject.validation.copies.values())
    pooled, targets = np.concatenate(copies), np.tile(subject.validation.targets, len(copies))
    stages = {"As trained": pooled}
    if subject.temperature is not None:
        stages["With temperature"] = calibration.temper(pooled, subject.temperature)
    return [
        Diagram(name, calibration.expected_error(p, targets), charts.bubbles(calibration.reliability(p, targets)))
        for name, p in stages.items()
    ]


def votes(subject: Subject, headline: list[Score]) -> list[MemberRow]:
    """The ensemble, its members with equal weights, and each member. Empty for a single model."""
    if not subject.method:
        return []
    own: dict[str, Any] = {F1.column(score.name): score.f1 for score in headline}
    whole = MemberRow("this ensemble", None, own | {f"{F1.column()}_interval": headline[0].interval})
    return [whole, *subject.members]


def provenance(subject: Subject) -> list[tuple[str, str]]:
    """The origin of the metrics: names and values."""
    known, data = subject.config, subject.config.get("data", {})
    metrics = subject.metrics
    pairs = [
        ("file", subject.path.name),
        ("sha256", subject.sha256),
        ("run", subject.origin.get("run")),
        ("git commit", subject.origin.get("git_sha")),
        ("data fingerprint", subject.origin.get("data_fingerprint")),
        (
            "best at",
            f"epoch {metrics['epoch']}, step {metrics['step']}" if {"epoch", "step"} <= metrics.keys() else "",
        ),
        ("seed", known.get("seed")),
        ("split seed", data.get("split_seed")),
        ("fold", f"{data.get('fold')} of {data['folds']}" if data.get("folds") else ""),
        ("split fingerprint", subject.validation.split_fingerprint),
        ("folds fingerprint", subject.validation.folds_fingerprint),
        *subject.versions.items(),
    ]
    return [(name, str(value)) for name, value in pairs if value not in (None, "")]
