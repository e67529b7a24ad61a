"""The images of a table as tensors, for a loader."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, default_collate, get_worker_info

from trainer.data.rows import Table
from trainer.images.decode import Images

Preparation = Callable[[NDArray[np.uint8], int, int], NDArray[np.uint8]]
"""(H, W, 3) uint8 RGB, epoch (or copy), row → (img_size, img_size, 3) uint8."""


class ImageDataset(Dataset[tuple[torch.Tensor, int, int]]):
    """Item (epoch, row) is (image, target, row): image uint8 (img_size, img_size, 3), target -1 if unknown.

    A view with a true `sees_all(epoch)` gets all pixels of the file. Other views get the smaller image of `images`.
    """

    def __init__(self, table: Table, augmentation: Preparation, images: Images | None = None) -> None:
        self.table = table
        self.augmentation = augmentation
        self.images = Images(table.paths, None) if images is None else images

    def __getitem__(self, item: tuple[int, int]) -> tuple[torch.Tensor, int, int]:
        epoch, row = item
        sees_all = getattr(self.augmentation, "sees_all", None)
        image = self.images.whole(row) if sees_all is not None and sees_all(epoch) else self.images(row)
        augmented = self.augmentation(image, epoch, row)
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
