"""A supervisor in the background, which outlives the command, terminal or connection that started it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from launcher.base.errors import RefusedError
from launcher.base.text import relative
from launcher.record import folders
from trainer.base.errors import EXIT_FAILED

LOG = "supervisor.log"
STARTED = b"\0"
"""The supervisor's answer ends with this once it holds the lease and has queued its runs. Before, it may fail."""


def detach(
    submission: Path, gpus: str | None = None, machine: str | None = None, take_over: bool = False,
    run: str | None = None,
) -> str:  # fmt: skip
    """Start `launcher resume` for the submission (or for one `run` of it) in its own process session, and wait until it
    runs the submission. Returns its output until then.

    Raises RefusedError with its output and its exit code if it ends earlier.
    """
    command = [
        sys.executable,
        "-m",
        "launcher",
        "resume",
        str(submission / (run or "")),
        "--runs",
        str(submission.parent),
    ]
    command += [*(["--gpus", gpus] if gpus is not None else []), *(["--machine", machine] if machine else [])]
    command += ["--in-background", *(["--take-over"] if take_over else [])]
    # A file, not a pipe: the supervisor goes on if this process ends.
    with tempfile.TemporaryFile() as answer:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=answer, stderr=subprocess.STDOUT, start_new_session=True
        )
        while True:
            try:
                time.sleep(0.05)
            except KeyboardInterrupt:
                child.terminate()  # what the user stops must not go on in the background
                raise
            # First ask whether the child lives, then read its output, which is complete if the child has ended.
            ended = child.poll() is not None
            said, started, _ = _content(answer.fileno()).partition(STARTED)
            lines = said.decode(errors="surrogateescape").strip()
            if started:
                return lines
            if ended:
                with os.fdopen(_log(submission), "ab") as log:
                    log.write(said)
                why = lines.removeprefix("error: ") or f"exit code {child.returncode}"
                raise RefusedError(
                    f"{submission.name}: nothing was started: {why}\nthe submission exists; continue with: "
                    f"launcher resume {submission.name} --runs {shlex.quote(relative(submission.parent))}",
                    child.returncode if child.returncode > 0 else EXIT_FAILED,
                )


def started(submission: Path) -> None:
    """Called by the supervisor that `detach` has started, once it runs the submission: its further output goes to the
    log. Raises OSError."""
    sys.stdout.flush()
    sys.stderr.flush()
    log = _log(submission)
    os.write(log, _content(1))
    os.write(1, STARTED)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _log(submission: Path) -> int:
    with folders.opened(submission) as folder:
        return folders.open_own(folder, LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def _content(descriptor: int) -> bytes:
    """The whole file, without moving the place at which the supervisor writes."""
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
