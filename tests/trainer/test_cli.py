"""The command line as a user meets it: in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer.conftest import TINY
from trainer.cli import main


def trainer(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trainer", *words]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)


def test_a_run_prints_no_warning(documents: Path, tmp_path: Path) -> None:
    """Neither Hydra's `_self_`, nor albumentations' ignored arguments, nor a library's remark."""
    words = ["data.img_size=64", "training.max_steps=2", "training.num_workers=1"]
    done = trainer("train", *TINY, *words, DATA_DIR=str(documents), RUN_DIR=str(tmp_path / "run"))
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("test_resnet on ") and lines[-1].startswith("best val_f1 ") and len(lines) == 4
    assert "\x1b" not in done.stdout, "a log is plain text"


def test_help_lists_commands_and_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("train", "predict", "ensemble", "analyze", "sample-data"))
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    assert "swin_base_384" in out and "training.batch_size" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "did you mean 'train'?"),
        (["model=resnet34"], "is `train` missing before it?"),
        (["train", "--multirun", "model=resnet34,resnet50"], "launcher submit model=resnet34,resnet50"),
        (["train", "model=resnet43", "trainin.lr=1"], "did you mean 'resnet34'?"),
    ],
)
def test_a_wrong_word_is_an_error_with_the_right_one(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 64
    assert said in capsys.readouterr().err


def test_settings_come_from_dotenv_where_the_environment_is_silent(
    documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "from_dotenv"
    (tmp_path / ".env").write_text(f"DATA_DIR={documents}\nRUN_DIR={run}\nWANDB_MODE=disabled\n")
    for name in ("RUN_DIR", "DATA_DIR", "WANDB_MODE"):  # so that they are taken back afterwards
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    assert main(["train", *TINY, "training.max_steps=1"]) == 0
    assert (run / "best.ckpt").exists()
