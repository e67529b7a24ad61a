"""How much the loader of a run holds: batches that image loading processes have prepared ahead."""

from __future__ import annotations

from trainer.base import cores

PREFETCH = 4
"""Batches that each process prefetches: some images take several times as long to augment as others."""
MORE = 2
"""Batches beyond the prefetched ones: the one in use, and the one on its way to the device."""
LOADERS = 2
"""A run has one loader for training and one for validation."""


def batch_bytes(images: int, img_size: int) -> int:
    """Bytes of a batch's images, which are uint8 RGB."""
    return images * img_size**2 * 3


def shared_bytes(
    workers: int | None, images: int, img_size: int, device: str, devices: int = 1, available: int | None = None
) -> int:
    """Bytes of /dev/shm that the loaders of a run fill at most, where the processes leave their batches.

    `workers` is `training.num_workers`, `images` the micro-batch of all `devices` together, `device` cpu, cuda or mps.
    `available` are the run's cores (None: this process's).
    """
    processes = cores.workers(workers, device, devices, available)
    if processes == 0:
        return 0
    return LOADERS * devices * (processes * PREFETCH + MORE) * batch_bytes(max(1, images // devices), img_size)
