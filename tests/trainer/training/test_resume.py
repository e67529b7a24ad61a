"""Exact resume: a run that was killed, at whatever step and however often, ends as one that never was."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.conftest import TINY
from trainer.base.errors import DeviceMemoryError, StoppedError, TrainerError
from trainer.config.compose import compose
from trainer.models import checkpoint
from trainer.training import full_memory, step
from trainer.training import run as train
from trainer.training.progress import Reporter
from trainer.training.stop import Stop

Train = Callable[..., int]

WORDS = [
    "training.epochs=12",
    "training.batch_size=4",
    "training.micro_batch=2",
    "training.num_workers=2",
    "training.validate_per_epoch=2",
    "training.keep_top=2",
    "training.patience=2",
    "training.warmup_epochs=1",
    "training.mixup=0.4",
    "training.cutmix=1",
    "training.mix_probability=0.8",
    "training.label_smoothing=0.1",
    "training.balanced_sampling=true",
    "training.class_weights=false",
    "training.ema_decay=0.95",
    "model.drop_path=0.1",
]
KILL = """
import os, signal
from trainer.training import step

take, last = step.take, int(os.environ["KILL_AT"])

def stepping(learner, batches, number):
    images = take(learner, batches, number)
    if number + 1 == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return images

step.take = stepping
"""


def train_until(step: int, run: Path, documents: Path) -> None:
    """The real command in a process that gets a SIGKILL in the midst of optimiser step `step` (from 1)."""
    patch = run.with_name("kill.py")
    patch.write_text(KILL)
    command = [sys.executable, "-m", "trainer", "train", *TINY, *WORDS, "resume=auto"]
    environment = {**os.environ, "RUN_DIR": str(run), "DATA_DIR": str(documents)}
    environment |= {"WARM_PATCH": str(patch), "KILL_AT": str(step)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr


def left(run: Path) -> dict[str, Any]:
    """All that a run leaves but for times."""
    state = torch.load(run / "last.ckpt", weights_only=True)
    with (run / "history.csv").open() as file:
        history = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
    for entry in state["progress"].pop("history"):
        assert entry.pop("seconds") >= 0
    state["progress"].pop("seconds")
    state["config"].pop("resume")
    kept = {path.name: checkpoint.load(path) for path in [run / "best.ckpt", *sorted((run / "top").iterdir())]}
    found = {name: (c.state_dict, c.metrics, c.validation, c.calibration) for name, c in kept.items()}
    return {"last": state, "history": history, "kept": found}


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Bit for bit."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}.{number}")
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, where


def test_a_killed_run_resumes_to_the_very_end_of_one_that_was_not(
    tmp_path: Path, train: Train, documents: Path
) -> None:
    """Killed in the midst of an epoch, after a validation: last.ckpt knows of every best.ckpt."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(whole, *WORDS) == 0
    train_until(13, parts, documents)
    stopped = torch.load(parts / "last.ckpt", weights_only=True)["progress"]
    assert checkpoint.load(parts / "best.ckpt").metrics["step"] <= stopped["step"]
    (parts / ".best.x1y2.ckpt").touch()  # as a process leaves that is killed while it writes
    assert train(parts, *WORDS, "resume=auto") == 0
    assert_same(left(whole), left(parts))
    steps = left(whole)["last"]["progress"]["step"]
    assert 13 < steps < 12 * 7, "early stopping is part of it"
    assert not list(parts.rglob(".*"))


@pytest.mark.slow
def test_ten_kills_at_random_steps_change_no_bit(tmp_path: Path, train: Train, documents: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(whole, *WORDS) == 0
    steps = left(whole)["last"]["progress"]["step"]
    for number in sorted(random.Random(0).sample(range(1, steps + 1), 10)):
        train_until(number, parts, documents)
    assert train(parts, *WORDS, "resume=auto") == 0
    assert_same(left(whole), left(parts))


def test_max_steps_within_an_epoch_leave_its_rest_to_a_resume(tmp_path: Path, train: Train) -> None:
    words = ["training.epochs=2", "training.batch_size=8", "training.drop_last=false", "training.warmup_epochs=0"]
    words += ["training.scheduler=constant", "training.validate_per_epoch=1"]
    assert train(tmp_path / "whole", *words) == 0
    assert train(tmp_path / "parts", *words, "training.max_steps=3") == 0
    metrics = json.loads((tmp_path / "parts" / "metrics.json").read_text())
    assert (metrics["steps"], metrics["epochs"]) == (3, 1)
    assert train(tmp_path / "parts", *words, "resume=auto") == 0
    whole, parts = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("whole", "parts"))
    assert whole["progress"]["step"] == parts["progress"]["step"] == 8, "two epochs of 28 images"
    assert_same(whole["model"], parts["model"])


