"""`launcher plan`, `launcher matrix` and `launcher schema`: look before a start."""

from __future__ import annotations

from pathlib import Path

import click

from launcher.base import env_file
from launcher.cli.options import (
    ENGINES,
    echo,
    job_options,
    json_option,
    load_job,
    print_json,
    print_table,
    runs_option,
    say,
)
from launcher.engines import registry
from launcher.remote.host_option import on_host


@click.command(short_help="Show a job's runs and which of them fit")
@on_host(job=True)
@job_options
@click.option("--engine", type=ENGINES, help="Same as for submit; checked only if given.")
@click.option("--data", metavar="DIR", help="Same as for submit; checked only if given.")
@json_option
@runs_option
def plan(
    words: tuple[str, ...], settings: tuple[str, ...], gpus: str | None, machine: str | None, cpu_only: bool,
    multirun: bool, engine: str | None, data: str | None, as_json: bool, runs_root: Path,
) -> None:  # fmt: skip
    """Show the runs of a job, and which of them fit this machine. Starts nothing and needs no data."""
    from launcher.cli import tables
    from launcher.engines.base import QueueEngine
    from launcher.job import remarks
    from launcher.supervise import preflight, together

    asked = preflight.Asked(machine, gpus, cpu_only, engine, data, starts=False)
    ready = preflight.check(lambda: load_job(words, settings), asked, runs_root, say)
    job, chosen, offered, planned = ready.job, ready.chosen, ready.machine, ready.planned
    if as_json:
        parallel = together.at_once(planned, offered, job.spec.max_parallel)
        print_json(remarks.plan_as_json(job, planned, offered, parallel))
        return
    print_table(tables.table(planned, offered))
    engine_notes = (f"as {chosen.said}", *chosen.warnings, *ready.data_notes) if chosen else ()
    for line in (*engine_notes, *env_file.notes(), *ready.unchecked):
        echo(line)
    queue = chosen is not None and isinstance(chosen.engine, QueueEngine)
    for line in () if queue else together.lines(job, planned, offered):
        echo(line)
    for line in remarks.before_start(job, planned, offered, contained=chosen is not None and chosen.contained):
        echo(line)


@click.command(short_help="Show what a machine can train")
@click.option(
    "--machine", metavar="NAME|FILE", help="cuda-server, mac-m4-pro, mps-20gb or a file (default: this host)."
)
@click.option("--memory", metavar="24g", help="Memory of each accelerator; on a Mac, the whole memory.")
@json_option
def matrix(machine: str | None, memory: str | None, as_json: bool) -> None:
    """Show which models a machine can train, at which micro-batch, and the manual's figures."""
    from launcher.host.machine import select
    from launcher.memory import combinations, compatibility

    chosen = select(machine, None)
    chosen = combinations.with_memory(chosen, memory) if memory else chosen
    environment = compatibility.environment_of(chosen.mps, len(chosen.gpus), chosen.memory)
    if machine in compatibility.ENVIRONMENTS:
        environment = str(machine)
    if as_json:
        print_json(combinations.as_json(chosen, environment))
        return
    click.echo(chosen.describe())
    print_table(combinations.render(chosen, environment))
    for line in combinations.remarks(chosen, environment):
        click.echo(line)


@click.command(short_help="Print the job file's JSON schema, for editors")
def schema() -> None:
    """Print the JSON schema of job files (draft 2020-12). Editors complete and check a job file with it.

    The first line of a job file names it: # yaml-language-server: $schema=schema.json
    """
    from launcher.job import json_schema

    click.echo(json_schema.as_text(json_schema.job_schema(registry.sections())))
