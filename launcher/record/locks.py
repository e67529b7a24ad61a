"""Lock files (flock): the truth within a host, and nothing between hosts, whose file systems need not have them."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a file system says that has no locks: every lock is free there."""


@contextmanager
def locked(path: Path, patience: float = 0.1) -> Iterator[int | None]:
    """Hold the lock file at `path`; yields its descriptor, or None where another holds it for `patience` seconds, since
    one who only looks (`is_locked`) does so for a moment. Freed when the process ends, and those it gave it to."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    deadline = time.monotonic() + patience
    try:
        while not (mine := _lock(descriptor)) and time.monotonic() < deadline:
            time.sleep(0.02)
        yield descriptor if mine else None
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True


def is_locked(path: Path) -> bool:
    """Whether some process holds the lock file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    finally:
        os.close(descriptor)


def lock_journal(descriptor: int) -> None:
    """Wait for the lock of an open file, where its file system has locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
