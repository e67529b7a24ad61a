"""A request to stop a submission or some of its runs, in `supervisor.stop`.

`launcher stop` ends the runs itself. The file is for a launcher that is queueing runs again at that moment: it must
stop those, too.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from launcher.record import folders
from trainer.base.files import to_bytes

FILE = "supervisor.stop"
EVERYTHING = "*"


def ask(submission: Path, names: Collection[str] | None = None) -> None:
    """Request the end of these runs, or of all. Does nothing if the folder is read-only."""
    lines = "".join(f"{name}\n" for name in (names if names is not None else [EVERYTHING]))
    with suppress(OSError), folders.opened(submission) as folder:
        descriptor = folders.open_own(folder, FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        with os.fdopen(descriptor, "ab") as file:
            file.write(to_bytes(lines))


def forget(submission: Path) -> None:
    """Remove the request: the user continues the submission."""
    with suppress(OSError):
        (submission / FILE).unlink(missing_ok=True)


def everything(submission: Path) -> bool:
    """Whether the end of all runs is requested."""
    return EVERYTHING in _read(submission)


def among(submission: Path, names: Collection[str]) -> list[str]:
    """Those of these runs that are to be stopped."""
    asked = _read(submission)
    return [name for name in names if name in asked or EVERYTHING in asked]


def _read(submission: Path) -> set[str]:
    try:
        with folders.opened(submission) as folder:
            return set(folders.read(folder, FILE).decode(errors="surrogateescape").splitlines())
    except OSError:
        return set()
