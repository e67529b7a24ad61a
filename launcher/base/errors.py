"""Every error of the launcher with its exit code, and the end of read-only commands on Ctrl-C.

Each message is complete: it says what is wrong, where, and what to type next. `launcher.__main__` prints it and exits
with the class's exit code. The codes that the trainer has, too, are in `trainer.base.errors`. Imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import click

from trainer.base.errors import EXIT_DATA, EXIT_FAILED, EXIT_USAGE

EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C, and of a launcher whose runs were stopped on request."""


class LauncherError(Exception):
    """Base class: ends a command with one message and no traceback."""

    exit_code = EXIT_FAILED


class RefusedError(LauncherError):
    """A command cannot do its task. The exit code is given with the message."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class SizeError(LauncherError, ValueError):
    """A text is not a size or duration. The message says how to write one."""

    exit_code = EXIT_USAGE


class JobError(LauncherError):
    """A job cannot be run as written. The text has one error per line, each with its place and a fix.

    `sound` is the valid part of the job (a `spec.Job`), if further checks can use it; else None."""

    exit_code = EXIT_USAGE

    def __init__(self, errors: str, sound: Any = None) -> None:
        super().__init__(errors)
        self.sound = sound


class MachineError(LauncherError):
    """The description of a machine is not usable."""

    exit_code = EXIT_USAGE


class RunError(LauncherError):
    """A run or submission does not exist, or the command is not possible for it."""


class DataFolderError(RunError):
    """A data folder does not exist, cannot be read, or has nothing to train on."""

    exit_code = EXIT_DATA


class DamagedFileError(RunError):
    """A file that runs need exists, but its content is wrong: truncated, or of another format."""

    exit_code = EXIT_DATA


class RecordError(RunError):
    """A file of the launcher's own about a run or submission cannot be used. The message names the file."""


class RunFileError(RunError):
    """A file in a run directory cannot be used: it is missing, a link, no regular file, too large, or not readable."""

    def __init__(self, message: str, missing: bool = False) -> None:
        super().__init__(message)
        self.missing = missing


class FencedError(RunError):
    """A launcher with a higher fencing number has taken over the submission."""


class LeaseLostError(RunError):
    """Another launcher has taken over the submission. This one must not write any more."""


class EngineError(RunError):
    """A container engine is missing or cannot do its task."""


class ArgumentError(EngineError):
    """The Dockerfile does not have this build argument, or does not allow its value."""

    exit_code = EXIT_USAGE


def stopped_watching(place: str = "") -> int:
    """Say that Ctrl-C ended only the watching, and no run. `place`: empty or ` on HOST`. Returns the exit code."""
    sys.stdout.flush()  # so that earlier output comes first
    click.echo(f"\nStopped watching; the runs{place} continue.", err=True)
    return EXIT_INTERRUPTED


@contextlib.contextmanager
def watching() -> Iterator[None]:
    """Context of a read-only command: Ctrl-C ends the command, says so, and changes nothing else."""
    try:
        yield
    except KeyboardInterrupt:
        raise click.exceptions.Exit(stopped_watching()) from None
