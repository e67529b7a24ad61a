"""Lock files (flock). They are reliable within a host, but not between hosts: a shared file system may lack locks."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from launcher.record import folders
from launcher.record.find import own_cache
from launcher.record.folders import Folder

CREATING = "creating.lock"
"""All processes that create a submission in a runs folder share this lock."""

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Error numbers of a file system without locks: every lock counts as free there."""


@contextmanager
def locked(path: Path, patience: float = 0.1) -> Iterator[int | None]:
    """Hold a lock file in the folder of a submission. Yields its descriptor, or None if another process holds it for
    `patience` seconds (`is_locked` holds it for a moment). The lock is free when this process and all that inherited it
    have ended."""
    with folders.opened(path.parent) as folder, _held(folder, path.name, patience) as descriptor:
        yield descriptor


@contextmanager
def run_locked(run_dir: Path, patience: float = 0.1) -> Iterator[int | None]:
    """The same with the lock of a run: the process that executes or watches the run holds it."""
    with folders.own_state(run_dir) as folder, _held(folder, folders.LOCK, patience) as descriptor:
        yield descriptor


@contextmanager
def _held(folder: Folder, name: str, patience: float) -> Iterator[int | None]:
    descriptor = folders.open_own(folder, name, os.O_RDWR | os.O_CREAT)
    deadline = time.monotonic() + patience
    try:
        while not (mine := _lock(descriptor)) and time.monotonic() < deadline:
            time.sleep(0.02)
        yield descriptor if mine else None
    finally:
        os.close(descriptor)


@contextmanager
def creating(runs_root: Path) -> Iterator[None]:
    """Show that this process creates a submission in the runs folder, so that `prune` does not take its folders for
    those of a killed `submit`. Goes on without the lock if it cannot be had, as in another user's runs folder."""
    with ExitStack() as stack:
        with suppress(OSError):
            own = own_cache(runs_root)
            own.mkdir(exist_ok=True)
            folder = stack.enter_context(folders.opened(own))
            descriptor = folders.open_own(folder, CREATING, os.O_RDONLY | os.O_CREAT)
            stack.callback(os.close, descriptor)
            deadline = time.monotonic() + 1
            while (
                not _lock(descriptor, fcntl.LOCK_SH) and time.monotonic() < deadline
            ):  # `is_creating` holds it briefly
                time.sleep(0.02)
        yield


def is_creating(runs_root: Path) -> bool:
    """Whether a process is creating a submission in the runs folder. False on a file system without locks."""
    try:
        with folders.opened(own_cache(runs_root)) as folder:
            return _is_held(folder, CREATING, fcntl.LOCK_EX)
    except FileNotFoundError:
        return False


def _lock(descriptor: int, how: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock file in the folder of a submission."""
    with folders.opened(path.parent) as folder:
        return _is_held(folder, path.name)


def is_run_locked(run_dir: Path) -> bool:
    """Whether a process executes or watches the run."""
    try:
        with folders.state(run_dir) as folder:
            return _is_held(folder, folders.LOCK)
    except FileNotFoundError:
        return False


def _is_held(folder: Folder, name: str, how: int = fcntl.LOCK_SH) -> bool:
    """Whether a process holds the lock file, so that it cannot be locked in this way."""
    try:
        descriptor = folders.open_own(folder, name, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
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
    """Wait for the lock of an open file, if its file system has locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
