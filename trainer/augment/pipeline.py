"""Augmentation: albumentations pipelines from the configuration's lists, with one random state per sample.

The draws of a sample depend only on (seed, epoch, index). So neither the number of workers nor an interruption changes
a batch. Albumentations seeds by worker process, so `Augmentation` gives it generators.
"""

from __future__ import annotations

import inspect
import os
import random
import warnings
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # otherwise the import looks for a newer version in the network

import albumentations as A
import numpy as np
from numpy.typing import NDArray

from trainer.augment import merged
from trainer.augment import own as own_augmentations
from trainer.augment.warps import writable
from trainer.base.errors import ConfigError

TRIED = (1754, 1240, 3)
"""Shape of the page of `try_out`: A4 at 150 dpi."""
DRAWS = 8
"""Random draws of each step in `try_out`."""


def table() -> dict[str, list[str]]:
    """Every albumentations transform for configurations (with plain values) and its arguments, sorted: the content of
    transforms.json."""
    arguments: dict[str, list[str]] = {}
    for name, transform in vars(A).items():
        if inspect.isclass(transform) and issubclass(transform, A.ImageOnlyTransform | A.DualTransform):
            names = set(inspect.signature(transform.__init__).parameters) - {"self", "args", "kwargs"}
            if not inspect.isabstract(transform) and name not in ("Lambda", "ImageOnlyTransform", "DualTransform"):
                arguments[name] = sorted(names | {"p"})
    return dict(sorted(arguments.items()))


def build(entries: Sequence[Any], where: str) -> A.Compose:
    """The pipeline of the list `entries`. `where` is its key in the configuration.

    Raises ConfigError for a value that albumentations refuses or silently ignores.
    """
    steps, known = [], {**vars(A), **own_augmentations.classes()}
    for position, entry in enumerate(entries):
        name, arguments = _named(entry)
        with warnings.catch_warnings():
            # Albumentations only warns about an unknown argument. For us it is an error.
            warnings.simplefilter("error", UserWarning)
            try:
                steps.append(known[name](**_values(arguments)))
            except (UserWarning, ValueError, TypeError) as error:
                raise _fault(where, position, name, error) from None
    return A.Compose(steps)


def try_out(entries: Sequence[Any], where: str, img_size: int) -> None:
    """Run each step of the list `entries` with several random draws on a page, after the steps before it. `where` is
    the list's key in the configuration.

    Raises ConfigError for a step that cannot be built, that fails, or if the result does not fit the model: wrong
    values that albumentations itself does not refuse fail only with an image.
    """
    pipeline = build(entries, where)
    pipeline.set_random_state(np.random.default_rng(0), random.Random(0))
    page = np.full(TRIED, 255, dtype=np.uint8)
    page[100:-100:40, 100:-100] = 0
    for position, step in enumerate(pipeline.transforms):
        name, arguments = _named(entries[position])
        if arguments.get("p") == 0:
            continue
        step.p = 1
        try:
            results = [step(image=writable(page))["image"] for _ in range(DRAWS)]
        except Exception as error:  # of OpenCV, NumPy or a user's own code
            raise _fault(where, position, name, error) from None
        page = results[0]
    check_result(page, where, img_size)


def _named(entry: Any) -> tuple[str, dict[str, Any]]:
    """The name and the arguments of an entry."""
    name, arguments = (entry, {}) if isinstance(entry, str) else next(iter(entry.items()))
    return name, arguments or {}


def _fault(where: str, position: int, name: str, error: Exception) -> ConfigError:
    reason = " ".join(str(error).split("For further information")[0].split()) or type(error).__name__
    return ConfigError(f"{where}.{position}: {name}: {reason}")


def check_result(page: NDArray[Any], where: str, img_size: int) -> None:
    """Raises ConfigError if the result of a pipeline has another size or type than the model needs."""
    if page.shape != (img_size, img_size, 3) or page.dtype != np.uint8:
        raise ConfigError(
            f"{where}: returns {'×'.join(map(str, page.shape))} {page.dtype}, but the model needs "
            f"{img_size}×{img_size}×3 uint8; resize to data.img_size and remove normalisation (the trainer normalises)"
        )


def _values(arguments: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}


_WITHOUT_DRAWS = {
    "LongestMaxSize": ("max_size", "interpolation"),
    "SmallestMaxSize": ("max_size", "interpolation"),
    "Resize": ("height", "width", "interpolation"),
    "PadIfNeeded": ("min_height", "min_width", "border_mode", "fill"),
    "CenterCrop": ("height", "width"),
    "CLAHE": ("clip_limit", "tile_grid_size"),
}
"""Transforms, and their arguments, with which every image of the same pixels gives the same result."""


def is_fixed(entries: Sequence[Any]) -> bool:
    """Whether the pipeline of the list certainly draws nothing at random."""
    for entry in entries:
        name, arguments = next(iter(entry.items())) if isinstance(entry, dict) else (entry, {})
        given = dict(arguments or {})
        always = given.pop("p", 0.5 if name == "CLAHE" else 1) == 1
        if not always or name not in _WITHOUT_DRAWS or set(given) - set(_WITHOUT_DRAWS[name]):
            return False
        limits = given.get("clip_limit")
        if name == "CLAHE" and not (isinstance(limits, list | tuple) and len(limits) == 2 and limits[0] == limits[1]):
            return False  # one number is the upper end of a range
        if isinstance(given.get("max_size"), list | tuple):
            return False  # one of them is drawn
    return True


class Augmentation:
    """A pipeline with random state from (seed, epoch, index). `merge`: run faster with `trainer.augment.merged`."""

    def __init__(self, entries: Sequence[Any], where: str, img_size: int, seed: int = 0, merge: bool = False) -> None:
        self.pipeline = build(entries, where)
        self.merge = merge
        self.where = where
        self.img_size = img_size
        self.seed = seed

    def __call__(self, image: NDArray[np.uint8], epoch: int, index: int) -> NDArray[np.uint8]:
        """`image`: (H, W, 3) uint8 RGB. Returns (img_size, img_size, 3) uint8.

        Raises ConfigError if the pipeline returns another size or type.
        """
        generator = np.random.default_rng((self.seed, epoch, index))
        self.pipeline.set_random_state(generator, random.Random(int(generator.integers(2**63))))
        pipeline = self.pipeline
        out: NDArray[np.uint8] = (
            merged.merge(pipeline, image) if self.merge else pipeline(image=writable(image))["image"]
        )
        check_result(out, self.where, self.img_size)
        return writable(np.ascontiguousarray(out))  # torch warns about a read-only image from the cache
