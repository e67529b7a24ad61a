"""Every error of the launcher with its exit code, and the end of read-only commands on Ctrl-C.

Each message is complete: it says what is wrong, where, and what to type next. `launcher.__main__` prints it and exits
with the class's exit code. The codes that the trainer has, too, are in `trainer.base.errors`. Imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Sequence
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


class UnknownNameError(RunError):
    """A name is of no run, submission or server. `known`: the names that would do; empty if the name means several."""

    exit_code = EXIT_USAGE

    def __init__(self, message: str, known: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.known = known


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


class Errors:
    """Errors of one command that do not follow from each other, to raise them as one."""

    def __init__(self) -> None:
        self._errors: list[LauncherError] = []

    def __bool__(self) -> bool:
        return bool(self._errors)

    def add(self, *errors: LauncherError) -> None:
        """Errors that were found."""
        self._errors += errors

    @contextlib.contextmanager
    def collected(self) -> Iterator[None]:
        """A context whose error is kept for later."""
        try:
            yield
        except LauncherError as error:
            self.add(error)

    def raise_all(self) -> None:
        """Raise the errors as one, if there are any: first those with a place in a job, by line, then the others. The
        exit code is that of the gravest: 64, then 65."""
        if len(self._errors) == 1:
            raise self._errors[0]
        if not self._errors:
            return
        lines = list(dict.fromkeys(line for error in self._errors for line in str(error).split("\n")))
        placed = sorted((line for line in lines if _line_of(line) is not None), key=lambda line: _line_of(line) or 0)
        codes = {error.exit_code for error in self._errors}
        code = next((code for code in (EXIT_USAGE, EXIT_DATA) if code in codes), self._errors[0].exit_code)
        text = "\n".join([*placed, *(line for line in lines if _line_of(line) is None)])
        raise JobError(text) if any(isinstance(error, JobError) for error in self._errors) else RefusedError(text, code)


def _line_of(error: str) -> int | None:
    """The line of a job file that an error names at its beginning; 0: the command line. None: no place."""
    match = re.match(r"(?:the command line|--set [^:]*)(?=:| and )|(?!\S+\.csv:)[^:]*:(\d+)(?=:| and )", error)
    return int(match[1] or 0) if match else None


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
