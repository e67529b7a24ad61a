"""What a person sees on a terminal while a command works, and that a log has nothing of it."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docker_engine import REPOSITORY
from trainer.base import activity

IMPORT = "from trainer.cli.imports import heavy\nwith heavy(): pass\nprint('done')"


def shown(command: list[str], folder: Path = REPOSITORY, **variables: str) -> str:
    """All that the command writes to a terminal of 100 columns, which is its standard output and standard error."""
    outer, inner = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH", str(REPOSITORY)), "COLUMNS": "100"}
    environment |= {"TERM": "xterm", **variables}
    process = subprocess.Popen(command, stdin=inner, stdout=inner, stderr=inner, cwd=folder, env=environment)
    os.close(inner)
    pieces = []
    while True:
        try:
            piece = os.read(outer, 65536)
        except OSError:  # its end
            break
        if not piece:
            break
        pieces.append(piece)
    os.close(outer)
    text = b"".join(pieces).decode()
    assert process.wait(60) == 0, text
    return text


def test_an_import_is_shown_until_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", IMPORT]
    assert shown(command) == f"importing torch …{activity.ERASE}done\r\n"
    assert shown(command, TERM="dumb") == "done\r\n"
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_a_training_has_bars_for_the_epoch_the_validation_and_all_epochs(documents: Path, tmp_path: Path) -> None:
    words = ["model.name=test_resnet", "model.pretrained=false", "data.img_size=64", "training.batch_size=4"]
    words += [
        "training.precision=fp32",
        "training.epochs=2",
        "training.num_workers=0",
        "device=cpu",
        f"data.root={documents}",
    ]
    command = [sys.executable, "-m", "trainer", "train", *words]
    text = shown(command, tmp_path, RUN_DIR=str(tmp_path / "run [x]"), CACHE_DIR=str(tmp_path / "cache"))
    for part in ("checking the images", "epoch 1/2", "epoch 2/2", "images/s", "validating", "all epochs"):
        assert part in text, text
    kept = [line.rpartition("\x1b[2K")[2] for line in text.replace("\r", "").split("\n")]  # after the last erasure
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in kept]
    first, last = (next(line for line in lines if word in line) for word in ("test_resnet on cpu", "best val_f1"))
    assert first.startswith("test_resnet on cpu in fp32, 64 px: ") and last.startswith("best val_f1 "), (
        "no rest of a bar"
    )
    assert last.endswith("[x]/best.ckpt"), "neither broken nor taken for a style"


def test_what_is_counted_comes_in_its_order_and_without_a_terminal_alone(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(activity.counting(iter("abc"), "counting", 3)) == ["a", "b", "c"]
    with activity.doing("working"):
        pass
    assert capfd.readouterr() == ("", "")
