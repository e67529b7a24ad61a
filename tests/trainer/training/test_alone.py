"""Two processes never train in one folder, and a run never stands in its own way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trainer.conftest import CLASSES, draw
from trainer.base.errors import TrainerError
from trainer.base.layout import TRAINING
from trainer.training.alone import alone

OTHER = """
import os, sys, time
from pathlib import Path
from trainer.training.alone import alone
with alone(Path(sys.argv[1])):
    if os.fork() == 0:  # as a process that loads images, which outlives its parent for a moment
        time.sleep(30)
        os._exit(0)
    print("ready", flush=True)
    time.sleep(30)
"""


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(folder)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert other.stdout is not None and other.stdout.readline() == "ready\n"
        with pytest.raises(TrainerError, match="another process trains in this folder") as raised, alone(folder):
            pass
        assert raised.value.exit_code == 1 and (folder / TRAINING).exists()
        other.kill()
        other.wait()
        with alone(folder), alone(folder):
            assert (folder / TRAINING).exists()
        assert list(folder.iterdir()) == []
    finally:
        os.killpg(other.pid, signal.SIGKILL)
        other.wait()


def test_a_new_folder_without_a_result_is_removed_and_an_own_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    for name in ("own", "new", "with a file"):
        with alone(tmp_path / name):
            if name == "with a file":
                (tmp_path / name / "best.ckpt").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own", "with a file"]


@pytest.mark.parametrize("place", ["outputs/run", "run"])
def test_a_run_inside_the_data_folder_is_no_class(tmp_path: Path, train: Callable[..., int], place: str) -> None:
    root = tmp_path / "data"
    for kind, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for number in range(5):
            draw(kind, number).save(root / name / f"{number}.png")
    words = ["training.max_steps=1", "training.batch_size=4", "resume=auto"]
    assert train(root / place, *words, "training.lr=0.1", data=root) == 0
    assert not (root / place / TRAINING).exists()
    assert train(root / "outputs" / "second", *words, data=root) == 0
