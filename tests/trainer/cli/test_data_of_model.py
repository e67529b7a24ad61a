"""One rule for the data folder of every command on a model's validation images."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from trainer.cli import options
from trainer.cli.main import main
from trainer.models import trained_on


def chosen(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The data folder that a command names, and where it comes from."""
    assert main(list(words)) == 0, capsys.readouterr().err
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("data folder: ")]
    return lines[0].removeprefix("data folder: ").partition(";")[0] if lines else ""


@pytest.mark.parametrize("command", ["analyze", "label-errors", "export"])
def test_every_command_on_validation_images_takes_the_same_folder_and_names_it(
    command: str,
    trained: list[Path],
    documents: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("DATA_DIR", raising=False)
    Path("data").mkdir()
    words = [command, "--checkpoint", str(trained[0] / "best.ckpt")]
    words += ["--to", "safetensors", "--images", "1", "--force"] if command == "export" else []
    assert chosen(capsys, *words) == f"{documents.resolve()} (the model was trained on it)"
    assert chosen(capsys, *words, "--data", str(documents)) == "", "the user knows it"


def test_the_environment_comes_first_and_the_usual_place_last(
    trained: list[Path],
    documents: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = trained[0] / "best.ckpt"
    monkeypatch.setenv("DATA_DIR", str(documents))
    assert options.data_of_model(None, model) == documents
    assert f"data folder: {documents} (DATA_DIR)" in capsys.readouterr().out
    monkeypatch.delenv("DATA_DIR")
    monkeypatch.setattr(trained_on, "data_folder", lambda path: None)  # it is gone
    assert options.data_of_model(None, model) is None
    Path("data").mkdir()
    assert options.data_of_model(None, model) == Path("data")
    assert "data folder: data (the default)" in capsys.readouterr().out


def test_the_folder_of_an_ensemble_and_of_its_predictions_is_that_of_its_members(
    trained: list[Path], documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DATA_DIR", raising=False)
    checkpoints = [str(run / "best.ckpt") for run in trained]
    assert main(["ensemble", "--checkpoints", *checkpoints, "--output", "vote"]) == 0
    assert not Path("vote/submission.csv").exists(), "what is predicted has to be named"
    assert trained_on.data_folder(Path("vote/ensemble.json")) == documents.resolve()
    assert trained_on.data_folder(Path("vote/val_predictions.npz")) == documents.resolve()
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy("vote/val_predictions.npz", alone)
    assert trained_on.data_folder(alone / "val_predictions.npz") is None
