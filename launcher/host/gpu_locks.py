"""Locks of GPUs: a GPU belongs to one run, or to several runs of one submission that share it. The locks hold for all
submissions and users of this host. Memory in use on the GPU is checked, too.

The process that executes the run holds the lock, so a GPU in use stays locked when the launcher dies. Runs that share
a GPU hold the lock together (LOCK_SH), and the lock file names their group. Only the holder of an exclusive lock
(LOCK_EX) may write the file. So the group's name stays while anyone shares the lock, and a process of another group
releases it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import pwd
import stat
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from launcher.base.text import one_line
from launcher.host import nvml

LOCKS = Path("/tmp/launcher-gpu-locks")
"""The same folder for every user of the host, so not in TMPDIR or HOME."""
FOREIGN_USE = 256 * 2**20
"""An unlocked GPU with more bytes in use than this belongs to somebody else. An idle driver context uses less."""


@dataclass(frozen=True)
class GpuLock:
    """A locked GPU. The lock lasts as long as any copy of the descriptor."""

    gpu: str
    """Empty for a share of the host, see `account`."""
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
    descriptor = open_lock(gpu)
    if _claim(descriptor, owner, group):
        return GpuLock(gpu, descriptor)
    os.close(descriptor)
    return None


def _claim(descriptor: int, owner: str, group: str) -> bool:
    if lock(descriptor, fcntl.LOCK_EX):
        written = _write(descriptor, owner, group)
        if (
            not group or not written
        ):  # without the name in the file others do not know who may join, so the lock is exclusive
            return True
    # The change from exclusive to shared releases the lock for a moment. Another process may have taken it.
    return bool(group) and lock(descriptor, fcntl.LOCK_SH) and _read(descriptor)[1] == group


def acquire_for(gpu: str, run_dir: Path, share: bool) -> GpuLock | None:
    """Lock `gpu` for a run: exclusively, or with `share` together with runs of its submission. None if it is taken."""
    submission = run_dir.parent.resolve()
    if not share:
        return acquire(gpu, f"{submission.name}/{run_dir.name}")
    return acquire(gpu, f"{submission.name} (runs that share it)", hashlib.sha256(os.fsencode(submission)).hexdigest())


def lock(descriptor: int, how: int) -> bool:
    """Lock an open file (flock). Returns False if another process holds it."""
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
    descriptor = open_lock(gpu)
    try:
        return None if lock(descriptor, fcntl.LOCK_EX) else one_line(_read(descriptor)[0], 200) or "another run"
    finally:
        os.close(descriptor)


def open_lock(gpu: str) -> int:
    """Open the lock file of a GPU. Raises OSError."""
    return open_file(gpu if gpu.isalnum() else hashlib.sha256(gpu.encode()).hexdigest()[:24])


class NoLockFileError(OSError):
    """Something else has the name of a lock file."""


def open_file(name: str, mode: int = 0o666) -> int:
    """Open the file `<name>.lock` in the folder of the locks; create it with this mode if it is missing. Any user may
    have made the folder and its files, so no link is followed. Raises OSError."""
    path, flags = LOCKS / f"{name}.lock", os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    folder = open_folder()
    try:
        for _ in range(3):
            # No O_CREAT on a file that exists: kernels refuse it for another user's file in a sticky folder.
            for access in (os.O_RDWR, os.O_RDONLY):
                try:
                    descriptor = os.open(path.name, access | flags, dir_fd=folder)
                except FileNotFoundError:
                    break
                except PermissionError:
                    continue
                except OSError as error:
                    if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket
                        raise NoLockFileError(f"{path}: not a regular file; remove it") from None
                    raise
                status = os.fstat(descriptor)
                if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
                    return descriptor
                os.close(descriptor)
                raise NoLockFileError(f"{path}: not a regular file; remove it")
            try:
                descriptor = os.open(path.name, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags, mode, dir_fd=folder)
            except FileExistsError:
                continue
            except PermissionError:
                raise OSError(f"{LOCKS}: {_unusable()}") from None
            os.fchmod(descriptor, mode)
            return descriptor
    finally:
        os.close(folder)
    raise NoLockFileError(f"{path}: cannot be opened; remove it")


def open_folder() -> int:
    """Open the folder of the locks; create it for every user if it is missing. It never has another mode, not even for
    a moment. Raises OSError."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    with suppress(FileNotFoundError):
        return _opened_folder(flags)
    folder = tempfile.mkdtemp(prefix=f".{LOCKS.name}-", dir=LOCKS.parent)
    try:
        os.chmod(folder, 0o1777)  # noqa: PTH101
        os.rename(folder, LOCKS)  # noqa: PTH104
    except OSError:  # another process was faster
        with suppress(OSError):
            os.rmdir(folder)  # noqa: PTH106
    return _opened_folder(flags)


def _opened_folder(flags: int) -> int:
    try:
        return os.open(LOCKS, flags)
    except (NotADirectoryError, PermissionError) as error:
        raise OSError(f"{LOCKS}: {error.strerror}; it must be a folder with mode 1777, so remove it") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(f"{LOCKS}: is a link; remove it") from None
        raise


def _unusable() -> str:
    """Why this user cannot create files in `LOCKS`, and what to type."""
    status = LOCKS.stat()
    try:
        owner = pwd.getpwuid(status.st_uid).pw_name
    except KeyError:
        owner = f"user {status.st_uid}"
    mode = stat.S_IMODE(status.st_mode)
    return f"belongs to {owner} and has mode {mode:o}; {owner} or root can change that: chmod 1777 {LOCKS}"


def why_taken(gpu: str, index: int | None) -> str | None:
    """Why the GPU (its lock's name) is not available now (a run's lock, or memory used by other processes), or None.
    `index` is that of its GPU by NVML, None for another machine's."""
    held_by = holder(gpu)
    if held_by is not None:
        return f"held by {held_by}"
    if index is not None and (words := nvml.why_lost(index)):
        return f"lost (the driver says: {words})"
    used = nvml.memory_of_processes(index, gpu) if index is not None else 0
    if used is None:
        return "in use by other processes, which use an unknown amount of memory"
    return f"{used / 2**30:.1f} GiB in use by other processes" if used > FOREIGN_USE else None
