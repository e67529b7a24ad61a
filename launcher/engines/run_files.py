"""Files of a run directory that must belong to the run's user, if this process is root and that user is not."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

from trainer.base.files import to_bytes


def hand_over(run_dir: Path, user: tuple[int, int]) -> None:
    """Make the run's user the owner of the run directory, if this process is root and that user is not."""
    if os.getuid() != 0 or user[0] == 0:
        return
    for path in (run_dir, *run_dir.rglob("*")):
        os.chown(path, *user, follow_symlinks=False)


def write_log(run_dir: Path, text: str, user: tuple[int, int] | None = None) -> None:
    """Append to the run's log, which belongs to the run's user."""
    with os.fdopen(_own(run_dir / "log.txt", os.O_APPEND), "ab") as log:
        if user is not None and os.getuid() == 0:
            os.fchown(log.fileno(), *user)
        log.write(to_bytes(text))


def touch(path: Path) -> None:
    """Create an empty file in a run directory."""
    os.close(_own(path))


def _own(path: Path, flags: int = 0) -> int:
    """Open a regular file for writing in a folder of the run's user. Replaces, and never follows, anything else that
    the user has put there (a link, a pipe). Raises OSError."""
    flags |= os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            path.unlink()
    descriptor = os.open(path, flags, 0o644)  # raises if a link has appeared again meanwhile
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return descriptor


def give_cache(cache: Path, runs_root: Path, user: tuple[int, int]) -> None:
    """Create the shared cache, and make it writable for the runs' user. Does not change a folder that the caller has
    named and created. Raises OSError."""
    new = not cache.exists()
    cache.mkdir(parents=True, exist_ok=True)
    if os.getuid() != 0 or user[0] == 0 or not (new or cache == runs_root / ".cache"):
        return
    for path in (cache, *cache.iterdir()):
        if path.lstat().st_uid == 0:
            os.chown(path, *user, follow_symlinks=False)
