"""Commands of the slurm engine, and those that its jobs execute. Registered by `launcher.cli.main`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launcher.base.errors import refusals
from launcher.cli.main import _job, _machine, _shown, cli

if TYPE_CHECKING:
    from launcher.engines.choice import Choice
    from launcher.job.spec import Job


def choose(job: Job, machine: str | None) -> Choice:
    """Slurm as it would execute the job, on the nodes that it has, or on those that `machine` describes."""
    from launcher.engines.slurm import choice

    return choice.choose(job, _machine(machine, None) if machine else choice.machine(job.spec.slurm))


def submit(
    words: tuple[str, ...], settings: tuple[str, ...], machine: str | None, cpu_only: bool, data: str | None,
    fresh: bool, reuse_stale: bool, runs_root: Path,
) -> int:  # fmt: skip
    """`submit --engine slurm`: make the submission, hand it to Slurm, and leave."""
    from launcher.engines.slurm import calls, choice
    from launcher.job import data_folder, expansion, remarks
    from launcher.record import reuse, submission

    with refusals():
        job = _job(words, settings)
        chosen = choose(job, machine)
        planned = expansion.expand(job, chosen.machine, cpu_only)
        expansion.refuse_misfits(planned)
        expansion.check_sources(job, runs_root)
        data_dir, root = data_folder.find_data(data, planned), runs_root.resolve()
        completed = choice.named(submission.complete(planned, root, data_dir, chosen), job, chosen)
        equal, serving = reuse.split(completed, root, fresh, reuse_stale)
        choice.check([each for each in completed if each.name not in serving], job)
        calls.snapshot()  # what could not be seen later is not begun
        directory = submission.create(job, completed, serving, root, data_dir, chosen)
        click.echo(f"{directory.name}: {len(planned)} runs as {chosen.said}, on {chosen.machine.describe()}")
        native = job.spec.slurm.runtime == "native"
        notes = remarks.unset_variables(job, os.environ, native=native) + remarks.reused_runs(equal, serving)
        for line in (*chosen.warnings, *notes):
            click.echo(line)
        return advance(directory)


def advance(directory: Path, prepare: Callable[[], None] | None = None) -> int:
    """Hand to Slurm what waits, and say how it goes on. Raises RunError."""
    from launcher.base.errors import SlurmError
    from launcher.engines.slurm import advance as slurm_submit
    from launcher.results import collect

    at = f"{directory.name} --runs {_shown(directory.parent)}"
    try:
        over = slurm_submit.advance(directory, click.echo, prepare)
    except SlurmError as error:
        raise SlurmError(f"{error}\nwhat Slurm has not taken stays queued; go on with: launcher resume {at}") from None
    if over:
        click.echo(collect.collect(directory)[1])
    else:
        click.echo(f"Slurm goes on with it; see it: launcher status {at}")
    return 0


@cli.command("exec")
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--attempt", type=int, hidden=True)
@click.option("--slurm", metavar="NUMBER", hidden=True)
def exec_command(run_dir: Path, attempt: int | None, slurm: str | None) -> int:
    """Execute one run of a submission natively to its end, and record how it ended."""
    from launcher import engines
    from launcher.engines.native import execute

    with refusals():
        if slurm is not None and attempt is not None:
            from launcher.engines.slurm import task

            return task.run(run_dir, attempt, slurm)
        if attempt is None:
            engines.settle(run_dir)
        return execute.execute(run_dir, attempt)


@cli.command("advance", hidden=True)
@click.argument("directory", type=click.Path(path_type=Path))
def advance_command(directory: Path) -> int:
    """In Slurm, after other jobs of the submission: record what died, repeat it, and collect in the end."""
    from launcher.engines.slurm import advance as slurm_submit

    with refusals():
        slurm_submit.settle(directory, click.echo)
    return 0
