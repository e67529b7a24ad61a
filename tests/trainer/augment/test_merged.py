"""Augmentations merged: the same draws as the list as written, and the same picture up to interpolation."""

from __future__ import annotations

import random
from typing import Any

import albumentations as A
import numpy as np
import pytest

from tests.trainer.conftest import draw
from trainer.augment import merged
from trainer.augment.corruption import Corruption
from trainer.augment.pipeline import Augmentation, build
from trainer.config.compose import compose

WHITE = [255, 255, 255]
PAGE: list[Any] = [
    {"LongestMaxSize": {"max_size": 96, "interpolation": 1}},
    {"PadIfNeeded": {"min_height": 96, "min_width": 96, "border_mode": 0, "fill": WHITE}},
]
ROTATE = {"Rotate": {"limit": [30, 30], "border_mode": 0, "fill": WHITE, "p": 1}}
PERSPECTIVE = {"Perspective": {"scale": [0.1, 0.1], "border_mode": 0, "fill": WHITE, "p": 1}}
AFFINE = {"Affine": {"rotate": [-20, 20], "scale": [0.8, 1.2], "shear": [-6, 6], "fill": WHITE, "p": 1}}
BRIGHT = {"RandomBrightnessContrast": {"p": 1}}


def both(entries: list[Any], seed: int, image: Any = None) -> tuple[Any, Any]:
    """The picture that the list makes, and that of the merged one, as floats."""
    page = np.asarray(draw(seed % 3, seed)) if image is None else image
    made = []
    for way in (lambda p: p(image=page)["image"], lambda p: merged.merge(p, page)):
        pipeline = build(entries, "x")
        generator = np.random.default_rng(seed)
        pipeline.set_random_state(generator, random.Random(seed))
        made.append(np.asarray(way(pipeline), dtype=float))
    return made[0], made[1]


def blurred(image: Any) -> Any:
    """Means of 8 × 8 pixels."""
    return image.reshape(12, 8, 12, 8, 3).mean((1, 3))


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [{"RandomRotate90": {"p": 1}}],
        [{"D4": {"p": 1}}, {"HorizontalFlip": {"p": 0.5}}, {"VerticalFlip": {"p": 0.5}}, {"Transpose": {"p": 0.5}}],
        [{"CoarseDropout": {"p": 1}}, {"D4": {"p": 1}}],
        [
            {"D4": {"p": 1}},
            {"D4": {"p": 1}},
            {"RandomRotate90": {"p": 1}},
            {"HorizontalFlip": {"p": 1}},
            {"VerticalFlip": {"p": 0.5}},
        ],
    ],
)
def test_what_moves_whole_pixels_is_the_same(entries: list[Any]) -> None:
    """To the rounding of a resize, which is not the same from both sides."""
    for seed in range(12):
        listed, made = both(PAGE + entries, seed)
        assert np.abs(listed - made).max() <= 2


LARGER: list[Any] = [
    {"LongestMaxSize": {"max_size": 384, "interpolation": 1}},
    {"PadIfNeeded": {"min_height": 384, "min_width": 384, "border_mode": 0, "fill": WHITE}},
]
"""A page whose tiles have more pixels than there are greys, as those of real ones."""


def test_clahe_leaves_the_paper_around_a_page_out_of_the_work_and_not_out_of_the_picture() -> None:
    entries = [*LARGER, {"D4": {"p": 1}}, {"CLAHE": {"clip_limit": [2, 4], "p": 1}}]
    for seed in range(6):
        listed, made = both(entries, seed, np.asarray(draw(seed % 3, seed).resize((260, 384))))
        far = np.abs(listed - made).max(2)
        assert far.mean() < 1.5 and np.percentile(far, 99.5) <= 8
        before = both(entries[:3], seed, np.asarray(draw(seed % 3, seed).resize((260, 384))))[0]
        assert np.abs(listed - before).max() > 10  # it did something
        around = (before == 255).all(2)
        around[:, 70:-70] &= around[70:-70].all()
        assert (made[around & (listed == 255).all(2)] == 255).all()


