"""The cache that runs share: it belongs to the runs' user, if this process is root and that user is not."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from launcher.record import folders


def give_cache(cache: Path, runs_root: Path, user: tuple[int, int]) -> None:
    """Create the shared cache, and make it writable for the runs' user. Does not change a folder that the caller has
    named and created. Raises OSError."""
    new = not cache.exists()
    cache.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0 or user[0] == 0 or not (new or cache == runs_root / ".cache"):
        return
    give_folders(cache, user)


def give_folders(cache: Path, user: tuple[int, int]) -> None:
    """Give root's folders in the cache, and the cache, to the runs' user. Raises OSError.

    Only folders, and through descriptors: nobody can make a hard link of a folder."""
    with folders.opened(cache) as folder:
        with os.scandir(folder.descriptor) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        for name in names:
            with suppress(OSError):
                descriptor = folders.inside(folder, name)
                try:
                    if os.fstat(descriptor).st_uid == 0:
                        os.fchown(descriptor, *user)
                finally:
                    os.close(descriptor)
        if folder.owner == 0:
            os.fchown(folder.descriptor, *user)
