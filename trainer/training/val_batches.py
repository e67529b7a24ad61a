"""Validation images: a clean and a corrupted copy of each. They are prepared once and kept in memory up to a limit.

The corrupted copies take most time. So memory keeps them first, and a cache on disk has them for all runs.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from trainer import augment
from trainer.augment import pipeline
from trainer.augment.corruption import Corruption
from trainer.augment.pipeline import Augmentation
from trainer.config.schema import DataConfig
from trainer.data.rows import Table
from trainer.images import cache_folder, decode, read_page
from trainer.images.examined import digests
from trainer.images.prepared import Prepared, open_prepared
from trainer.images.reading import DECODERS

KEPT_BYTES = 2**30
"""Largest host memory for prepared validation images, per device of the run."""

Item = tuple[int, int]
"""(copy, row): copy 0 is clean, copy 1 corrupted."""


class ValidationView:
    """The steps for a validation image. Copy 1 is corrupted before the validation transforms."""

    def __init__(self, plain: Augmentation, corruption: Corruption | None, ids: Sequence[str]) -> None:
        self.plain = plain
        self.corruption = corruption
        self.ids = ids

    @property
    def copies(self) -> int:
        return 1 if self.corruption is None else 2

    @staticmethod
    def sees_all(copy: int) -> bool:
        """Whether a copy needs all pixels: corruption changes the full page, not the small input image."""
        return copy > 0

    def __call__(self, image: NDArray[np.uint8], copy: int, row: int) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB → (img_size, img_size, 3) uint8."""
        if copy:
            assert self.corruption is not None
            image = self.corruption(image, self.ids[row])
        return self.plain(image, 0, row)


def copies_on_disk(config: DataConfig, table: Table, rows: Sequence[int]) -> Prepared | None:
    """The cache of the corrupted copies of the images in `rows` after the validation transforms.

    None without $CACHE_DIR, with `data.fast=false`, and if the transforms may draw at random: then a copy depends on
    more than its page."""
    root = cache_folder.root()
    if root is None or config.cache_gb == 0 or not config.fast or not pipeline.is_fixed(config.val_transforms):
        return None
    order = sorted(rows, key=table.ids.__getitem__)
    pages = list(zip((table.ids[row] for row in order), digests([table.paths[row] for row in order]), strict=True))
    versions = [metadata.version(name) for name in ("albumentations", "albucore", "numpy")]
    steps = (config.split_seed, config.val_transforms, config.img_size)
    key = hashlib.sha256(repr((DECODERS, versions, platform.machine(), _code(), steps, pages)).encode()).hexdigest()
    limit = cache_folder.default_limit(root) if config.cache_gb is None else int(config.cache_gb * 10**9)
    about = {"folder": str(table.paths[0].parent), "content": "corrupted validation images"}
    return open_prepared(key, config.img_size, order, about, limit)


def _code() -> str:
    """A digest of the code that makes the pixels."""
    files = [*sorted(Path(str(augment.__file__)).parent.rglob("*.py")), Path(__file__)]
    files += [Path(str(module.__file__)) for module in (decode, read_page)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def items(rows: Sequence[int], copies: int, rank: int = 0, world: int = 1) -> list[Item]:
    """All copies of all rows, corrupted copies first. Each of `world` processes takes every world-th."""
    return [(copy, row) for copy in reversed(range(copies)) for row in rows][rank::world]


class Remembered:
    """Batches that are the same in each pass. The first pass keeps the first ones, as many as fit into `limit` bytes of
    host memory. Later passes load only the rest."""

    def __init__(
        self, load: Callable[[Sequence[Item]], DataLoader[Any]], wanted: Sequence[Item], limit: int = KEPT_BYTES
    ) -> None:
        self.load = load
        self.items = list(wanted)
        self.limit = limit
        self.loader: DataLoader[Any] | None = load(self.items)
        self.in_memory: list[Any] = []
        self.whole = False
        """Whether the first pass is complete, so that `in_memory` and `loader` together have all items."""

    def __iter__(self) -> Iterator[Any]:
        if self.whole:
            yield from self.in_memory
            if self.loader is not None:
                yield from self.loader
            return
        in_memory, size = [], 0
        assert self.loader is not None
        for batch in self.loader:
            size += batch[0].nbytes
            if size <= self.limit:
                # A copy: a worker's batch is in shared memory, which is small in a container, and uses a file
                # descriptor.
                in_memory.append([part.clone() for part in batch])
            yield batch
        self.close()
        rest = self.items[sum(len(batch[0]) for batch in in_memory) :]
        self.in_memory, self.loader, self.whole = in_memory, self.load(rest) if rest else None, True

    def close(self) -> None:
        """End the image loading processes."""
        if self.loader is not None:
            end_workers(self.loader)


def end_workers(loader: DataLoader[Any]) -> None:
    """End the image loading processes. With garbage collection alone they may stay, and Python would wait for them at
    its end without limit, because they ignore signals."""
    iterator = loader._iterator
    if iterator is not None and hasattr(iterator, "_shutdown_workers"):
        iterator._shutdown_workers()