def test_clahe_of_what_is_nearly_grey_is_near_the_way_through_lab_and_of_colour_is_that_way() -> None:
    entries = [*LARGER, {"CLAHE": {"clip_limit": [4, 4], "p": 1}}]
    grain = np.random.default_rng(0).normal(0, 6, (384, 260, 1))
    page = np.clip(np.array([228, 222, 210]) + grain, 0, 255)
    page[100:120, 20:240] -= 150  # a line of ink
    page[:64, :64] = np.clip(np.array([190, 40, 50]) + grain[:64, :64], 0, 255)  # a red seal
    for image in (page, page[..., :1].repeat(3, 2)):
        listed, made = both(entries, 0, image.astype(np.uint8))
        far = np.abs(listed - made).max(2)
        assert far.mean() < 2 and np.percentile(far, 99.5) <= 8  # one grey more or less, times four
    listed, made = both(entries, 0, page.astype(np.uint8))
    seal = (slice(0, 64), slice(62, 126))  # 62 columns of paper are left of the page
    assert np.abs(listed - made)[seal].max() <= 4 and np.ptp(made[seal], axis=2).min() > 100
    loud = (page + np.array([0, 0, -60])).clip(0, 255).astype(np.uint8)  # colour everywhere: Lab everywhere
    listed, made = both(entries, 0, loud)
    assert (listed == made).all()


@pytest.mark.parametrize(
    "entries",
    [
        [ROTATE],
        [{"D4": {"p": 1}}, ROTATE, PERSPECTIVE],
        [AFFINE, {"D4": {"p": 1}}, PERSPECTIVE],
        [PERSPECTIVE, AFFINE],
        [BRIGHT, ROTATE],
        [ROTATE, BRIGHT, PERSPECTIVE],
        [ROTATE, {"Affine": {"scale": [0.6, 0.6], "fill": [200, 0, 0], "p": 1}}],
        [AFFINE, {"Sharpen": {"p": 1}}, {"RGBShift": {"p": 1}}],
        [
            {"Affine": {"rotate": [20, 20], "fit_output": True, "fill": WHITE, "p": 1}},
            {"Resize": {"height": 96, "width": 96}},
        ],
        [
            {"Perspective": {"scale": [0.1, 0.1], "keep_size": False, "fill": WHITE, "p": 1}},
            {"Resize": {"height": 96, "width": 96}},
        ],
        [{"Rotate": {"limit": [10, 20], "crop_border": True, "p": 1}}, {"Resize": {"height": 96, "width": 96}}],
        [{"Illumination": {"p": 1}}],
        [ROTATE, {"CLAHE": {"p": 1}}],
    ],
)
def test_what_is_interpolated_once_is_where_the_list_puts_it(entries: list[Any]) -> None:
    """Means of 8 × 8 pixels differ by less than 3 grey values on average: lines are sharper, and in the same place."""
    differences = []
    for seed in range(8):
        listed, made = both(PAGE + entries, seed)
        assert made.shape == listed.shape == (96, 96, 3)
        differences.append(np.abs(blurred(listed) - blurred(made)).mean())
    assert np.mean(differences) < 3


@pytest.mark.parametrize("size", [16, 32, 40])
def test_light_falls_on_small_pages(size: int) -> None:
    """At an eighth of 32 pixels OpenCV took a column of 4 numbers for a scalar."""
    page = np.asarray(draw(0, 1).resize((size, size)))
    for seed in range(8):
        listed, made = both([{"Illumination": {"mode": "linear", "p": 1}}], seed, page)
        assert np.abs(listed - made).mean() < 4


def test_what_a_step_cut_off_does_not_come_back() -> None:
    """Moved half out of sight, then back: the list leaves white there."""
    page = np.zeros((96, 96, 3), dtype=np.uint8)
    away = {"Affine": {"translate_px": {"x": 48, "y": 0}, "fill": WHITE, "p": 1}}
    back = {"Affine": {"translate_px": {"x": -48, "y": 0}, "fill": WHITE, "p": 1}}
    listed, made = both([*PAGE, away, back], 0, page)
    assert (made[:, :46] == 0).all() and (made[:, 50:] == 255).all()
    assert np.abs(listed - made).mean() < 3


