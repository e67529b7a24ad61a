"""Corrupted validation images are made once for all runs, and are the same whoever made them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from trainer import augment
from trainer.augment import corruption
from trainer.augment.pipeline import Augmentation, is_fixed
from trainer.config.schema import DataConfig
from trainer.data import dataset
from trainer.data.dataset import ImageDataset
from trainer.data.rows import Table
from trainer.data.table import read_training
from trainer.images import cache_folder
from trainer.training import val_batches
from trainer.training.val_batches import ValidationView, copies_on_disk

STEPS = [{"LongestMaxSize": {"max_size": 40}}, {"PadIfNeeded": {"min_height": 40, "min_width": 40}}]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The images whose corrupted copies were made."""
    names: list[str] = []
    real = corruption.Corruption.__call__

    def counted(self: corruption.Corruption, image: np.ndarray, image_id: str) -> np.ndarray:
        names.append(image_id)
        return real(self, image, image_id)

    monkeypatch.setattr(corruption.Corruption, "__call__", counted)
    return names


def test_the_second_run_makes_no_copy_and_has_the_same_predictions(
    tmp_path: Path, train: Callable[..., int], made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["training.epochs=1", "training.batch_size=8", "seed=3"]
    assert train(tmp_path / "without", *words) == 0
    count = len(made)
    assert count == len(set(made)) > 0
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "cache"))
    assert train(tmp_path / "first", *words) == 0 and len(made) == 2 * count
    assert train(tmp_path / "second", *words) == 0 and len(made) == 2 * count
    assert train(tmp_path / "seed", *words[:2], "seed=4") == 0 and len(made) == 2 * count, "another seed shares them"
    arrays = [np.load(tmp_path / name / "val_predictions.npz") for name in ("without", "first", "second")]
    for other in arrays[1:]:
        assert all(np.array_equal(arrays[0][key], other[key]) for key in arrays[0].files)
    kept = [cache for cache in cache_folder.caches(tmp_path / "cache" / "decoded") if "prepared" in cache.folder.name]
    assert [(cache.decoded, cache.decodes, cache.in_use) for cache in kept] == [(count, count, False)]
    assert train(tmp_path / "fast", *words, "data.fast=false") == 0 and len(made) == 3 * count
    assert train(tmp_path / "none", *words, "data.cache_gb=0") == 0 and len(made) == 4 * count


def of(table: Table, config: DataConfig) -> ImageDataset:
    view = ValidationView(
        Augmentation(config.val_transforms, "x", config.img_size), corruption.Corruption(config.split_seed), table.ids
    )
    return dataset.ImageDataset(table, view, copies=copies_on_disk(config, table, range(6)))


def test_whatever_a_copy_depends_on_makes_another_cache(
    tmp_path: Path, documents: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CACHE_DIR", str(tmp_path))
    table = read_training(documents, DataConfig())
    config = DataConfig(img_size=40, val_transforms=STEPS)
    before = [of(table, config)[1, row][0].numpy() for row in range(6)]
    caches = 1
    contrast = [*STEPS, {"CLAHE": {"clip_limit": [4, 4], "p": 1.0}}]
    smaller = [{"Resize": {"height": 32, "width": 32}}]
    for changed in (
        replace(config, split_seed=9),
        replace(config, val_transforms=contrast),
        replace(config, img_size=32, val_transforms=smaller),
    ):
        assert copies_on_disk(changed, table, range(6)) is not None
        caches += 1
        assert len(cache_folder.caches(tmp_path / "decoded")) == caches
    other = [table.paths[1], table.paths[0], *table.paths[2:]]
    assert copies_on_disk(config, replace(table, paths=other), range(6)) is not None, "the same IDs with other contents"
    assert len(cache_folder.caches(tmp_path / "decoded")) == caches + 1
    monkeypatch.setattr(val_batches, "DECODERS", ("another Pillow",))
    assert copies_on_disk(config, table, range(6)) is not None
    assert len(cache_folder.caches(tmp_path / "decoded")) == caches + 2
    monkeypatch.undo()
    assert all(np.array_equal(of(table, config)[1, row][0].numpy(), before[row]) for row in range(6))


@pytest.mark.parametrize("module", ["corruption.py", "warps.py", "light_and_noise.py", "own/__init__.py"])
def test_whatever_changes_in_the_code_of_the_transforms_makes_another_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    before = val_batches._code()
    folder = shutil.copytree(Path(str(augment.__file__)).parent, tmp_path / "augment")
    monkeypatch.setattr(augment, "__file__", str(folder / "__init__.py"))
    assert val_batches._code() == before
    with (folder / module).open("a") as file:
        file.write("# another\n")
    assert val_batches._code() != before


def test_copies_that_random_transforms_prepare_are_not_on_disk(
    tmp_path: Path, documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CACHE_DIR", str(tmp_path))
    table = read_training(documents, DataConfig())
    config = DataConfig(img_size=40, val_transforms=[*STEPS, {"HorizontalFlip": {"p": 0.5}}])
    assert copies_on_disk(config, table, range(6)) is None


@pytest.mark.parametrize("entries", [
    [{"CLAHE": {"clip_limit": [4, 4]}}], [{"CLAHE": {"clip_limit": 4, "p": 1}}], [{"CLAHE": {"p": 1}}],
    [{"CLAHE": {"clip_limit": [2, 4], "p": 1}}], [{"Resize": {"height": 9, "width": 9, "p": 0.5}}], ["HorizontalFlip"],
    [{"LongestMaxSize": {"max_size": [32, 40]}}], [{"PadIfNeeded": {"min_height": 40, "position": "random"}}],
    [{"GaussNoise": {"p": 1}}], [{"CenterCrop": {"height": 9, "width": 9, "pad_if_needed": True}}],
])  # fmt: skip
def test_these_transforms_may_draw_at_random_or_are_unknown(entries: list[object]) -> None:
    assert is_fixed(STEPS) and not is_fixed(entries) and not is_fixed([*STEPS, *entries])


def test_transforms_that_are_called_fixed_draw_nothing() -> None:
    image = np.random.default_rng(0).integers(0, 256, (37, 29, 3), dtype=np.uint8)
    entries = [
        {"SmallestMaxSize": {"max_size": 50, "interpolation": 2}},
        *STEPS,
        {"CenterCrop": {"height": 36, "width": 36}},
        {"Resize": {"height": 40, "width": 40, "interpolation": 3}},
        {"CLAHE": {"clip_limit": [4.0, 4.0], "tile_grid_size": [8, 8], "p": 1.0}},
    ]
    assert is_fixed(entries)
    results = [Augmentation(entries, "x", 40, seed)(image, 0, row) for seed, row in ((0, 0), (1, 5), (2, 9))]
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])
