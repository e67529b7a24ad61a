"""A small set of documents and tiny trained models, made once for all tests of the trainer."""

from __future__ import annotations

import csv
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read on import

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from trainer.cli import imports
from trainer.cli.main import main

with imports.heavy():  # as `python -m trainer` does: half the time for each worker
    import trainer.predict.inference  # noqa: F401

TINY = ["model.name=test_resnet", "model.pretrained=false", "data.img_size=64", "training.num_workers=0"]
CLASSES = ("stripes", "boxes", "discs")


def draw(kind: int, seed: int) -> Image.Image:
    """A page of 60 to 90 pixels a side whose layout tells its class."""
    chance = random.Random(seed * 10 + kind)
    width, height = chance.randint(60, 90), chance.randint(60, 90)
    page = Image.new("RGB", (width, height), (250, 248, 240))
    pen = ImageDraw.Draw(page)
    for _ in range(5):
        x, y, size = chance.randint(0, width - 20), chance.randint(0, height - 20), chance.randint(8, 18)
        ink = (chance.randint(0, 120),) * 3
        if kind == 0:
            pen.line((0, y, width, y), fill=ink, width=3)
        elif kind == 1:
            pen.rectangle((x, y, x + size, y + size), fill=ink)
        else:
            pen.ellipse((x, y, x + size, y + size), outline=ink, width=3)
    return page


def write_documents(root: Path, per_class: int = 12, test: int = 6) -> Path:
    """The competition's layout: train.csv, meta.csv, sample_submission.csv, train/, test/."""
    (root / "train").mkdir(parents=True)
    (root / "test").mkdir()
    with (root / "train.csv").open("w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["ID", "target"])
        for kind in range(len(CLASSES)):
            for number in range(per_class):
                name = f"{kind}-{number:03d}.jpg"
                draw(kind, number).save(root / "train" / name)
                rows.writerow([name, kind])
    (root / "meta.csv").write_text("target,class_name\n" + "".join(f"{k},{n}\n" for k, n in enumerate(CLASSES)))
    with (root / "sample_submission.csv").open("w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["ID", "target"])
        for number in reversed(range(test)):
            draw(number % 3, 1000 + number).save(root / "test" / f"t{number}.jpg")
            rows.writerow([f"t{number}.jpg", 0])
    return root


@pytest.fixture(autouse=True)
def quiet_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test reads the user's settings, cache, network or folder."""
    for name in ("RUN_DIR", "DATA_DIR", "CACHE_DIR", "SECRETS_DIR", "DEVICE_MEMORY_LIMIT"):
        monkeypatch.delenv(name, raising=False)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_documents(tmp_path_factory.mktemp("documents") / "data")


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch, documents: Path) -> Callable[..., int]:
    """`train(run_dir, *overrides)`: the real command, in this process; returns its exit code."""

    def command(run_dir: Path, *overrides: str, data: Path = documents) -> int:
        monkeypatch.setenv("RUN_DIR", str(run_dir))
        monkeypatch.setenv("DATA_DIR", str(data))
        code = main(["train", *TINY, *overrides])
        monkeypatch.delenv("RUN_DIR")
        return code

    return command


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, documents: Path) -> Iterator[list[Path]]:
    """Run directories of two models of different kind and size, on one split."""
    root = tmp_path_factory.mktemp("trained")
    runs = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATA_DIR", str(documents))
        for name, model, size in (("first", "test_resnet", 64), ("second", "test_vit", 160)):
            run_dir = root / name
            patch.setenv("RUN_DIR", str(run_dir))
            words = [f"model.name={model}", f"data.img_size={size}", "training.epochs=3", "training.warmup_epochs=1"]
            assert main(["train", *TINY, *words, "training.batch_size=8"]) == 0
            runs.append(run_dir)
        yield runs