def test_the_three_steps_with_streams_of_their_own_keep_their_distribution() -> None:
    """Noise: mean, σ and neighbours; a shadow: how dark, and how different from place to place."""
    grey = np.full((96, 96, 3), 128, dtype=np.uint8)
    noise = {"GaussNoise": {"std_range": [0.05, 0.05], "p": 1}}
    listed, made = (np.stack(x) - 128 for x in zip(*(both([*PAGE, noise], s, grey) for s in range(20)), strict=True))
    for field in (listed, made):
        assert abs(field.mean()) < 0.1
        assert field.std() == pytest.approx(12.35, abs=0.25)
        near = np.corrcoef(field[:, :, 1:].ravel(), field[:, :, :-1].ravel())[0, 1]
        assert abs(near) < 0.01
    assert not np.array_equal(made[0], made[1])
    shadow = {"PlasmaShadow": {"shadow_intensity_range": [0.4, 0.4], "p": 1}}
    listed, made = (np.stack(x) for x in zip(*(both([*PAGE, shadow], s, grey) for s in range(60)), strict=True))
    assert made.mean() == pytest.approx(listed.mean(), abs=4)
    assert made.std() == pytest.approx(listed.std(), rel=0.15)


@pytest.mark.parametrize("name", ["baseline_aug", "document_aug"])
def test_the_lists_that_come_with_the_trainer_stay_recognisable(name: str) -> None:
    """Without what has a stream of its own: most pictures are the same to a grey value in each 8 × 8 pixels."""
    config = compose([f"data={name}", "data.img_size=96"]).data
    own = ("GaussNoise", "PlasmaShadow")
    entries = [entry for entry in config.train_transforms if next(iter(entry)) not in own]
    differences = [np.abs(blurred(a) - blurred(b)).mean() for a, b in (both(entries, seed) for seed in range(40))]
    assert np.median(differences) < 1.5 and np.mean(differences) < 4


def test_any_list_comes_out_at_its_size() -> None:
    """Every augmentation of the lists, and some that are done by albumentations alone, in random order."""
    chance = random.Random(0)
    entries = compose(["data=baseline_aug", "data.img_size=96"]).data.train_transforms[2:]
    entries += compose(["data=document_aug", "data.img_size=96"]).data.train_transforms[2:]
    entries += [{"GridDistortion": {"p": 0.3}}, {"SafeRotate": {"p": 0.3}}, {"ImageCompression": {"p": 0.3}}]
    for seed in range(60):
        chosen = chance.sample(entries, 8)
        view = Augmentation(PAGE + chosen, "x", 96, seed, merge=True)
        page = np.asarray(draw(seed % 3, seed))
        page.flags.writeable = False
        assert np.array_equal(view(page, 0, 1), view(page, 0, 1)), chosen


def test_the_order_of_the_streams_is_albumentations() -> None:
    """What comes after a probability that was not met draws the same as in the list."""
    entries = [*PAGE, {"Rotate": {"p": 0.5, "fill": WHITE}}, {"ToGray": {"p": 0.5}}, {"InvertImg": {"p": 0.5}}]
    for seed in range(12):
        listed, made = both(entries, seed)
        assert abs(listed.mean() - made.mean()) < 4


def test_the_pipeline_s_own_probability_counts() -> None:
    pipeline = A.Compose([A.InvertImg(p=1)], p=0.0)
    page = np.asarray(draw(0, 0))
    assert merged.merge(pipeline, page) is page


@pytest.mark.parametrize("name", ["baseline_aug", "document_aug"])
@pytest.mark.parametrize("fast", [True, False])
def test_pages_of_a_pixel_or_a_line_come_out_at_the_size_of_the_model(name: str, fast: bool) -> None:
    """Also of one pixel, of which A.ToGray would leave a number."""
    config = compose([f"data={name}", "data.img_size=64"])
    train = Augmentation(config.data.train_transforms, "t", 64, 0, fast)
    corruption = Corruption(0)
    for height, width in ((1, 1), (1, 2), (3, 2), (1, 64), (64, 1)):
        page = np.full((height, width, 3), 90, dtype=np.uint8)
        for epoch in range(12):
            assert train(page, epoch, 0).shape == (64, 64, 3)
        assert min(corruption(page, f"{width} {height}").shape) > 0
