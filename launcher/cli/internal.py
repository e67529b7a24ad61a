"""Commands that engines start: exec, which a user may say, too, and advance."""

from __future__ import annotations

from pathlib import Path

import click

from launcher.cli.options import options
from launcher.engines import registry

ticket_options = options(*(click.option(f"--{name}", metavar="TICKET", hidden=True) for name in registry.ENGINES))
"""By which engine `exec` was started, and what that knows it by."""


@click.command("exec", short_help="Execute one run in this process")
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--attempt", type=int, hidden=True)
@ticket_options
def exec_command(run_dir: Path, attempt: int | None, **tickets: str | None) -> int:
    """Execute one run of a submission natively to its end, and record how it ended."""
    name, ticket = next(((name, ticket) for name, ticket in tickets.items() if ticket), (registry.BY_HAND, ""))
    if attempt is None:
        registry.settle(run_dir)
    return registry.engine(name).execute(run_dir, attempt, ticket)


@click.command("advance", hidden=True)
@click.argument("directory", type=click.Path(path_type=Path))
def advance_command(directory: Path) -> int:
    """In an engine's queue, after other jobs of the submission: record what died, repeat it, and collect in the end."""
    from launcher.base.errors import RunError
    from launcher.results import collect

    queue = registry.queue_of(directory)
    if queue is None:
        raise RunError(f"{directory.name}: its engine has no queue that goes on with it; say: launcher resume")
    queue.come_back(directory, click.echo, lambda submission: collect.collect(submission)[1])
    return 0
