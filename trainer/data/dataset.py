"""The images of a table as tensors, for a loader."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, default_collate, get_worker_info

from trainer.data.rows import Table
from trainer.images.decode import Images
from trainer.images.prepared import Prepared
from trainer.images.read_page import Pixels

Preparation = Callable[[NDArray[np.uint8], int, int], NDArray[np.uint8]]
"""(H, W, 3) uint8 RGB, epoch (or copy), row → (img_size, img_size, 3) uint8."""


class ImageDataset(Dataset[tuple[torch.Tensor, int, int]]):
    """Item (epoch, row) is (image, target, row): image uint8 (img_size, img_size, 3), target -1 if unknown.

    A view with a true `sees_all(epoch)` gets all pixels of the file. If `copies` is given, it keeps the results of such
    views. Other views get the smaller image of `images`.
    """

    def __init__(
        self, table: Table, augmentation: Preparation, images: Images | None = None, copies: Prepared | None = None
    ) -> None:
        self.table = table
        self.augmentation = augmentation
        self.images = Images(table.paths, None) if images is None else images
        self.copies = copies

    def __getitem__(self, item: tuple[int, int]) -> tuple[torch.Tensor, int, int]:
        epoch, row = item
        sees_all = getattr(self.augmentation, "sees_all", None)
        whole = sees_all is not None and sees_all(epoch)

        def prepare() -> Pixels:
            return self.augmentation(self.images.whole(row) if whole else self.images(row), epoch, row)

        if whole and self.copies is not None:
            augmented = self.copies.get(row, prepare, lambda: self.images.unchanged(row))
        else:
            augmented = prepare()
        target = self.table.targets[row] if self.table.targets else -1
        return torch.from_numpy(augmented), target, row


def collate(items: list[tuple[torch.Tensor, int, int]]) -> list[torch.Tensor]:
    """Images (N, 3, S, S) uint8 in channels-last memory layout (fast for convolutions), targets (N,) and rows (N,).

    In a loading process all three are in shared memory when it returns. Otherwise a thread of that process would move
    them there, and on a full /dev/shm it would drop the batch, for which the run then waits without end.
    """
    images, targets, rows = default_collate(items)
    if get_worker_info() is not None:
        targets, rows = targets.share_memory_(), rows.share_memory_()
    return [images.permute(0, 3, 1, 2), targets, rows]
