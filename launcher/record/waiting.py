"""Why the queued runs of a submission wait: the supervisor writes it, and every command that looks reads it."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from pathlib import Path

from launcher.base.sizes import show_size
from launcher.record import folders

FILE = "waiting.json"
_NUMBER = re.compile(r"\d+(\.\d+)?( [MG]iB)?")
ROOM = 16 * 2**20
"""No run starts with fewer free bytes on the runs' disk, because it could not even write why it failed."""


def write(submission: Path, reason: str | None) -> None:
    """Record the reason; None: no queued run waits for anything but other runs of the submission. An error is ignored:
    `read` notices a full disk itself."""
    with suppress(OSError):
        (submission / folders.STATE).mkdir(mode=0o755, exist_ok=True)
        with folders.opened(submission / folders.STATE, 2) as folder:
            if reason is None:
                folders.remove(folder, FILE)
            else:
                folders.replace(folder, FILE, json.dumps({"reason": reason}).encode(), durable=False)


def read(submission: Path) -> str | None:
    """The reason, or None. It is out of date if no launcher is running the submission."""
    with (
        suppress(OSError, ValueError, TypeError, KeyError, RecursionError),
        folders.opened(submission / folders.STATE, 2) as folder,
    ):
        return str(json.loads(folders.read(folder, FILE))["reason"])
    with suppress(OSError):
        return full_disk(submission)
    return None


def full_disk(submission: Path) -> str | None:
    """That the disk of the runs is full, or None. Raises OSError."""
    disk, folder = os.statvfs(submission), submission.resolve().parent
    free = disk.f_bavail * disk.f_frsize
    if free >= ROOM:
        return None
    return f"{folder}: no space left ({show_size(free)}); queued runs wait until {show_size(ROOM)} are free"


def same(before: str | None, after: str | None) -> bool:
    """Whether two reasons differ in figures alone. Then the second one is no news."""
    return (before is None) == (after is None) and without_figures(before or "") == without_figures(after or "")


def without_figures(reason: str) -> str:
    """A reason without its numbers and sizes, which change all the time."""
    return _NUMBER.sub("", reason)
