"""One process trains in a folder. Two would write their checkpoints over each other's."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trainer.base.errors import TrainerError
from trainer.base.layout import TRAINING


@contextmanager
def alone(run_dir: Path) -> Iterator[None]:
    """Lock the folder, and make it if it is missing. Raises TrainerError if another process trains in it.

    The lock ends with this process, however it ends: processes that load images do not inherit it. Without locks, as on
    some network file systems, nothing is checked. If the block leaves a new folder empty, it is removed.
    """
    is_new, path = not run_dir.exists(), run_dir / TRAINING
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError:  # the caller has the words for a folder that cannot be written
        yield
        return
    try:
        _take(lock, run_dir)
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()
            if is_new:
                with suppress(OSError):
                    run_dir.rmdir()
    finally:
        os.close(lock)


def _take(lock: int, run_dir: Path) -> None:
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise TrainerError(
            f"{run_dir}: another process trains in this folder; wait for its end, or set RUN_DIR to another folder"
        ) from None
    except OSError:  # no locks here
        pass
