"""Other submissions of a runs folder that go on, for a user who means the latest one and forgets the others."""

from __future__ import annotations

import os
import shlex
from contextlib import suppress
from pathlib import Path

from launcher.base.errors import RunError
from launcher.base.sizes import listed
from launcher.engines import registry
from launcher.record import lease
from launcher.record.find import list_submissions
from launcher.record.records import Records
from launcher.record.states import ENDED

LATEST = 20
"""So many of the other submissions are looked at if they are in an engine's queue, which takes longest to know."""


def note(submission: Path, command: str) -> str:
    """A line that names the other submissions that go on, with what to type; empty if there are none. `command` without
    its last word, the submission."""
    names = going_on(submission)
    if not names:
        return ""
    several = f"{len(names)} other submissions are" if len(names) > 1 else "another submission is"
    at = f"{names[0]} --runs {shlex.quote(os.path.relpath(submission.resolve().parent))}"
    return f"note: {several} running: {listed(names, 3)}; {command} {at}"


def going_on(submission: Path) -> list[str]:
    """This user's other submissions in the same runs folder whose runs are in progress, or that a launcher or an
    engine's queue is running; the latest first."""
    runs_root = submission.resolve().parent
    others = [path for path in list_submissions(runs_root)[::-1] if path.name != submission.name and _is_mine(path)]
    if not others:
        return []
    from launcher.engines import shares

    in_progress: set[str] = set()
    with suppress(OSError):  # of the folder of the locks
        in_progress = {share.submission for share in shares.in_progress()}
    names = []
    for number, path in enumerate(others):
        if str(path) in in_progress or lease.is_driven(path) or (number < LATEST and _is_in_queue(path)):
            names.append(path.name)
    return names


def _is_mine(submission: Path) -> bool:
    with suppress(OSError):
        return submission.stat().st_uid == os.geteuid()
    return False


def _is_in_queue(submission: Path) -> bool:
    """Whether an engine's queue has jobs of the submission. The engine is asked only if runs are left."""
    with suppress(RunError, OSError):
        queue = registry.queue_of(submission)
        if queue is not None:
            with Records(submission) as records:
                is_left = any(records.look(run_dir.name).state not in ENDED for run_dir in records.run_dirs())
            return is_left and queue.drives(submission)
    return False
