"""W&B: off unless asked for, and never the reason for another result."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.trainer.conftest import TINY
from trainer.cli.main import main
from trainer.training import tracking


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "disabled"),
        ({"WANDB_API_KEY": "x" * 40}, "online"),
        ({"WANDB_API_KEY": "x" * 40, "WANDB_MODE": "disabled"}, "disabled"),
        ({"WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_MODE": "online"}, "online"),
    ],
)
def test_mode(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert tracking.choose_mode() == expected


def test_a_key_may_be_handed_over_as_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "WANDB_API_KEY").write_text("y" * 40 + "\n")
    monkeypatch.setenv("SECRETS_DIR", str(tmp_path / "secrets"))
    monkeypatch.setenv("WANDB_API_KEY", "x")  # so that it is taken back afterwards
    monkeypatch.delenv("WANDB_API_KEY")
    assert main(["ensemble", "--checkpoints", "none.ckpt"]) == 64
    assert os.environ["WANDB_API_KEY"] == "y" * 40 and tracking.choose_mode() == "online"


def test_off_offline_and_refusing_give_the_same_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, documents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATA_DIR", str(documents))
    monkeypatch.setattr(tracking, "INIT_TIMEOUT", 2)
    states = {}
    settings = {
        "off": {"WANDB_MODE": "disabled"},
        "offline": {"WANDB_MODE": "offline"},
        "refusing": {"WANDB_MODE": "online", "WANDB_API_KEY": "z" * 40, "WANDB_BASE_URL": "http://nowhere.invalid"},
    }
    for name, environment in settings.items():
        with monkeypatch.context() as patch:
            for key, value in {**environment, "RUN_DIR": str(tmp_path / name)}.items():
                patch.setenv(key, value)
            assert main(["train", *TINY, "training.max_steps=3"]) == 0
        states[name] = torch.load(tmp_path / name / "last.ckpt", weights_only=True)["model"]
    for name in ("offline", "refusing"):
        assert all(torch.equal(states["off"][key], value) for key, value in states[name].items())
    assert list((tmp_path / "offline" / "wandb").glob("offline-run-*"))
    assert not (tmp_path / "off" / "wandb").exists()
    assert "note: W&B is off for this run" in capsys.readouterr().out
