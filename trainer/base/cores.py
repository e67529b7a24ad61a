"""How many cores this process may use, and how many processes load images for it."""

from __future__ import annotations

import os

from trainer.base import cgroup

MOST_WORKERS = 16


def available() -> int:
    """Whole cores, at least one: those that the process may run on, within the time that its control groups give."""
    affine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup.cpu_limit()
    return max(1, min(affine, int(quota) if quota else affine))


def workers(asked: int | None, device: str, devices: int = 1) -> int:
    """Processes that load images, for each of `devices`: `asked`, else what the cores repay.

    Where a GPU trains, its process needs one core and loading gets the others, up to `MOST_WORKERS`. Where the CPU
    trains, it is the bound and not the loading: one process in eight cores, and at least one, so that images are ready
    when a step ends.
    """
    if asked is not None:
        return asked
    share = available() // devices
    if device == "cpu":
        return max(1, share // 8)
    return max(1, min(MOST_WORKERS, share - 1))


def limit_threads() -> None:
    """Keep this process's threads to `available` cores, where nobody has said how many: libraries count the machine's
    cores, and a container with two of 64 would run 64 threads on them."""
    import cv2
    import torch

    cv2.setNumThreads(0)  # images are loaded by processes
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > available():
        torch.set_num_threads(available())
