"""Analysis: figures that agree with the run's own, pictures that can be opened."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from trainer.cli.main import main
from trainer.models import checkpoint
from trainer.report import analyze
from trainer.scores.val_predictions import Validation


@pytest.fixture(autouse=True)
def data_dir(documents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_DIR", str(documents))


def test_the_manuals_command_leaves_matrix_report_and_mistakes(trained: list[Path], tmp_path: Path) -> None:
    assert main(["analyze", "--checkpoint", str(trained[0] / "best.ckpt")]) == 0
    out = tmp_path / "analysis_results"
    metrics = json.loads((trained[0] / "metrics.json").read_text())
    report = pd.read_csv(out / "classification_report.csv", index_col="class")
    assert report.loc["macro avg", "f1-score"] == pytest.approx(metrics["val_f1"], abs=1e-4)
    assert report.loc["accuracy", "f1-score"] == pytest.approx(metrics["val_accuracy"], abs=1e-4)
    for name in ("confusion_matrix.png", "worst_mistakes.png"):
        with Image.open(out / name) as picture:
            assert picture.width > 300 and len(picture.convert("L").getcolors() or range(300)) > 20, "a blank picture"


def test_an_ensemble_is_analysed_by_its_validation(trained: list[Path], tmp_path: Path) -> None:
    assert main(["ensemble", "--checkpoints", *(str(run / "best.ckpt") for run in trained)]) == 0
    assert main(["analyze", "checkpoint=ensemble.json", "output=there"]) == 0
    report = pd.read_csv(tmp_path / "there" / "analysis_results" / "classification_report.csv", index_col="class")
    expected = json.loads((tmp_path / "metrics.json").read_text())["val_f1"]
    assert report.loc["macro avg", "f1-score"] == pytest.approx(expected, abs=1e-4)


def with_validation(source: Path, place: Path, targets: list[int], predicted: list[int], classes: int) -> Path:
    probabilities = torch.full((len(targets), classes), 0.01)
    probabilities[range(len(targets)), predicted] = 0.9
    validation = {
        "ids": [f"{number}.jpg" for number in range(len(targets))],
        "targets": torch.tensor(targets),
        "probabilities": probabilities,
        "split_fingerprint": "x",
    }
    names = [f"a class with a rather long name {number}" for number in range(classes)]
    checkpoint.save(place, replace(checkpoint.load(source), validation=validation, class_names=names, labels=names))
    return place


def test_seventeen_classes_without_mistakes_or_pictures(
    trained: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    perfect = list(np.arange(34) % 17)
    path = with_validation(trained[0] / "best.ckpt", tmp_path / "perfect.ckpt", perfect, perfect, 17)
    assert main(["analyze", "--checkpoint", str(path)]) == 0
    assert "macro F1 1.0000, 0 mistakes" in capsys.readouterr().out
    page = Path("analysis_results/report.html").read_text()
    assert "up to 9 % of new images may be wrong" in page and "no mistake in 2" in page and "No mistake on 34" in page
    assert "No interval: none of 34 images is wrong; up to 8.8 % of new images may be wrong" in page
    wrong = [(target + 1) % 17 for target in perfect]
    path = with_validation(trained[0] / "best.ckpt", tmp_path / "wrong.ckpt", perfect, wrong, 17)
    assert main(["analyze", "--checkpoint", str(path)]) == 0
    out = capsys.readouterr().out
    assert "macro F1 0.0000, 34 mistakes" in out and "no picture, because not found in " in out and ": 0.jpg" in out
    page = Path("analysis_results/report.html").read_text()
    assert "No interval: resampling cannot vary this result" in page and "0.000 to 0.000" not in page
    assert "Do not use this list: the model is right about 0% of the images" in page


@pytest.mark.parametrize(
    ("name", "said"),
    [("none.ckpt", "checkpoint not found"), ("none.json", "file not found")],
)
def test_what_cannot_be_analysed_is_one_clear_error(
    name: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyze", "--checkpoint", name]) == 64
    assert said in capsys.readouterr().err
    assert not (tmp_path / "analysis_results").exists()


def test_a_data_folder_that_is_not_there_is_told(trained: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", "--checkpoint", str(trained[0] / "best.ckpt"), "--data.root", "nowhere"]) == 65
    assert "nowhere: the data folder (data.root) does not exist" in capsys.readouterr().err


def test_a_champion_is_analysed_with_its_run_its_curves_and_its_pictures(
    trained: list[Path],
    documents: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without a data folder on the command line or in the environment, as the launcher leaves the champion."""
    monkeypatch.delenv("DATA_DIR")
    place = tmp_path / "champion"
    place.mkdir()
    shutil.copy(trained[0] / "best.ckpt", place / "best_model.ckpt")
    shutil.copy(trained[0] / "history.csv", place)
    moved = tmp_path / "elsewhere"
    shutil.copytree(documents, moved)
    (place / "champion_info.json").write_text(json.dumps({"run": "night-1/003-x", "data_folder": str(moved)}))
    assert main(["analyze", "--checkpoint", str(place / "best_model.ckpt")]) == 0
    page = Path("analysis_results/report.html").read_text()
    origin = checkpoint.load(place / "best_model.ckpt").provenance
    assert "night-1/003-x" in page and origin["git_sha"] in page and origin["data_fingerprint"] in page
    assert "Training" in page and "data:image" in page
    assert f"data folder: {moved} (the model was trained on it)" in capsys.readouterr().out
    (place / "champion_info.json").unlink()
    assert origin["data_folder"] == str(documents.resolve())
    assert main(["analyze", "--checkpoint", str(place / "best_model.ckpt")]) == 0
    out = capsys.readouterr().out
    assert f"data folder: {documents.resolve()} (the model was trained on it)" in out and "no data folder" not in out


def test_a_class_may_have_the_name_of_a_row_below_the_classes(tmp_path: Path) -> None:
    names = ["accuracy", "macro avg", "7"]
    probabilities = np.eye(3, dtype=np.float32)[[0, 0, 1, 2, 2, 2]]
    targets = np.array([0, 0, 0, 1, 2, 2])
    analyze.write_table(Validation([*"abcdef"], targets, probabilities, names), tmp_path / "t.csv")
    rows = [line.split(",") for line in (tmp_path / "t.csv").read_text().splitlines()[1:]]
    assert [row[0] for row in rows] == [*names, "accuracy", "macro avg", "weighted avg"]
    assert [row[4] for row in rows] == ["3", "1", "2", "6", "6", "6"]
    assert [row[1] for row in rows[:4]] == ["1.0000", "0.0000", "0.6667", "0.6667"]
