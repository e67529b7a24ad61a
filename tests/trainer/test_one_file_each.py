"""A loss, an optimizer and an augmentation of our own are one file each: dropped into a copy of the trainer, they can be
named in the configuration, are refused when misspelt, and take part in training."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.trainer.conftest import TINY

PACKAGE = Path(__file__).parents[2] / "trainer"

LOSS = '''
"""Three for every image, whatever the model says."""

def by_class(logits, distribution, training):
    return 0 * logits + 3 / logits.shape[1]
'''
OPTIMIZER = '''
"""SGD that leaves a mark in its state."""

import torch

def create(groups, training, fused):
    return torch.optim.SGD([{**group, "toy": True} for group in groups], lr=training.lr)
'''
AUGMENTATION = '''
"""A page of one grey."""

import albumentations as A

class ToyPaint(A.ImageOnlyTransform):
    any_resolution = True

    def __init__(self, grey: int = 0, p: float = 0.5) -> None:
        super().__init__(p=p)
        self.grey = grey

    def apply(self, img, **params):
        print("painted", self.grey, img.shape)
        out = img.copy()
        out[:] = self.grey
        return out
'''


@pytest.fixture
def trainer(tmp_path: Path) -> Path:
    """The folder of a copy of the trainer with the three files."""
    copy = tmp_path / "code"
    shutil.copytree(PACKAGE, copy / "trainer", ignore=shutil.ignore_patterns("__pycache__"))
    for place, text in (
        ("models/losses/toy_loss.py", LOSS),
        ("models/optimizers/toy_sgd.py", OPTIMIZER),
        ("augment/own/toy_paint.py", AUGMENTATION),
    ):
        (copy / "trainer" / place).write_text(text)
    return copy


def python(trainer: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=trainer,
        env={**os.environ, "PYTHONPATH": str(trainer), **environment},
        capture_output=True,
        text=True,
    )


def test_a_loss_an_optimizer_and_an_augmentation_are_a_file_each(
    trainer: Path, tmp_path: Path, documents: Path
) -> None:
    words = [*TINY, f"data.root={documents}", "training.max_steps=1", "training.epochs=1", "device=cpu"]
    words += ["training.loss=toy_loss", "training.optimizer=toy_sgd", "training.class_weights=false"]
    resize = "{LongestMaxSize: {max_size: 64}}, {PadIfNeeded: {min_height: 64, min_width: 64}}"
    words += [f"data.train_transforms=[{resize}, {{ToyPaint: {{grey: 7, p: 1}}}}]"]
    done = python(trainer, "-m", "trainer", "train", *words, RUN_DIR=str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    with (tmp_path / "run" / "history.csv").open() as rows:
        assert float(next(csv.DictReader(rows))["train_loss"]) == pytest.approx(3)
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert all(group["toy"] for group in state["optimizer"]["param_groups"])
    assert done.stdout.count("painted 7") >= 16


def test_their_names_and_arguments_are_checked_without_importing_them(trainer: Path) -> None:
    code = """
import sys
from trainer.base.errors import ConfigError
from trainer.config.compose import compose
from trainer.config.check import transforms
try:
    compose(["training.loss=toy_los", "training.optimizer=toy_sg", "data.train_transforms=[{ToyPaint: {gray: 1}}]"])
except ConfigError as error:
    print(error)
print(transforms()["ToyPaint"], {"torch", "albumentations"} & {*sys.modules})
"""
    done = python(trainer, "-c", code)
    assert done.returncode == 0, done.stderr
    for hint in (
        "'toy_loss'",
        "'toy_sgd'",
        "ToyPaint has no argument 'gray'; did you mean 'grey'?",
        "['grey', 'p'] set()",
    ):
        assert hint in done.stdout, done.stdout


def test_merging_leaves_an_augmentation_of_our_own_the_small_page(trainer: Path) -> None:
    code = """
import numpy as np
from trainer.augment.pipeline import Augmentation
steps = [{"LongestMaxSize": {"max_size": 64}}, {"PadIfNeeded": {"min_height": 64, "min_width": 64}}]
made = Augmentation([*steps, {"ToyPaint": {"grey": 7, "p": 1}}], "data.train_transforms", 64, merge=True)
print(set(made(np.zeros((20, 32, 3), dtype=np.uint8), 0, 0).ravel().tolist()))
"""
    done = python(trainer, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["painted 7 (32, 32, 3)", "{7}"], done.stdout


def test_files_that_editors_leave_there_are_no_names(trainer: Path) -> None:
    for folder in ("models/losses", "models/optimizers", "augment/own"):
        (trainer / "trainer" / folder / "._toy.py").write_bytes(b"\x00\x05\x16\x07\xff")
        (trainer / "trainer" / folder / ".#toy.py").symlink_to("somebody@machine.123")
    code = """
from trainer.config.check import choices, transforms
print(choices()["training.loss"], choices()["training.optimizer"], "ToyPaint" in transforms())
"""
    done = python(trainer, "-c", code)
    assert done.stdout == "('cross_entropy', 'focal', 'toy_loss') ('adamw', 'sgd', 'toy_sgd') True\n", done.stderr


def test_a_broken_augmentation_is_named(trainer: Path) -> None:
    (trainer / "trainer/augment/own/broken.py").write_text("class Broken(:\n")
    done = python(trainer, "-m", "trainer", "config")
    assert done.returncode == 1 and "(broken.py, line 1)" in done.stderr, done.stderr


def test_a_loss_may_have_the_name_of_a_function_of_torch(trainer: Path) -> None:
    for name in ("kl_div", "one_hot"):
        (trainer / f"trainer/models/losses/{name}.py").write_text(LOSS)
    code = """
import torch
from trainer.config.schema import TrainingConfig
from trainer.models import losses
logits, targets = torch.zeros(2, 3), torch.tensor([0, 2])
for name in ("kl_div", "one_hot"):
    print(losses.by_class(logits, losses.wanted(targets, 3, 0.0), TrainingConfig(loss=name)).sum().item())
print(losses.distance(logits, losses.wanted(targets, 3, 0.0), 2.0).shape)
"""
    done = python(trainer, "-c", code)
    assert done.stdout == "6.0\n6.0\ntorch.Size([2])\n", done.stderr
