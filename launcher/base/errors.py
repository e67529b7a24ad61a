"""Every error of the launcher with its exit code, and how a command that only looks ends on Ctrl-C.

Each message is complete: it says what was wrong, where, and what to type next. `launcher.__main__` prints it, and ends
with the class's exit code. Loads nothing heavy.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import click

EXIT_FAILED = 1
EXIT_USAGE = 64
EXIT_DATA = 65
EXIT_STOPPED = 130


class LauncherError(Exception):
    """Anything that ends a command with one message and no traceback."""

    exit_code = EXIT_FAILED


class RefusedError(LauncherError):
    """A command that cannot do what it was asked, with an exit code of its own."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class SizeError(LauncherError, ValueError):
    """Text that is no size or duration. The message says how to write one."""

    exit_code = EXIT_USAGE


class JobError(LauncherError):
    """A job that cannot be run as written: all its faults, one a line, each with its place and the way out.

    `sound` is what of the job could be looked at further (a `spec.Job`), where there is such a part."""

    exit_code = EXIT_USAGE

    def __init__(self, faults: str, sound: Any = None) -> None:
        super().__init__(faults)
        self.sound = sound


class MachineError(LauncherError):
    """A machine that cannot be described as asked."""

    exit_code = EXIT_USAGE


class RunError(LauncherError):
    """A run or submission that is not there, or cannot do what was asked."""


class DataFolderError(RunError):
    """A data folder that is not there, cannot be read, or holds nothing that its runs could train on."""

    exit_code = EXIT_DATA


class FencedError(RunError):
    """A launcher with a higher fencing number has written: this one has been taken over."""


class LeaseLostError(RunError):
    """Another launcher has taken the submission over: this one must write nothing more."""


class EngineError(RunError):
    """What an engine of containers cannot do, or that there is none."""


class ArgumentError(EngineError):
    """A build argument that the Dockerfile does not have, or whose value cannot be."""

    exit_code = EXIT_USAGE


def looked_away(place: str = "") -> int:
    """Say that Ctrl-C ended what only looks, and stopped no run ` on HOST`; returns the exit code."""
    sys.stdout.flush()  # what was printed so far comes before it
    click.echo(f"\nno longer looking; the runs{place} go on", err=True)
    return EXIT_STOPPED


@contextlib.contextmanager
def looking() -> Iterator[None]:
    """Of a command that only looks: Ctrl-C ends it, says so, and changes nothing else."""
    try:
        yield
    except KeyboardInterrupt:
        raise click.exceptions.Exit(looked_away()) from None
