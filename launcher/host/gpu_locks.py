"""Locks of GPUs: a GPU belongs to one run, or to several runs of one submission that share it. The locks hold for all
submissions and users of this host. Memory in use on the GPU is checked, too.

The process that executes the run holds the lock, so a GPU in use stays locked when the launcher dies. Runs that share
a GPU hold the lock together (LOCK_SH), and the lock file names their group. Only the holder of an exclusive lock
(LOCK_EX) may write the file. So the group's name stays while anyone shares the lock, and a process of another group
releases it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from launcher.host import nvml

LOCKS = Path("/tmp/launcher-gpu-locks")
"""The same folder for every user of the host, so not in TMPDIR or HOME."""
FOREIGN_USE = 256 * 2**20
"""An unlocked GPU with more bytes in use than this belongs to somebody else. An idle driver context uses less."""


@dataclass(frozen=True)
class GpuLock:
    """A locked GPU. The lock lasts as long as any copy of the descriptor."""

    gpu: str
    descriptor: int

    def close(self) -> None:
        with suppress(OSError):
            os.close(self.descriptor)


def visible(devices: Sequence[str], locks: Sequence[str]) -> list[str]:
    """The names by which CUDA or a container engine finds `devices`, whose locks are named `locks`: their UUIDs if
    known. An index is ambiguous: CUDA's order is not NVML's, and a MIG instance has none."""
    known = dict(zip(devices, locks, strict=False))
    return [known[device] if known.get(device, "").startswith(("GPU-", nvml.MIG)) else device for device in devices]


def acquire(gpu: str, owner: str, group: str = "") -> GpuLock | None:
    """Lock `gpu` (its UUID, index or `mps`) for `owner`, a text for people. Returns None if the GPU is taken.

    With a `group`, others of the same group may share the lock.
    """
    descriptor = _open(gpu)
    if _claim(descriptor, owner, group):
        return GpuLock(gpu, descriptor)
    os.close(descriptor)
    return None


def _claim(descriptor: int, owner: str, group: str) -> bool:
    if _lock(descriptor, fcntl.LOCK_EX):
        written = _write(descriptor, owner, group)
        if (
            not group or not written
        ):  # without the name in the file others do not know who may join, so the lock is exclusive
            return True
    # The change from exclusive to shared releases the lock for a moment. Another process may have taken it.
    return bool(group) and _lock(descriptor, fcntl.LOCK_SH) and _read(descriptor)[1] == group


def acquire_for(gpu: str, run_dir: Path, share: bool) -> GpuLock | None:
    """Lock `gpu` for a run: exclusively, or with `share` together with runs of its submission. None if it is taken."""
    submission = run_dir.parent.resolve()
    if not share:
        return acquire(gpu, f"{submission.name}/{run_dir.name}")
    return acquire(gpu, f"{submission.name} (runs that share it)", hashlib.sha256(os.fsencode(submission)).hexdigest())


def _lock(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write(descriptor: int, owner: str, group: str) -> bool:
    """Write the owner into the lock file. Returns False if the file is read-only (another user's); the lock still
    holds."""
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, os.fsencode(" ".join(owner.split()))[:400] + b"\n" + group.encode(), 0)
    except OSError:
        return False
    return True


def _read(descriptor: int) -> tuple[str, str]:
    """Returns the owner's text and the group that shares the lock (empty: none)."""
    owner, _, group = os.pread(descriptor, 1000, 0).decode(errors="replace").partition("\n")
    return owner, group


def holder(gpu: str) -> str | None:
    """The text of the lock's owner, or None if the GPU is not locked."""
    descriptor = _open(gpu)
    try:
        return None if _lock(descriptor, fcntl.LOCK_EX) else _read(descriptor)[0] or "another run"
    finally:
        os.close(descriptor)


def _open(gpu: str) -> int:
    if not LOCKS.is_dir():
        with suppress(FileExistsError):
            LOCKS.mkdir()
            LOCKS.chmod(0o1777)
    name = gpu if gpu.isalnum() else hashlib.sha256(gpu.encode()).hexdigest()[:24]
    path = LOCKS / f"{name}.lock"
    flags = os.O_NOFOLLOW | os.O_CLOEXEC
    for _ in range(3):
        # No O_CREAT on a file that exists: kernels refuse it for another user's file in a sticky folder.
        for mode in (os.O_RDWR, os.O_RDONLY):
            try:
                descriptor = os.open(path, mode | flags)
            except FileNotFoundError:
                break
            except PermissionError:
                continue
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                return descriptor
            os.close(descriptor)
            raise OSError(f"{path}: not a regular file; remove it")
        with suppress(FileExistsError):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags, 0o666)
            os.fchmod(descriptor, 0o666)
            return descriptor
    raise OSError(f"{path}: cannot be opened; remove it")


def why_taken(gpu: str, index: int | None) -> str | None:
    """Why the GPU (its lock's name) is not available now (a run's lock, or memory used by other processes), or None.
    `index` is that of its GPU by NVML, None for another machine's."""
    held_by = holder(gpu)
    if held_by is not None:
        return f"held by {held_by}"
    used = nvml.memory_of_processes(index, gpu) if index is not None else 0
    return f"{used / 2**30:.1f} GiB in use by other processes" if used > FOREIGN_USE else None
