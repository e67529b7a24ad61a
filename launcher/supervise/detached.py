"""A supervisor in the background, which outlives the command, terminal or connection that started it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from launcher.base.errors import RunError
from launcher.base.text import LAST
from launcher.record import lease

LOG = "supervisor.log"


def detach(submission: Path, gpus: str | None = None, machine: str | None = None) -> str:
    """Start `launcher resume` for the submission in its own process session, and wait until it holds the lease. Returns
    the first line of its output.

    Raises RunError with its last output if it ends earlier.
    """
    command = [sys.executable, "-m", "launcher", "resume", str(submission), "--runs", str(submission.parent)]
    command += [*(["--gpus", gpus] if gpus is not None else []), *(["--machine", machine] if machine else [])]
    log = submission / LOG
    with log.open("ab") as out:
        begin = out.tell()
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    while True:
        # First ask whether the child lives, then read its output, which is complete if the child has ended. Do not try
        # the lock itself: a try holds it for a moment, and the child could find it taken.
        ended = child.poll() is not None
        if _driver(submission) == child.pid and (answer := _said(log, begin)):
            return answer.partition("\n")[0]
        if ended:
            answer = _said(log, begin).removeprefix("error: ") or f"exit code {child.returncode}"
            raise RunError(
                f"{submission.name}: nothing was started: {answer}\nthe submission exists; continue with: "
                f"launcher resume {submission.name} --runs {os.path.relpath(submission.parent)}"
            )
        time.sleep(0.05)


def _driver(submission: Path) -> int | None:
    """The process that runs the submission, or ran it last, by its lease."""
    holder = lease.read_holder(submission)
    return holder.pid if holder is not None else None


def _said(log: Path, begin: int) -> str:
    with log.open("rb") as file:
        file.seek(begin)
        return file.read(LAST).decode(errors="surrogateescape").strip()
