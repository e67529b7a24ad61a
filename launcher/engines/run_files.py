"""Files of a run directory that belong to the run's user, where this process is root and that user is not."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def hand_over(run_dir: Path, user: tuple[int, int]) -> None:
    """Give the run directory to the run's user, where this process is root and that user is not."""
    if os.getuid() != 0 or user[0] == 0:
        return
    for path in (run_dir, *run_dir.rglob("*")):
        if path.name not in ("events.jsonl", "exec.lock", "run.json", "status.json"):
            os.chown(path, *user, follow_symlinks=False)


def write_log(run_dir: Path, text: str, user: tuple[int, int] | None = None) -> None:
    """Add to the run's log, which is the run's user's: a link that this user may have put in its place is not
    followed."""
    descriptor = os.open(
        run_dir / "log.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644
    )
    with os.fdopen(descriptor, "ab") as log:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            if user is not None and os.getuid() == 0:
                os.fchown(descriptor, *user)
            log.write(text.encode(errors="replace"))
