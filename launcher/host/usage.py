"""Current use of memory and GPUs on this machine. Read-only; an unknown figure is None."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from typing import TYPE_CHECKING

from launcher.host import gpu_locks, nvml
from launcher.host.nvml import GpuUse

if TYPE_CHECKING:
    import psutil


def gpu_uses() -> list[GpuUse]:
    """Use of every GPU or MIG instance of this host, with the run that holds it; empty if no driver answers."""
    return [dataclasses.replace(use, run=lock_holder(use.uuid or f"gpu{use.index}")) for use in nvml.gpu_uses()]


def lock_holder(lock_name: str) -> str | None:
    """The run that holds a GPU's lock, or None."""
    with suppress(OSError):
        return gpu_locks.holder(lock_name)
    return None


def resident_with_descendants(pid: int) -> int | None:
    """Bytes of memory of a process and all its descendants; None if the process has ended."""
    import psutil

    total = 0
    with suppress(psutil.Error):
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            with suppress(psutil.Error):
                total += resident(process)
    return total or None


def resident(process: psutil.Process) -> int:
    """Bytes of memory of the process, with its share of shared pages (PSS), so that the sum over a process tree is
    right. Without PSS (macOS) each process counts all its shared pages. Raises psutil.Error."""
    import psutil

    with suppress(psutil.Error, AttributeError):
        return int(process.memory_full_info().pss)
    return int(process.memory_info().rss)
