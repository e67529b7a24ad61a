"""The number of cores for this process, and of image loading processes."""

from __future__ import annotations

import os

from trainer.base import cgroup

MOST_WORKERS = 16


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
