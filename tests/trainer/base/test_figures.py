"""Figures against scikit-learn, and a new one that arrives everywhere by one entry of the registry."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss

from launcher.results import collect, leaderboard
from tests.launcher.boards import add_run, scored_run
from trainer.base import figures
from trainer.base.figures import Counts, Figure
from trainer.base.files import write_json
from trainer.cli.main import main

Train = Callable[..., int]


def balanced_accuracy(counts: Counts) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.nanmean(counts.right / counts.labelled, axis=-1)


TOY = Figure("balanced_accuracy", "balanced accuracy", "balanced accuracy", of_counts=balanced_accuracy)
NAMES = ["val_balanced_accuracy", "val_balanced_accuracy_corrupted", "val_balanced_accuracy_mean"]


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "FIGURES", (*figures.FIGURES, TOY))


@pytest.mark.parametrize("classes", [2, 5, 17])
def test_figures_are_scikit_learns_also_where_classes_are_absent(classes: int) -> None:
    chance = np.random.default_rng(classes)
    probabilities = chance.dirichlet(np.ones(classes), 40)
    targets = chance.integers(0, max(2, classes - 3), 40)
    predicted = probabilities.argmax(1)
    found = figures.values(targets, {"clean": probabilities})
    assert found == {
        "val_f1": pytest.approx(f1_score(targets, predicted, average="macro"), abs=1e-6),
        "val_accuracy": pytest.approx(accuracy_score(targets, predicted), abs=1e-6),
        "val_loss": pytest.approx(log_loss(targets, probabilities, labels=range(classes)), abs=1e-6),
    }
    del found["val_loss"]
    assert figures.values_of_labels(targets, {"clean": predicted}, classes) == found


def test_columns_keep_their_names_and_their_order() -> None:
    """They are those of files that users have."""
    clean, corrupted = ["val_f1", "val_accuracy", "val_loss"], ["val_f1_corrupted", "val_accuracy_corrupted"]
    assert list(figures.columns()) == [*clean, *corrupted, "val_f1_mean"]
    probabilities = np.eye(3)[[0, 1, 2, 0]] * 0.8 + 0.1
    assert list(figures.values(np.arange(4) % 3, {"clean": probabilities})) == clean
    assert ",".join(collect.columns()) == (
        "rank,run,kind,state,model,data,training,img_size,batch_size,seed,val_f1,val_accuracy,best_epoch,epochs,"
        "minutes,images_per_second,params,members,checkpoint,reason,val_f1_low,val_f1_high,val_f1_corrupted,score,"
        "monitor,distinguishable,val_images,fold,voters,groups"
    )


def test_a_figure_of_probabilities_has_no_value_for_labels() -> None:
    with pytest.raises(TypeError, match="cross-entropy"):
        figures.LOSS.of_labels(np.zeros(3, int), np.zeros(3, int), 2)


def as_run(submission: Path, name: str, trained: Path) -> Path:
    """What was trained as a run of a submission that has ended."""
    run = add_run(submission, name)
    shutil.copytree(trained, run, dirs_exist_ok=True)
    return run


def history(run: Path) -> list[dict[str, str]]:
    with (run / "history.csv").open() as lines:
        return list(csv.DictReader(lines))


@pytest.mark.usefixtures("toy")
def test_a_new_figure_is_one_entry(
    tmp_path: Path, train: Train, documents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submission = tmp_path / "runs" / "toy"
    monitor = "val_balanced_accuracy_mean"
    assert train(tmp_path / "run", "training.epochs=5", "training.batch_size=8", f"training.monitor={monitor}") == 0
    run = as_run(submission, "001-net", tmp_path / "run")

    rows, metrics = history(run), json.loads((run / "metrics.json").read_text())
    assert set(NAMES) <= rows[0].keys()
    assert "val_balanced_accuracy 0." in capsys.readouterr().out, "in the line of each validation"
    best = max(float(row[monitor]) for row in rows)
    chosen = next(row for row in rows if float(row[monitor]) == best)
    assert (metrics["monitor"], metrics["score"], str(metrics["best_epoch"])) == (monitor, best, chosen["epoch"])
    with np.load(run / "val_predictions.npz") as stored:
        targets = stored["targets"]
        values = [balanced_accuracy_score(targets, stored[name].argmax(1)) for name in ("probabilities", "corrupted")]
    values.append(sum(values) / 2)
    assert [metrics[name] for name in NAMES] == pytest.approx(values, abs=1e-6)

    ranked, _ = collect.collect(submission)
    with (submission / "leaderboard.csv").open() as lines:
        (row,) = csv.DictReader(lines)
    assert [float(row[name]) for name in (*NAMES[:2], "score")] == pytest.approx(values, abs=1e-6)
    assert row["monitor"] == monitor and "corrupted balanced accuracy" in str(leaderboard.caption(ranked))
    assert json.loads((submission.parent / "champion" / "champion_info.json").read_text())[monitor] == metrics[monitor]

    assert main(["analyze", f"checkpoint={run / 'best.ckpt'}", "output=report", f"data.root={documents}"]) == 0
    report = Path("report/analysis_results/report.html").read_text()
    assert f"balanced accuracy</th><td>{values[0]:.4f}</td><td>{values[1]:.4f}</td>" in report
    assert "val balanced accuracy and corrupted balanced accuracy chose the checkpoint" in report

    assert main(["export", f"checkpoint={run / 'best.ckpt'}", "to=safetensors", "output=made"]) == 0
    card = Path("made/README.md").read_text()
    assert f"| balanced accuracy, corrupted copies of the validation images | {values[1]:.4f} |" in card


@pytest.mark.usefixtures("toy")
def test_runs_are_told_apart_by_the_figure_that_they_monitored(tmp_path: Path) -> None:
    for name, wrong in {"001-a": 2, "002-b": 3, "003-c": 40}.items():
        scored_run(tmp_path, name, wrong=wrong, monitor=NAMES[0])
    rows = collect.leaderboard_rows(tmp_path)
    assert [(row["run"], row["distinguishable"]) for row in rows] == [
        ("001-a", "no"),
        ("002-b", "no"),
        ("003-c", "yes"),
    ]
    assert {row["monitor"] for row in rows} == {NAMES[0]}


def test_a_lower_loss_is_better(tmp_path: Path, train: Train) -> None:
    words = ["training.epochs=6", "training.batch_size=8", "training.warmup_epochs=1", "training.lr=0.05"]
    submission = tmp_path / "runs" / "one"
    assert train(tmp_path / "run", *words, "training.monitor=val_loss", "training.keep_top=2") == 0
    run = as_run(submission, "001-net", tmp_path / "run")
    rows, metrics = history(run), json.loads((run / "metrics.json").read_text())
    losses = sorted(float(row["val_loss"]) for row in rows)
    assert metrics["score"] == metrics["val_loss"] == losses[0]
    assert [path.name.endswith(f"loss_{losses[1]:.4f}.ckpt") for path in (run / "top").iterdir()] == [True]

    worse = as_run(submission, "002-worse", run)
    write_json(worse / "metrics.json", {**metrics, "val_loss": losses[-1] + 1, "val_f1": 1.0})
    ranked, line = collect.collect(submission)
    assert [row["run"] for row in ranked] == ["001-net", "002-worse"] and "001-net" in line


@pytest.mark.parametrize("name", ["f1", "f1_mean", "accuracy_corrupted"])
def test_a_figure_cannot_take_the_column_of_another(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    odd = Figure(name, "odd", "odd", of_counts=balanced_accuracy)
    monkeypatch.setattr(figures, "FIGURES", (*figures.FIGURES, odd))
    with pytest.raises(ValueError, match=f"the column val_{name}"):
        figures.columns()
