"""One GPU, one run, or several of one submission that share it: locks that hold across submissions and users of this
host, and the GPUs' own word.

The lock is held by the process that executes the run, so a launcher that dies frees no GPU that is still in use. Runs
that share hold it together (LOCK_SH), and the lock file names the group that they belong to. Only who has the lock
alone (LOCK_EX) may write into the file: while anyone shares it the name stands, and whoever finds another's lets go.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from launcher.host import nvml

LOCKS = Path("/tmp/launcher-gpu-locks")
"""The same for every user of the host, so not below TMPDIR or HOME."""
FOREIGN_USE = 256 * 2**20
"""Bytes in use on an unlocked GPU from which it counts as somebody else's: an idle driver context holds less."""


@dataclass(frozen=True)
class GpuLock:
    """A locked GPU. The lock lives as long as any copy of the descriptor."""

    gpu: str
    descriptor: int

    def close(self) -> None:
        with suppress(OSError):
            os.close(self.descriptor)


def acquire(gpu: str, owner: str, group: str = "") -> GpuLock | None:
    """Lock `gpu` (its UUID, index or `mps`) for `owner`, a text for others to read; None where it is taken.

    With a `group` the lock is shared with others of the same group, and with nobody else.
    """
    descriptor = _open(gpu)
    if _claim(descriptor, owner, group):
        return GpuLock(gpu, descriptor)
    os.close(descriptor)
    return None


def _claim(descriptor: int, owner: str, group: str) -> bool:
    if _lock(descriptor, fcntl.LOCK_EX):
        written = _write(descriptor, owner, group)
        if not group or not written:  # unwritten, others could not tell who may join: it is held alone
            return True
    # Going from alone to shared lets go for a moment: somebody else may have come, and gone or stayed.
    return bool(group) and _lock(descriptor, fcntl.LOCK_SH) and _read(descriptor)[1] == group


def acquire_for(gpu: str, run_dir: Path, share: bool) -> GpuLock | None:
    """Lock `gpu` for a run: alone, or with `share` together with runs of its submission. None where it is taken."""
    submission = run_dir.parent.resolve()
    if not share:
        return acquire(gpu, f"{submission.name}/{run_dir.name}")
    return acquire(gpu, f"{submission.name} (runs that share it)", hashlib.sha256(str(submission).encode()).hexdigest())


def _lock(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write(descriptor: int, owner: str, group: str) -> bool:
    """False where it cannot be: a file of another user may be read-only; the lock holds all the same."""
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, " ".join(owner.split()).encode()[:400] + b"\n" + group.encode(), 0)
    except OSError:
        return False
    return True


def _read(descriptor: int) -> tuple[str, str]:
    """The owner's text, and the group that shares the lock (empty: none)."""
    owner, _, group = os.pread(descriptor, 1000, 0).decode(errors="replace").partition("\n")
    return owner, group


def holder(gpu: str) -> str | None:
    """What the holder of the lock says of itself, or None where the GPU is not locked."""
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
        # Not O_CREAT on what exists: kernels refuse that on another user's file in a sticky folder.
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
    """Why the GPU cannot be had just now (a run's lock, or memory in use by processes that are no runs), or None."""
    held_by = holder(gpu)
    if held_by is not None:
        return f"held by {held_by}"
    used = nvml.memory_of_processes(index) if index is not None else 0
    return f"{used / 2**30:.1f} GiB in use by other processes" if used > FOREIGN_USE else None
