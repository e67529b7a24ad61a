"""Secrets as files that only the run's user can read, in memory where the system has a place for that.

The folder's name follows from the run and its attempt: whoever finds out that the run is over can remove it, also when
the process that made it was killed.
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
    """A new folder with a file for each of these environment variables that is set; None where none is.

    `owner` (uid, gid) is who may read them; None: this user. Raises OSError, also where somebody else's folder stands
    in its place.
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
        path.write_text(os.environ[name], encoding="utf-8")
        if owner is not None:
            os.chown(path, *owner)
    if owner is not None:
        os.chown(folder, *owner)
    return folder


def take_back(run_dir: Path, attempt: int) -> None:
    """Remove what `hand_over` made for this attempt, wherever that was."""
    for place in _places():
        folder = place / _name(run_dir, attempt)
        if folder.is_dir() and stat.S_ISDIR(folder.lstat().st_mode):
            shutil.rmtree(folder, ignore_errors=True)


def _name(run_dir: Path, attempt: int) -> str:
    return f"{PREFIX}{hashlib.sha256(os.fsencode(run_dir.resolve())).hexdigest()[:24]}-{attempt}"


def _places() -> Iterator[Path]:
    """Folders that can be written to, the best first."""
    for folder in (os.environ.get("XDG_RUNTIME_DIR"), "/dev/shm", tempfile.gettempdir()):
        if folder and os.access(folder, os.W_OK | os.X_OK):
            yield Path(folder)
