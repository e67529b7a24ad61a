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
