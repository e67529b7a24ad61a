"""`launcher submit`, `resume` and `stop`: start and stop runs."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launcher.base import env_file
from launcher.base.errors import EXIT_INTERRUPTED, RefusedError
from launcher.base.sizes import listed
from launcher.cli import completion
from launcher.cli.options import (
    ENGINES,
    detach_option,
    echo,
    engine_options,
    engine_settings,
    job_options,
    load_job,
    print_table,
    runs_option,
    say,
    shown,
)
from launcher.remote.host_option import on_host
from trainer.base.errors import EXIT_FAILED, EXIT_USAGE
from trainer.base.plural import counted

if TYPE_CHECKING:
    from launcher.engines.base import Choice, QueueEngine
    from launcher.host.machine import Machine
    from launcher.record.lease import Lease


@click.command(short_help="Start a job's runs")
@on_host(job=True, detached=True)
@job_options
@click.option(
    "--engine",
    type=ENGINES,
    default="auto",
    help="How to execute runs. auto: docker if an engine and a matching image exist, else native.",
)
@engine_options
@click.option("--data", metavar="DIR", help="Data folder (default: $DATA_DIR, else data).")
@click.option("--fresh", is_flag=True, help="Train again even runs that equal an earlier run that succeeded.")
@click.option("--reuse-stale", is_flag=True, help="Also reuse equal runs of another version of the trainer.")
@detach_option
@runs_option
def submit(
    words: tuple[str, ...], settings: tuple[str, ...], gpus: str | None, machine: str | None, cpu_only: bool,
    multirun: bool, engine: str, data: str | None, fresh: bool, reuse_stale: bool, detach: bool, runs_root: Path,
    **of_engines: str | None,
) -> int:  # fmt: skip
    """Start a job's runs, as many at once as fit, and wait until the last has ended. With --engine slurm, submit them
    to Slurm and return immediately.

    Reuses a run's result if an equal run (configuration, data and trainer) is in the same runs folder.

    Exit codes: 0 all runs succeeded, 1 some did not, 64 bad job, 65 no data, 130 stopped. Ctrl-C lets the runs save
    their checkpoints and stops them; a second Ctrl-C stops them immediately.
    """
    from launcher.engines.base import QueueEngine
    from launcher.host import account
    from launcher.job import remarks
    from launcher.supervise import detached, preflight, submission, together

    given = (*settings, *engine_settings(engine, of_engines))
    asked = preflight.Asked(machine, gpus, cpu_only, engine, data, True, fresh, reuse_stale)
    ready = preflight.check(lambda: load_job(words, given), asked, runs_root, say)
    job, chosen, planned, root = ready.job, ready.chosen, ready.planned, runs_root.resolve()
    assert chosen is not None
    if not isinstance(chosen.engine, QueueEngine):
        account.check()
    directory = submission.create(job, ready.completed, ready.serving, root, ready.data_dir, chosen)
    chosen.engine.created(directory)
    queue = chosen.engine if isinstance(chosen.engine, QueueEngine) else None
    notes = [] if queue else together.lines(job, planned, chosen.machine)
    notes += [] if queue else remarks.before_start(job, planned, chosen.machine, chosen.contained)
    notes += ["note: --detach has no effect: this command returns immediately"] if queue and detach else []
    notes += [*env_file.notes(), *ready.unchecked]
    notes += remarks.unset_variables(job, os.environ)
    notes += [*ready.data_notes, *chosen.engine.remarks(ready.new, root, chosen)]
    notes += remarks.reused_runs(ready.equal, ready.serving)
    notes += remarks.as_root(chosen.contained, bool(chosen.refused))
    if detach and not queue:
        detached.detach(directory, gpus, machine)
    echo(f"{directory.name}: {counted(len(planned), 'run')} as {chosen.said}, on {chosen.machine.describe()}")
    for line in (*chosen.warnings, *notes):
        echo(line)
    if queue:
        return _hand_over(directory, queue)
    if detach:
        echo(_how_to_follow(directory))
        return 0
    return _drive(directory, chosen)


@click.command(short_help="Continue a submission that was interrupted")
@on_host(detached=True)
@click.argument("name", metavar="[SUBMISSION|RUN]", required=False, shell_complete=completion.submissions_and_runs)
@click.option("--gpus", metavar="0,1", help="GPUs to use.")
@click.option("--machine", metavar="NAME|FILE", help="As for submit.")
@click.option(
    "--take-over", is_flag=True, help="Continue even if another launcher seems to be running the submission; it stops."
)
@click.option("--in-background", is_flag=True, hidden=True, help="What --detach starts.")
@detach_option
@runs_option
def resume(
    name: str | None, gpus: str | None, machine: str | None, take_over: bool, in_background: bool, detach: bool,
    runs_root: Path,
) -> int:  # fmt: skip
    """Continue a submission: start its queued, stopped, lost and failed runs, each from its last checkpoint, but none
    that failed for its configuration or data. Of a RUN, start only this one, and queued runs that it needs."""
    from launcher.engines import registry
    from launcher.engines.base import SupervisedEngine
    from launcher.host.machine import select
    from launcher.job import remarks
    from launcher.record import lease
    from launcher.record.find import find_submission_or_run, list_runs, read_submission
    from launcher.supervise import detached, preflight, stop_request, submission

    directory, run = find_submission_or_run(runs_root, name)
    directory, only = directory.resolve(), frozenset([run]) if run else None
    read_submission(directory)  # raises if it cannot be read
    selected: Machine | None = None
    its_engine = registry.of_submission(directory)

    def requeue(mine: lease.Lease) -> None:
        if isinstance(its_engine, SupervisedEngine):
            its_engine.end_orphans(list_runs(directory), click.echo)
        again = submission.requeue(
            directory, mine, only, click.echo, lambda requests: preflight.check_again(requests, directory, say)
        )
        echo(f"{directory.name}: {remarks.on_resume(directory, again, only)}")
        for line in filter(None, (*selected.lost, selected.ignored) if selected is not None else ()):
            echo(f"note: {line}")
        sys.stdout.flush()
        if in_background:
            detached.started(directory)

    queue = registry.queue_of(directory)
    chosen = None
    for option, value in (("--gpus", gpus), ("--machine", machine)):
        if queue and value is not None:
            raise RefusedError(f"{option} has no effect: {queue.title} chooses the machine and its GPUs", EXIT_USAGE)
    if not queue:
        selected = select(machine, gpus)
        chosen = registry.supervised(registry.of_submission(directory).name).again(selected)
    if not take_over:
        lease.refuse_if_locked(directory)
    if not in_background:
        stop_request.forget(directory)
    if queue and run:
        raise RefusedError(
            f"{run}: {queue.title} continues whole submissions only: launcher resume {directory.name}", EXIT_FAILED
        )
    if queue:
        return _hand_over(directory, queue, requeue, take_over)
    assert chosen is not None
    if detach:
        click.echo(detached.detach(directory, gpus, machine, take_over, run))
        echo(_how_to_follow(directory))
        return 0
    chosen.engine.created(directory)
    return _drive(directory, chosen, requeue, take_over, only)


def _how_to_follow(directory: Path) -> str:
    """What to type to see or stop a submission in the background."""
    at = f"{directory.name} --runs {shown(directory.parent)}"
    return f"it runs in the background; follow it: launcher attach {at}; see its state: launcher status {at}"


def _hand_over(
    directory: Path, queue: QueueEngine, prepare: Callable[[Lease], None] | None = None, take_over: bool = False
) -> int:
    """Pass the waiting runs to an engine that has a queue, and print how to see them. Raises RunError."""
    from launcher.results import collect

    at = f"{directory.name} --runs {shown(directory.parent)}"
    if queue.advance(directory, click.echo, prepare, take_over):
        click.echo(collect.collect(directory)[1])
    else:
        echo(f"{queue.title} runs it now, without this launcher (as with --detach); see: launcher status {at}")
    return 0


def _drive(
    directory: Path, chosen: Choice, prepare: Callable[[Lease], None] | None = None, take_over: bool = False,
    only: frozenset[str] | None = None,
) -> int:  # fmt: skip
    """Supervise to the end; print the events, then the results. `prepare`, `take_over`: see `supervisor.run`; `only`:
    see `supervisor.Rules`."""
    from launcher.cli import tables, watch
    from launcher.engines import registry
    from launcher.record.records import Records
    from launcher.record.states import ENDED, GOOD
    from launcher.results import collect, leaderboard
    from launcher.supervise import submission, supervisor

    announcer = tables.Announcer(directory)
    engine = registry.supervised(chosen.engine.name)
    rules = dataclasses.replace(submission.rules(directory), only=only)
    code = supervisor.run(directory, chosen.machine, engine, rules, announcer.event, prepare, take_over)
    at = f"{directory.name} --runs {shown(directory.parent)}"
    try:
        rows, champion = collect.collect(directory, say=click.echo)
    except KeyboardInterrupt:
        raise RefusedError(
            f"\nStopped while the results were collected; later: launcher collect {at}", EXIT_INTERRUPTED
        ) from None
    with Records(directory) as records:
        observed = watch.observe(directory, records)
    over = watch.submission_state(directory, [status for _, status in observed]) not in ("running", "unattended")
    if not over and only is None:
        echo(f"the runs continue without this launcher; see: launcher status {at}")
        return code
    click.echo()
    print_table(leaderboard.render(rows))
    click.echo()
    files, upload = collect.places(directory)
    for what, path in files:
        click.echo(f"{what + ':':12} {path}")
    for line in champion.split("\n"):
        echo(line)
    if upload:
        click.echo(f"upload this: {upload}")
    if code == EXIT_INTERRUPTED:
        echo(f"stopped; continue with: launcher resume {at}")
    elif code:
        failed = [
            run_dir.name
            for run_dir, status in observed
            if status.state not in GOOD and (only is None or status.state in ENDED)
        ]
        if failed:  # empty if the run directories are gone
            log = f"{directory.name}/{failed[0]} --runs {shown(directory.parent)}"
            echo(f"not succeeded: {listed(failed)}; for the reason: launcher logs {log}")
    return code


@click.command(short_help="Stop runs, with their checkpoints")
@on_host()
@click.argument("name", metavar="[SUBMISSION|RUN]", required=False, shell_complete=completion.submissions_and_runs)
@click.option("--now", is_flag=True, help="Do not wait for checkpoints.")
@runs_option
def stop(name: str | None, now: bool, runs_root: Path) -> None:
    """Stop a run or a whole submission (default: the latest). Each run saves its checkpoint first. A run that has not
    ended after half a minute is killed."""
    from launcher.engines.outcome import GRACE
    from launcher.record.find import find_submission_or_run, list_runs
    from launcher.record.journal import look
    from launcher.record.states import UNKNOWN
    from launcher.supervise import others, stopping

    directory, run = find_submission_or_run(runs_root, name)
    targets = [directory / run] if run else list_runs(directory)
    try:
        touched, problems = stopping.stop(directory, targets, 0 if now else GRACE + 2, click.echo)
    except KeyboardInterrupt:
        raise RefusedError("\nStopped waiting; the runs were asked to stop.", EXIT_INTERRUPTED) from None
    statuses = {path: look(path) for path in targets}
    still = [path.name for path, status in statuses.items() if not stopping.is_over(path, status)]
    still = [name for name in still if name not in problems]
    for path, status in statuses.items():
        if status.state == UNKNOWN:
            click.echo(f"note: {path.name}: {status.reason}")
    click.echo(f"{directory.name}: " + (f"stopped: {listed(touched)}" if touched else "nothing was running or queued"))
    if touched:
        at = directory.resolve()
        click.echo(f"continue with: launcher resume {at.name} --runs {shown(at.parent)}")
    if name is None and (note := others.note(directory, "to stop it: launcher stop")):
        echo(note)
    errors = [f"{name}: cannot be stopped: {why}" for name, why in problems.items()]
    errors += [f"still running: {listed(still)}; try again: launcher stop --now"] if still else []
    if errors:
        raise RefusedError("\n".join(errors), EXIT_FAILED)
