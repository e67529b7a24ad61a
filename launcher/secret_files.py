"""Secrets as files that only the run's user can read, in memory where the system has a place for that."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

PREFIX = "launcher-secrets-"


def hand_over(names: Sequence[str], owner: tuple[int, int] | None = None) -> Path | None:
    """A new folder with a file for each of these environment variables that is set; None where none is.

    `owner` (uid, gid) is who may read them; None: this user.
    """
    present = [name for name in names if os.environ.get(name)]
    if not present:
        return None
    places = [os.environ.get("XDG_RUNTIME_DIR"), "/dev/shm"]
    place = next((each for each in places if each and os.access(each, os.W_OK | os.X_OK)), None)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
    for name in present:
        path = folder / name
        path.touch(mode=0o600)
        path.write_text(os.environ[name], encoding="utf-8")
        if owner is not None:
            os.chown(path, *owner)
    if owner is not None:
        os.chown(folder, *owner)
    return folder


def take_back(folder: Path | None) -> None:
    """Remove what `hand_over` made, and nothing else."""
    if folder is not None and folder.name.startswith(PREFIX):
        shutil.rmtree(folder, ignore_errors=True)