def test_what_a_run_goes_on_with_lies_where_it_trains() -> None:
    """The meta device stands for a GPU: an optimiser's state follows its weights when it is read, and no later."""
    settings = compose(["model.name=test_resnet", "model.pretrained=false", "data.img_size=64"])
    net, optimizer = step.learner(settings, 3, torch.device("cpu"), "fp32", True)
    net(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).sum().backward()
    optimizer.step()
    state = {"model": net.state_dict(), "optimizer": optimizer.state_dict()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weights that are not there take no values
        net, optimizer = step.learner(settings, 3, torch.device("meta"), "fp32", True, state)
    kept = [value for values in optimizer.state.values() for value in values.values()]
    assert kept and {tensor.device.type for tensor in (*net.parameters(), *net.buffers(), *kept)} == {"meta"}


def test_full_memory_while_a_checkpoint_is_read_is_no_fault_of_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = compose(["model.name=test_resnet", "model.pretrained=false", "data.img_size=64"])
    net, optimizer = step.learner(settings, 3, torch.device("cpu"), "fp32", True)
    state = {"model": net.state_dict(), "optimizer": optimizer.state_dict()}

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.optim.Optimizer, "load_state_dict", full)
    with pytest.raises(DeviceMemoryError, match=r"training\.micro_batch=8"), full_memory.memory_errors(settings):
        step.learner(settings, 3, torch.device("cpu"), "fp32", True, state)


def test_a_run_that_diverged_leaves_its_last_checkpoint_when_it_is_stopped(
    tmp_path: Path, documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An infinite gradient, clipped, leaves weights that are not a number."""
    words = [*TINY, f"data.root={documents}", "training.batch_size=4", "training.gradient_clip=1"]
    stop, steps, loss = Stop(), 0, step._loss
    monkeypatch.setattr(step, "_loss", lambda *inputs: loss(*inputs) * torch.inf)

    def lap(part: str) -> None:
        nonlocal steps
        steps += part == "optimizer"
        stop.requested = steps == 2

    settings = compose(words)
    with pytest.raises(TrainerError, match=r"infinite or NaN at step 2; use a training\.lr smaller"):
        train.train(settings, tmp_path / "run", stop, lap)
    assert not (tmp_path / "run" / "last.ckpt").exists()


class LostError(Exception):
    """The process is gone."""


@pytest.mark.parametrize("words", [["training.epochs=2"], ["training.epochs=9", "training.max_steps=5"]])
@pytest.mark.parametrize("at", ["before the validation", "in the validation", "after the validation"])
def test_a_run_that_ended_within_its_last_validation_has_it_all_the_same(
    tmp_path: Path, documents: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], at: str
) -> None:
    settings = compose([*TINY, f"data.root={documents}", "training.batch_size=8", *words])
    train.train(settings, tmp_path / "whole", Stop())
    whole = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    stop, steps, before = Stop(), 0, ""

    def lap(part: str) -> None:
        nonlocal steps, before
        last = steps == whole["steps"] and part == "validation" and before == "rest"
        steps += part == "optimizer"
        before = part
        if at == "before the validation" and steps == whole["steps"]:
            stop.requested = True
        if at == "after the validation" and last:
            raise LostError

    beat = Reporter.beat

    def beating(self: Reporter, epoch: int, step: int, *more: Any, **named: Any) -> None:
        beat(self, epoch, step, *more, **named)
        if at == "in the validation" and step == whole["steps"]:
            stop.requested = True

    with monkeypatch.context() as patch, pytest.raises((StoppedError, LostError)):
        patch.setattr(Reporter, "beat", beating)
        train.train(settings, tmp_path / "run", stop, lap)
    train.train(dataclasses.replace(settings, resume="auto"), tmp_path / "run", Stop())
    made = json.loads((tmp_path / "run" / "metrics.json").read_text())
    for key in ("val_f1", "val_f1_corrupted", "best_epoch", "epochs", "steps"):
        assert made[key] == whole[key], key
    histories = [(tmp_path / name / "history.csv").read_text().splitlines() for name in ("whole", "run")]
    assert [re.sub(r",[0-9.]+$", "", line) for line in histories[0]] == [
        re.sub(r",[0-9.]+$", "", line) for line in histories[1]
    ]
