"""A request to stop a submission or some of its runs, in `supervisor.stop`.

`launcher stop` ends the runs itself. The file is for a launcher that is queueing runs again at that moment: it must
stop those, too.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

FILE = "supervisor.stop"
EVERYTHING = "*"


def ask(submission: Path, names: Collection[str] | None = None) -> None:
    """Request the end of these runs, or of all. Does nothing if the folder is read-only."""
    with suppress(OSError), (submission / FILE).open("a", encoding="utf-8") as file:
        file.write("".join(f"{name}\n" for name in (names if names is not None else [EVERYTHING])))


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
        return set((submission / FILE).read_text(encoding="utf-8").splitlines())
    except OSError:
        return set()
