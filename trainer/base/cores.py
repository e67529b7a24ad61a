"""The number of cores for this process, of image loading processes, and how much these hold: batches prepared ahead."""

from __future__ import annotations

import os

from trainer.base import cgroup

MOST_WORKERS = 16
PREFETCH = 4
"""Batches that each process prefetches: some images take several times as long to augment as others."""
MORE = 2
"""Batches beyond the prefetched ones: the one in use, and the one on its way to the device."""
LOADERS = 2
"""A run has one loader for training and one for validation."""


def available() -> int:
    """Whole cores that this process may use, at least one, from its CPU affinity and its control groups."""
    affine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup.cpu_limit()
    return max(1, min(affine, int(quota) if quota else affine))


def workers(asked: int | None, device: str, devices: int = 1, own: int | None = None) -> int:
    """Image loading processes for each of `devices`: `asked`, or a number from the cores (`own`; None: those of this
    process).

    With a GPU the training process needs one core, and loading gets the others, up to `MOST_WORKERS`. On a CPU training
    is the bottleneck, not loading. So there is one process per eight cores, at least one: images are ready in time.
    """
    if asked is not None:
        return asked
    share = (available() if own is None else own) // devices
    if device == "cpu":
        return max(1, share // 8)
    return max(1, min(MOST_WORKERS, share - 1))


def batch_bytes(images: int, img_size: int) -> int:
    """Bytes of a batch's images, which are uint8 RGB."""
    return images * img_size**2 * 3


def shared_bytes(
    asked: int | None, images: int, img_size: int, device: str, devices: int = 1, available: int | None = None
) -> int:
    """Bytes of /dev/shm that the loaders of a run fill at most, where the processes leave their batches.

    `asked` is `training.num_workers`, `images` the micro-batch of all `devices` together, `device` cpu, cuda or mps.
    `available` are the run's cores (None: this process's).
    """
    processes = workers(asked, device, devices, available)
    if processes == 0:
        return 0
    return LOADERS * devices * (processes * PREFETCH + MORE) * batch_bytes(max(1, images // devices), img_size)
