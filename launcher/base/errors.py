"""What ends a command: one message, and the contract's exit code. Loads nothing heavy."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import click


class RefusedError(Exception):
    """What a command cannot do, with the exit code that says of which kind it is."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


EXIT_LOOKED_AWAY = 130


def looked_away(place: str = "") -> int:
    """Say that Ctrl-C ended what only looks, and stopped no run ` on HOST`; returns the exit code."""
    sys.stdout.flush()  # what was printed so far comes before it
    click.echo(f"\nno longer looking; the runs{place} go on", err=True)
    return EXIT_LOOKED_AWAY


@contextlib.contextmanager
def looking() -> Iterator[None]:
    """Of a command that only looks: Ctrl-C ends it, says so, and changes nothing else."""
    try:
        yield
    except KeyboardInterrupt:
        raise click.exceptions.Exit(looked_away()) from None


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Errors of the layers below, as exit codes: 64 for a bad job or machine, 65 for missing data, 1 for the rest."""
    from launcher.host.machine import MachineError
    from launcher.job.document import JobError
    from launcher.record.runs import RunError

    try:
        yield
    except (JobError, MachineError) as error:
        raise RefusedError(str(error), 64) from None
    except RunError as error:
        raise RefusedError(str(error), 65 if "data folder" in str(error) else 1) from None
