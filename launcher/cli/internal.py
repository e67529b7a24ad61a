"""Commands that engines start: `exec`, which users may also call, and `advance`."""

from __future__ import annotations

from pathlib import Path

import click

from launcher.cli.options import options
from launcher.engines import registry

ticket_options = options(*(click.option(f"--{name}", metavar="TICKET", hidden=True) for name in registry.ENGINES))
"""The engine that started `exec`, and the engine's id for it."""


@click.command("exec", short_help="Execute one run in this process")
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--attempt", type=int, hidden=True)
@ticket_options
def exec_command(run_dir: Path, attempt: int | None, **tickets: str | None) -> int:
    """Execute one run of a submission natively, and record how it ended."""
    from launcher.record.request import read_request

    name, ticket = next(((name, ticket) for name, ticket in tickets.items() if ticket), (registry.BY_HAND, ""))
    if attempt is None:
        read_request(run_dir)  # raises if this is no run
        registry.settle(run_dir)
    return registry.engine(name).execute(run_dir, attempt, ticket)


@click.command("advance", hidden=True)
@click.argument("directory", type=click.Path(path_type=Path))
def advance_command(directory: Path) -> int:
    """Runs in an engine's queue after other jobs of the submission: records and retries dead runs, and collects at
    the end."""
    from launcher.base.errors import RunError
    from launcher.results import collect

    queue = registry.queue_of(directory)
    if queue is None:
        raise RunError(f"{directory.name}: its engine has no queue; run: launcher resume")
    queue.come_back(directory, click.echo, lambda submission: collect.collect(submission)[1])
    return 0
