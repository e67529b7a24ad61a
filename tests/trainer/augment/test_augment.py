"""Augmentation: white where a page ends, noise as strong as meant, randomness that belongs to the sample."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from trainer.augment.pipeline import Augmentation
from trainer.base.errors import ConfigError
from trainer.config.compose import compose
from trainer.data import sampling
from trainer.data.dataset import ImageDataset
from trainer.data.table import read_training
from trainer.training.stop import ignore_in_worker


def only(*entries: object, size: int = 96) -> Augmentation:
    return Augmentation(list(entries), "data.train_transforms", size)


def entry(name: str, **changes: object) -> dict[str, object]:
    """The manual's own entry, from the configuration, always applied."""
    found = next(e[name] for e in compose(["data.img_size=96"]).data.train_transforms if name in e)
    return {name: {**found, "p": 1.0, **changes}}


def test_padding_is_white() -> None:
    composed = compose(["data.img_size=96"])
    grey = np.full((48, 96, 3), 100, np.uint8)
    for entries in (composed.data.train_transforms[:2], composed.data.val_transforms[:2]):
        out = Augmentation(entries, "x", 96)(grey, 0, 0)
        assert (out[:20] == 255).all() and (out[-20:] == 255).all()
        assert (out[30:60] == 100).all()


@pytest.mark.parametrize(
    ("name", "changes"), [("Rotate", {}), ("Perspective", {}), ("Perspective", {"fit_output": True})]
)
def test_turning_leaves_only_paper_and_white(name: str, changes: dict[str, object]) -> None:
    grey = np.full((96, 96, 3), 100, np.uint8)
    filled = 0
    for index in range(20):
        out = only(entry(name, **changes))(grey, 0, index)
        assert out.min() >= 100, "a darker pixel than the page is black fill"
        filled += int((out == 255).any())
        np.testing.assert_array_equal(out[..., 0], out[..., 1])  # the fill is white and not one channel of it
    assert filled > 5 or (name == "Perspective" and not changes)  # the manual's perspective cuts and leaves no corner


def test_noise_has_the_manuals_variance() -> None:
    """10 to 30 on the scale 0 to 255, so a standard deviation of 3.2 to 5.5; albumentations' default is 51 to 112."""
    grey = np.full((96, 96, 3), 128, np.uint8)
    deviations = [only(entry("GaussNoise"))(grey, 0, index).astype(float).std() for index in range(30)]
    assert min(deviations) > 3.1 and max(deviations) < 5.55


def test_no_warning_is_printed_when_the_manuals_lists_are_built() -> None:
    code = (
        "import warnings; warnings.simplefilter('error', UserWarning)\n"
        "from trainer.config import keys; from trainer.config.compose import compose\n"
        "from trainer.augment.pipeline import Augmentation\n"
        "for name in keys.option_names('data'):\n"
        "    d = compose([f'data={name}']).data\n"
        "    Augmentation(d.train_transforms, 'x', d.img_size); Augmentation(d.val_transforms, 'x', d.img_size)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "wrong",
    [
        {"PadIfNeeded": {"min_height": 96, "min_width": 96, "border_mode": "white"}},
        {"GaussNoise": {"std_range": [3, 5]}},
        {"Rotate": {"limit": "far"}},
    ],
)
def test_a_value_that_albumentations_refuses_is_an_error_that_names_the_entry(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"data\.train_transforms\.0: \w+: "):
        only(wrong)


def test_an_argument_that_albumentations_would_drop_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"GaussNoise.*var_limit"):
        only({"GaussNoise": {"var_limit": [10, 30]}})


def test_a_list_that_leaves_another_size_is_an_error() -> None:
    with pytest.raises(ConfigError, match="returns 48×96×3"):
        only()(np.zeros((48, 96, 3), np.uint8), 0, 0)


def test_a_sample_depends_on_seed_epoch_and_index_alone() -> None:
    page = np.random.default_rng(0).integers(0, 255, (80, 96, 3), dtype=np.uint8)
    entries = compose(["data.img_size=96"]).data.train_transforms
    view, again = Augmentation(entries, "x", 96, seed=1), Augmentation(entries, "x", 96, seed=1)
    first = [view(page, 0, index) for index in range(8)]
    backwards = [again(page, 0, index) for index in reversed(range(8))][::-1]
    for a, b in zip(first, backwards, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len({a.tobytes() for a in first}) > 4
    assert any((view(page, 1, i) != first[i]).any() for i in range(8))
    other = Augmentation(entries, "x", 96, seed=2)
    assert any((other(page, 0, i) != first[i]).any() for i in range(8))


def test_the_number_of_workers_changes_no_batch(documents: Path) -> None:
    composed = compose(["data.img_size=64"])
    table = read_training(documents, composed.data)
    view = Augmentation(composed.data.train_transforms, "x", 64, seed=3)
    seen = []
    for workers in (0, 1, 2):
        sampler = sampling.EpochSampler(range(len(table)), 3, len(table))
        loader = DataLoader(
            ImageDataset(table, view),
            batch_size=5,
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=ignore_in_worker if workers else None,
        )
        batches = []
        for epoch in range(2):
            sampler.set_position(epoch)
            batches += [(images.clone(), rows.clone()) for images, _, rows in loader]
        seen.append(batches)
    for other in seen[1:]:
        for (images, rows), (images_0, rows_0) in zip(other, seen[0], strict=True):
            assert torch.equal(rows, rows_0) and torch.equal(images, images_0)
    half = len(seen[0]) // 2
    assert not torch.equal(seen[0][0][1], seen[0][half][1]), "each epoch has its own order"
