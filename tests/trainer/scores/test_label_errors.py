"""Likely label errors: planted wrong labels come first, and right ones are left alone."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from trainer.cli.main import main
from trainer.scores import label_errors


def predictions(images: int = 240, classes: int = 4, wrong: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True classes (N,), targets (N,) of which the first `wrong` are wrong, probabilities (N, C) of a fair model."""
    chance = np.random.default_rng(0)
    truth = chance.integers(0, classes, images)
    logits = chance.normal(0, 1, (images, classes))
    logits[np.arange(images), truth] += 6
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    targets = truth.copy()
    targets[:wrong] = (truth[:wrong] + 1) % classes
    return truth, targets, probabilities.astype(np.float32)


def test_planted_wrong_labels_come_first_with_their_right_class() -> None:
    truth, targets, probabilities = predictions()
    found = label_errors.find_label_errors(targets, probabilities)
    assert sum(error.row < 12 for error in found[:12]) >= 11
    assert all(error.suggested == truth[error.row] for error in found[:10])
    assert [error.score for error in found] == sorted(error.score for error in found)
    assert len(found) <= 20, "right labels are suspected"


def test_nothing_is_suspected_without_a_mistake_or_of_one_class() -> None:
    truth, _, probabilities = predictions()
    sure = np.full_like(probabilities, 0.01)
    sure[np.arange(len(truth)), truth] = 0.97
    assert label_errors.find_label_errors(truth, sure) == []
    assert label_errors.find_label_errors(np.zeros_like(truth), probabilities) == []


def test_a_class_without_images_is_no_obstacle() -> None:
    _, targets, probabilities = predictions()
    wider = np.concatenate([probabilities * 0.99, np.full((len(targets), 1), 0.01)], axis=1)
    rows = [error.row for error in label_errors.find_label_errors(targets, wider)]
    assert sum(row < 12 for row in rows) >= 11


def test_the_list_of_a_model_near_chance_is_doubted() -> None:
    truth, targets, probabilities = predictions()
    assert label_errors.doubt(targets, probabilities) is None, "planted errors are no weakness of the model"
    chance = np.random.default_rng(1).permutation(probabilities)
    weak = np.where((np.arange(len(truth)) % 4 == 0)[:, None], probabilities, chance)  # right on 3 of 8 or so
    one_class = np.tile(np.float32([0.7, 0.1, 0.1, 0.1]), (len(truth), 1))
    for poor in (chance, weak, one_class):
        assert "mistakes of the model" in (label_errors.doubt(targets, poor) or "")
    assert "right about 25% of the images, and guessing would be right about 25%" in str(
        label_errors.doubt(np.arange(240) % 4, one_class)
    )
    assert label_errors.doubt(np.zeros(240, int), one_class) is None, "of one class there is no list"


def test_the_command_writes_a_table_and_a_gallery(
    documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = np.array(sorted(path.name for path in (documents / "train").iterdir()))
    _, targets, probabilities = predictions(len(ids), 3, 3)
    names = np.array(["stripes", "boxes", "discs"])
    np.savez(tmp_path / "p.npz", ids=ids, targets=targets, class_names=names, probabilities=probabilities)
    assert main(["label-errors", "--predictions", "p.npz", "--data.root", str(documents), "output=out"]) == 0
    said = capsys.readouterr().out
    assert said.endswith("likely label errors in 36 images: out/label_errors.csv, out/label_errors.png\n")
    table = pd.read_csv(tmp_path / "out" / "label_errors.csv")
    assert list(table.columns) == ["ID", "label", "suggested", "score", "p_stripes", "p_boxes", "p_discs"]
    assert len(table) >= 2 and set(table["ID"]) <= set(ids[:3]) and (table["label"] != table["suggested"]).all()
    with Image.open(tmp_path / "out" / "label_errors.png") as picture:
        assert len(picture.convert("L").getcolors() or range(300)) > 20, "a blank picture"
    np.savez(
        tmp_path / "p.npz", ids=ids, targets=targets, class_names=names, probabilities=np.roll(probabilities, 5, axis=0)
    )
    assert main(["label-errors", "--predictions", "p.npz"]) == 0
    said = capsys.readouterr().out
    assert "note: the model is right about" in said and "no data folder, so label_errors.png has no pictures" in said
    (tmp_path / "empty").mkdir()
    assert main(["label-errors", "--predictions", "p.npz", "--data", "empty"]) == 0
    assert re.search(
        r"note: (\d+) of \1 pictures are not in label_errors.png: not found in empty", capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [("none.npz", "file not found"), ("bad.npz", "not a val_predictions.npz"), ("flipped.npz", "invalid")],
)
def test_what_holds_no_predictions_is_one_clear_error(
    name: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.npz").write_bytes(b"PK nothing")
    np.savez_compressed(tmp_path / "flipped.npz", ids=np.arange(500))
    whole = (tmp_path / "flipped.npz").read_bytes()
    (tmp_path / "flipped.npz").write_bytes(whole[:60] + b"\xff" * 20 + whole[80:])
    assert main(["label-errors", "--predictions", name]) == 64
    assert said in capsys.readouterr().err and not (tmp_path / "label_errors.csv").exists()
