"""Other submissions of a runs folder that go on, for a user who means the latest one and forgets the others."""

from __future__ import annotations

import os
import shlex
from contextlib import suppress
from pathlib import Path

from launcher.base.errors import RunError
from launcher.base.sizes import listed
from launcher.base.text import relative
from launcher.engines import registry
from launcher.record import lease
from launcher.record.find import list_submissions
from launcher.record.records import Records
from launcher.record.states import ENDED

LATEST = 20
"""So many of the other submissions are looked at if they are in an engine's queue, which takes longest to know."""
MOST_RUNS = 300
"""So many of their runs are looked at, the last of each submission first: they start last."""


def note(submission: Path, command: str) -> str:
    """A line that names the other submissions that go on, with what to type; empty if there are none. `command` without
    its last word, the submission."""
    names = going_on(submission)
    if not names:
        return ""
    several = f"{len(names)} other submissions are" if len(names) > 1 else "another submission is"
    at = f"{names[0]} --runs {shlex.quote(relative(submission.resolve().parent))}"
    return f"note: {several} running: {listed(names, 3)}; {command} {at}"


def going_on(submission: Path) -> list[str]:
    """This user's other submissions in the same runs folder whose runs are in progress, or that a launcher or an
    engine's queue is running, as far as `MOST_RUNS` show; the latest first."""
    runs_root = submission.resolve().parent
    others = [path for path in list_submissions(runs_root)[::-1] if path.name != submission.name and _is_mine(path)]
    if not others:
        return []
    from launcher.engines import shares

    in_progress: set[str] = set()
    with suppress(OSError):  # of the folder of the locks
        in_progress = {share.submission for share in shares.in_progress()}
    names = []
    runs_left = MOST_RUNS
    for number, path in enumerate(others):
        goes_on = str(path) in in_progress or lease.is_driven(path)
        if not goes_on and number < LATEST and runs_left:
            goes_on, looked_at = _is_in_queue(path, runs_left)
            runs_left -= looked_at
        if goes_on:
            names.append(path.name)
    return names


def _is_mine(submission: Path) -> bool:
    with suppress(OSError):
        return submission.stat().st_uid == os.geteuid()
    return False


def _is_in_queue(submission: Path, most: int) -> tuple[bool, int]:
    """Whether an engine's queue has jobs of the submission, and how many runs were looked at, at most `most`. The
    engine is asked only if one of these runs has not ended."""
    number = 0
    with suppress(RunError, OSError):
        queue = registry.queue_of(submission)
        if queue is not None:
            with Records(submission) as records:
                for number, run_dir in enumerate(records.run_dirs()[: -most - 1 : -1], start=1):
                    if records.look(run_dir.name).state not in ENDED:
                        return queue.drives(submission), number
    return False, number
