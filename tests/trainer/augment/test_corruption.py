"""The corrupted copy of the validation images: fixed, different from the clean one, and not practised in training."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from tests.trainer.conftest import draw
from trainer.augment import corruption
from trainer.augment.corruption import KINDS, Corruption
from trainer.augment.pipeline import Augmentation
from trainer.config.compose import compose
from trainer.config.keys import option_names
from trainer.config.schema import DataConfig
from trainer.data.dataset import ImageDataset
from trainer.data.table import read_training
from trainer.training import val_batches


def page(size: tuple[int, int] = (120, 90)) -> np.ndarray:
    return np.asarray(draw(1, 3).resize(size))


def test_a_copy_is_fixed_by_seed_and_id() -> None:
    one, again, other = (Corruption(seed)(page(), "5.jpg") for seed in (42, 42, 43))
    assert np.array_equal(one, again) and one.dtype == np.uint8
    assert one.shape != other.shape or not np.array_equal(one, other)


def test_every_kind_occurs_and_no_image_takes_more_than_three() -> None:
    plans = [Corruption(42).kinds(f"{row}.jpg") for row in range(500)]
    counts = Counter(kind for plan in plans for kind in plan)
    assert set(counts) == set(KINDS) and min(counts.values()) > 60
    assert {len(plan) for plan in plans} == {1, 2, 3}


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("size", [(120, 90), (40, 700)])
def test_every_kind_changes_a_page_and_leaves_an_image(kind: str, size: tuple[int, int]) -> None:
    before = page(size)
    kept = before.copy()
    after = KINDS[kind](before, np.random.default_rng(3))
    assert after.dtype == np.uint8 and after.ndim == 3 and after.shape[2] == 3
    assert after.shape != before.shape or np.abs(after.astype(int) - before).mean() > 0.5
    assert np.array_equal(before, kept), "the original was written to"


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (1, 3), (2, 1), (8, 1), (2, 2), (1, 300)])
def test_every_kind_takes_a_page_of_some_pixels(size: tuple[int, int]) -> None:
    tiny = np.full((*size, 3), 90, dtype=np.uint8)
    for kind in KINDS.values():
        assert all(min(kind(tiny, np.random.default_rng(seed)).shape) > 0 for seed in range(40))


@pytest.mark.parametrize("name", option_names("data"))
def test_what_is_held_out_is_in_no_augmentation_that_comes_with_the_trainer(name: str) -> None:
    practised = {next(iter(entry)) for entry in compose([f"data={name}"]).data.train_transforms}
    assert not practised & set(corruption.HELD_OUT_TRANSFORMS)
    assert len(corruption.HELD_OUT) >= 2 and set(corruption.HELD_OUT) <= set(KINDS)


def loaded(documents: Path, limit: int) -> tuple[val_batches.Remembered, list[int]]:
    """The validation batches of six images, and how many items each DataLoader that was made is of."""
    table = read_training(documents, DataConfig())
    entries = ["LongestMaxSize: {max_size: 32}", "PadIfNeeded"]
    entries = [{"LongestMaxSize": {"max_size": 32}}, {"PadIfNeeded": {"min_height": 32, "min_width": 32}}]
    view = val_batches.ValidationView(Augmentation(entries, "x", 32), Corruption(1), table.ids)
    made: list[int] = []

    def load(wanted: object) -> DataLoader[object]:
        items = list(wanted)  # type: ignore[call-overload]
        made.append(len(items))
        return DataLoader(ImageDataset(table, view), batch_size=4, sampler=items)  # type: ignore[arg-type]

    return val_batches.Remembered(load, val_batches.items(range(6), 2), limit), made


def test_prepared_images_are_kept_up_to_the_limit_and_the_rest_is_loaded_again(documents: Path) -> None:
    batch = 4 * 3 * 32 * 32
    for limit, loaders in ((100 * batch, [12]), (batch, [12, 8]), (0, [12, 12])):
        batches, made = loaded(documents, limit)
        passes = [[(b[0].numpy().tobytes(), b[2].tolist()) for b in batches] for _ in range(3)]
        assert passes[0] == passes[1] == passes[2] and made == loaders
        assert [row for _, rows in passes[0] for row in rows] == [*range(6), *range(6)]
        assert all(copy == 1 for copy, _ in batches.items[:6]), (
            "memory keeps first what takes longest: corrupted copies"
        )
        images = b"".join(image for image, _ in passes[0])
        assert images[: len(images) // 2] != images[len(images) // 2 :], "the second copy is not corrupted"


def test_processes_share_the_items() -> None:
    parts = [val_batches.items(range(5), 2, rank, 3) for rank in range(3)]
    assert sorted(item for part in parts for item in part) == sorted(val_batches.items(range(5), 2))
