"""Secrets as files that only the run's user can read, in memory if the system has such a folder.

The run and its attempt determine the folder's name, so any process that sees the end of the run can remove the folder,
even if the process that created it was killed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

PREFIX = "launcher-secrets-"


def hand_over(names: Sequence[str], run_dir: Path, attempt: int, owner: tuple[int, int] | None = None) -> Path | None:
    """A new folder with a file for each of these environment variables that is set; None if none is set.

    `owner` (uid, gid) may read them; None: this user. Raises OSError, also if another user's folder has its name.
    """
    present = [name for name in names if os.environ.get(name)]
    if not present:
        return None
    take_back(run_dir, attempt)
    folder = next(_places()) / _name(run_dir, attempt)
    folder.mkdir(mode=0o700)
    for name in present:
        path = folder / name
        path.touch(mode=0o600)
        path.write_bytes(os.fsencode(os.environ[name]))
        if owner is not None:
            os.chown(path, *owner)
    if owner is not None:
        os.chown(folder, *owner)
    return folder


def take_back(run_dir: Path, attempt: int) -> None:
    """Remove the folder that `hand_over` created for this attempt, in any of the possible places."""
    for place in _places():
        folder = place / _name(run_dir, attempt)
        if folder.is_dir() and stat.S_ISDIR(folder.lstat().st_mode):
            shutil.rmtree(folder, ignore_errors=True)


def _name(run_dir: Path, attempt: int) -> str:
    return f"{PREFIX}{hashlib.sha256(os.fsencode(run_dir.resolve())).hexdigest()[:24]}-{attempt}"


def _places() -> Iterator[Path]:
    """Writable folders, the best first."""
    for folder in (os.environ.get("XDG_RUNTIME_DIR"), "/dev/shm", tempfile.gettempdir()):
        if folder and os.access(folder, os.W_OK | os.X_OK):
            yield Path(folder)
