"""The commands: parse, call, print. Everything heavier than click is imported by the command that needs it."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from launcher import __version__
from launcher.base.errors import RefusedError, looking, refusals
from launcher.cli import completion
from launcher.remote.host_option import on_host

if TYPE_CHECKING:
    from launcher.engines.choice import Choice
    from launcher.host.machine import Machine
    from launcher.job.spec import Job

F = TypeVar("F", bound=Callable[..., Any])


def options(*given: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator."""

    def decorate(function: F) -> F:
        for option in reversed(given):
            function = option(function)
        return function

    return decorate


runs_option = click.option(
    "--runs", "runs_root", default=lambda: os.environ.get("LAUNCHER_RUNS", "runs"), type=click.Path(path_type=Path),
    help="Folder of the submissions (default: $LAUNCHER_RUNS, else runs).",
)  # fmt: skip
detach_option = click.option("--detach", is_flag=True, help="Leave them to a process of its own, and return at once.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
ENGINES = click.Choice(["auto", "docker", "native", "slurm"])
job_options = options(
    click.argument("words", metavar="JOB|KEY=VALUE…", nargs=-1, required=True, shell_complete=completion.job_words),
    click.option("--set", "settings", multiple=True, metavar="PATH=VALUE", help="Change a field of the job file."),
    click.option("--gpus", metavar="0,1", help="The GPUs that may be used (default: all, or CUDA_VISIBLE_DEVICES)."),
    click.option("--machine", metavar="NAME|FILE", help="cuda-server, mac-m4-pro or a YAML file (default: this host)."),
    click.option("--cpu", "cpu_only", is_flag=True, help="Train on the CPU, whatever the job asks for."),
    click.option("--multirun", is_flag=True, help="Accepted, and needless: `model=a,b` is several runs anyway."),
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, message="%(version)s")
def cli() -> None:
    """Train document classifiers as batch jobs: expand a job file into runs, run them, collect what they bring."""


@cli.command()
@on_host(job=True)
@job_options
@click.option("--engine", type=ENGINES, help="As for submit; looked at only where it is given.")
@click.option("--data", metavar="DIR", help="As for submit; looked at only where it is given.")
@json_option
@runs_option
def plan(
    words: tuple[str, ...], settings: tuple[str, ...], gpus: str | None, machine: str | None, cpu_only: bool,
    multirun: bool, engine: str | None, data: str | None, as_json: bool, runs_root: Path,
) -> None:  # fmt: skip
    """Show the runs of a job, and which of them fit this machine. Starts nothing, needs no data."""
    from launcher.cli import tables
    from launcher.job import data_folder, expansion, remarks

    with refusals():
        job, chosen = _job(words, settings), None
        if engine == "slurm":
            chosen = slurm.choose(job, machine)
        elif engine:
            chosen = _engine(engine, job, _machine(machine, gpus), cpu_only)
        found = chosen.machine if chosen else _machine(machine, gpus)
        planned = expansion.expand(job, found, cpu_only)
        expansion.check_follows(job, runs_root)
        data_dir = data_folder.find_data(data, planned) if data else None
        if chosen:
            from launcher.engines import choice

            choice.check_readable(data_dir, runs_root, chosen)
    if as_json:
        click.echo(json.dumps(remarks.plan_as_json(job, planned, found), indent=2, ensure_ascii=False))
        return
    _print(tables.table(planned, found))
    for line in (f"as {chosen.said}", *chosen.warnings) if chosen else ():
        click.echo(line)
    for line in remarks.before_start(job, planned, found, native=chosen is None or chosen.image is None):
        click.echo(line)


@cli.command()
@on_host(job=True, detached=True)
@job_options
@click.option(
    "--engine",
    type=ENGINES,
    default="auto",
    help="How runs are executed. auto: docker where an engine and a matching image are there, else native.",
)
@click.option("--partition", metavar="NAME", help="Of Slurm (as slurm.partition of the job file).")
@click.option("--account", metavar="NAME", help="Of Slurm.")
@click.option("--qos", metavar="NAME", help="Of Slurm.")
@click.option("--data", metavar="DIR", help="Data folder (default: $DATA_DIR, else data).")
@click.option("--fresh", is_flag=True, help="Train everything anew, also what equals an earlier run that succeeded.")
@click.option("--reuse-stale", is_flag=True, help="Reuse equal runs of another version of the trainer, too.")
@detach_option
@runs_option
def submit(
    words: tuple[str, ...], settings: tuple[str, ...], gpus: str | None, machine: str | None, cpu_only: bool,
    multirun: bool, engine: str, partition: str | None, account: str | None, qos: str | None, data: str | None,
    fresh: bool, reuse_stale: bool, detach: bool, runs_root: Path,
) -> int:  # fmt: skip
    """Start a job's runs, as many at once as fit, and stay until the last has ended. With --engine slurm they are left
    to Slurm, and it returns at once.

    A run that equals an earlier one of the same runs folder (configuration, data and trainer) is reused.

    Ends with 0 when all succeeded, 1 when some did not, 64 for a bad job, 65 without data, 130 when stopped. Ctrl-C
    stops the runs with their checkpoints, a second one at once.
    """
    from launcher.engines import choice
    from launcher.job import data_folder, expansion, remarks
    from launcher.record import reuse, submission
    from launcher.supervise import detached

    of_slurm = {"partition": partition, "account": account, "qos": qos}
    if engine == "slurm":
        if gpus is not None:
            raise click.UsageError("--gpus is not for slurm, which chooses GPUs itself; say resources.gpus")
        given = tuple(f"slurm.{name}={value}" for name, value in of_slurm.items() if value)
        return slurm.submit(words, (*settings, *given), machine, cpu_only, data, fresh, reuse_stale, runs_root)
    if named := [name for name, value in of_slurm.items() if value]:
        raise click.UsageError(f"--{named[0]} goes with --engine slurm")
    with refusals():
        job, found = _job(words, settings), _machine(machine, gpus)
        chosen = _engine(engine, job, found, cpu_only)
        planned = expansion.expand(job, chosen.machine, cpu_only)
        expansion.refuse_misfits(planned)
        expansion.check_sources(job, runs_root)
        data_dir = data_folder.find_data(data, planned)
        choice.check_readable(data_dir, runs_root, chosen)
        root = runs_root.resolve()
        completed = submission.complete(planned, root, data_dir, chosen)
        equal, serving = reuse.split(completed, root, fresh, reuse_stale)
        directory = submission.create(job, completed, serving, root, data_dir, chosen)
        notes = remarks.before_start(job, planned, chosen.machine, native=chosen.image is None)
        notes += remarks.unset_variables(job, os.environ, native=chosen.image is None)
        notes += choice.network_remarks([each for each in completed if each.name not in serving], root, chosen)
        notes += remarks.reused_runs(equal, serving)
        if detach:
            detached.detach(directory, gpus, machine)
    click.echo(f"{directory.name}: {len(planned)} runs as {chosen.said}, on {chosen.machine.describe()}")
    for line in (*chosen.warnings, *notes):
        click.echo(line)
    return 0 if detach else _drive(directory, chosen)


@cli.command()
@on_host(detached=True)
@click.argument("name", metavar="[SUBMISSION]", required=False, shell_complete=completion.submissions)
@click.option("--gpus", metavar="0,1", help="The GPUs that may be used.")
@click.option("--machine", metavar="NAME|FILE", help="As for submit.")
@detach_option
@runs_option
def resume(name: str | None, gpus: str | None, machine: str | None, detach: bool, runs_root: Path) -> int:
    """Go on with a submission: what was queued, lost or stopped, each from its last checkpoint."""
    from launcher.engines import choice
    from launcher.job import remarks
    from launcher.record import submission
    from launcher.record.find import find_submission, read_submission
    from launcher.record.locks import is_locked
    from launcher.supervise import detached

    with refusals():
        directory = find_submission(runs_root, name).resolve()
        written = read_submission(directory)

    def requeue() -> None:
        click.echo(f"{directory.name}: {remarks.on_resume(directory, submission.requeue(directory))}")
        sys.stdout.flush()

    with refusals():
        if written.get("engine") == "slurm":
            return slurm.advance(directory, requeue)
        chosen = choice.again(str(written.get("engine")), _machine(machine, gpus))
        if is_locked(directory / "supervisor.lock"):
            raise RefusedError(
                f"{directory.name}: another launcher drives it; see it: launcher status {directory.name}", 1
            )
        if detach:
            click.echo(detached.detach(directory, gpus, machine))
            return 0
    return _drive(directory, chosen, requeue)


def _drive(directory: Path, chosen: Choice, prepare: Callable[[], None] | None = None) -> int:
    """Supervise to the end, print what happens, then what came of it. `prepare`: see `supervisor.run`."""
    from launcher import engines
    from launcher.cli import tables, watch
    from launcher.record import submission
    from launcher.results import collect, leaderboard
    from launcher.supervise import supervisor

    with refusals():
        announcer = tables.Announcer(directory)
        engine = engines.engine(chosen.engine.name)
        code = supervisor.run(directory, chosen.machine, engine, submission.rules(directory), announcer.event, prepare)
        rows, champion = collect.collect(directory)
    at = f"{directory.name} --runs {_shown(directory.parent)}"
    shown = watch.status_json(directory)
    if shown["state"] in ("running", "unattended"):
        click.echo(f"the runs go on without this launcher; see them: launcher status {at}")
        return code
    click.echo()
    _print(leaderboard.render(rows))
    click.echo()
    for what, path in collect.places(directory):
        click.echo(f"{what + ':':12} {path}")
    click.echo(champion)
    if code == supervisor.EXIT_STOPPED:
        click.echo(f"stopped; go on with: launcher resume {at}")
    elif code:
        failed = [run["name"] for run in shown["runs"] if run["state"] not in ("succeeded", "reused")]
        log = f"{directory.name}/{failed[0]} --runs {_shown(directory.parent)}"
        click.echo(f"not succeeded: {', '.join(failed)}; read why: launcher logs {log}")
    return code


@cli.command()
@on_host()
@click.argument("name", metavar="[SUBMISSION]", required=False, shell_complete=completion.submissions)
@json_option
@click.option("-w", "--watch", "watched", is_flag=True, help="Go on showing it until it is over.")
@runs_option
def status(name: str | None, as_json: bool, watched: bool, runs_root: Path) -> None:
    """Show how a submission's runs fare (default: the latest)."""
    from launcher.cli import live, watch
    from launcher.record.find import find_submission

    with looking(), refusals():
        directory = find_submission(runs_root, name)
        if watched:
            live.watch_submission(directory, as_json)
        shown = watch.status_json(directory)
    if as_json:
        click.echo(json.dumps(shown, indent=2, ensure_ascii=False))
        return
    None if watched else _print(watch.status_table(shown))
    if shown["state"] == "unattended":
        at = f"{directory.name} --runs {_shown(runs_root)}"
        click.echo(f"no launcher drives it: what is queued stays so until: launcher resume {at}")


@cli.command()
@on_host()
@click.argument("run", shell_complete=completion.runs)
@click.option("-f", "--follow", is_flag=True, help="Go on printing until the run has ended.")
@runs_option
def logs(run: str, follow: bool, runs_root: Path) -> None:
    """Print a run's log. RUN is its directory, SUBMISSION/NAME, or a name or number in the latest submission."""
    from launcher.cli import watch
    from launcher.record.find import find_run

    with looking(), refusals():
        run_dir = find_run(runs_root, run)
        if "/" not in run and not Path(run, "run.json").is_file():
            click.echo(f"{run_dir.parent.name}/{run_dir.name}:", err=True)  # beside the log, which is often piped on
        watch.follow_log(run_dir, follow)


@cli.command()
@on_host()
@click.argument("name", metavar="[SUBMISSION|RUN]", required=False, shell_complete=completion.submissions_and_runs)
@runs_option
def stop(name: str | None, runs_root: Path) -> None:
    """Stop a run, or all runs of a submission, with their checkpoints (default: the latest submission)."""
    from launcher.base.errors import RunError
    from launcher.engines.native import execute
    from launcher.record.find import find_run, find_submission, list_runs, list_submissions
    from launcher.record.journal import read_status
    from launcher.record.states import ENDED
    from launcher.supervise import supervisor

    with refusals():
        try:
            directory = find_submission(runs_root, name)
            targets = list_runs(directory)
        except RunError as no_submission:
            if name is None or not list_submissions(runs_root):
                raise
            try:
                targets = [find_run(runs_root, name)]
            except RunError as no_run:
                raise RunError(f"{no_submission}\n{no_run}") from None
            directory = targets[0].parent
        touched = supervisor.stop(targets, execute.GRACE + 5)
        still = [path.name for path in targets if read_status(path).state not in ENDED]
    click.echo(f"{directory.name}: " + (f"stopped: {_listed(touched)}" if touched else "nothing was running or queued"))
    if touched:
        at = directory.resolve()
        click.echo(f"go on with: launcher resume {at.name} --runs {_shown(at.parent)}")
    if still:
        raise RefusedError(f"not ended yet: {_listed(still)}", 1)


def _listed(names: Sequence[str], most: int = 12) -> str:
    """Names of runs, of many the first ones and how many more."""
    more = f" … and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


@cli.command("collect")
@on_host(brings=True)
@click.argument("name", metavar="[SUBMISSION]", required=False, shell_complete=completion.submissions)
@click.option("--champion", type=click.Path(path_type=Path), help="Folder of the best model (default: RUNS/champion).")
@click.option("--replace", is_flag=True, help="Replace a champion that was validated on another split, too.")
@json_option
@runs_option
def collect_command(name: str | None, champion: Path | None, replace: bool, as_json: bool, runs_root: Path) -> None:
    """Write leaderboard.csv, and put the best model into champion/ (default: the latest submission)."""
    from launcher.record.find import find_submission
    from launcher.results import collect, leaderboard

    with refusals():
        directory = find_submission(runs_root, name)
        rows, line = collect.collect(directory.resolve(), champion, replace)
    if as_json:
        click.echo(
            json.dumps({"submission": directory.name, "rows": rows, "champion": line}, indent=2, ensure_ascii=False)
        )
        return
    _print(leaderboard.render(rows))
    click.echo(f"{os.path.relpath(directory / 'leaderboard.csv')}\n{line}")


@cli.command()
@click.option(
    "--machine", metavar="NAME|FILE", help="cuda-server, mac-m4-pro, mps-20gb or a file (default: this host)."
)
@click.option("--memory", metavar="24g", help="Memory of each accelerator; on a Mac, all of its memory.")
@json_option
def matrix(machine: str | None, memory: str | None, as_json: bool) -> None:
    """Show what a machine can train, at which micro-batch, and what the manual says of it."""
    from launcher.memory import combinations, compatibility

    with refusals():
        found = _machine(machine, None)
        found = combinations.with_memory(found, memory) if memory else found
    environment = compatibility.environment_of(found.mps, len(found.gpus), found.memory)
    if machine in compatibility.ENVIRONMENTS:
        environment = str(machine)
    if as_json:
        click.echo(json.dumps(combinations.as_json(found, environment), indent=2, ensure_ascii=False))
        return
    click.echo(found.describe())
    _print(combinations.render(found, environment))
    for line in combinations.remarks(found, environment):
        click.echo(line)


@cli.command("doctor")
@click.option("--data", metavar="DIR", help="Data folder to look at.")
@json_option
@runs_option
def doctor_command(data: str | None, as_json: bool, runs_root: Path) -> int:
    """Say what this machine lacks for training, and the command that mends it."""
    from launcher.host.checks import MARKS, examine

    checks = examine(data, runs_root)
    if as_json:
        click.echo(json.dumps([vars(check) for check in checks], indent=2, ensure_ascii=False))
    else:
        for check in checks:
            mend = f"\n               → {check.mend}" if check.mend else ""
            click.echo(f"{MARKS[check.level]} {check.what:12} {check.said}{mend}")
    return 1 if any(check.level == "missing" for check in checks) else 0


def _job(words: tuple[str, ...], settings: tuple[str, ...]) -> Job:
    from launcher.base.errors import JobError
    from launcher.job import document, expansion, spec

    sent: bytes | None = click.get_current_context().obj
    first, rest = words[0], words[1:]
    try:
        if sent is None and not document.names_file(first):
            return spec.from_overrides(words, settings)
        for word in rest:
            if "=" not in word:
                raise RefusedError(f"{word}: a job file is named already ({first}); further words are key=value", 64)
        return spec.load(Path(first), rest, settings, sent)
    except JobError as error:
        raise expansion.all_faults(error) from None


def _machine(name: str | None, gpus: str | None) -> Machine:
    from launcher.host import machine

    return machine.select(name, gpus)


def _engine(wanted: str, job: Job, found: Machine, cpu_only: bool) -> Choice:
    from launcher.engines import choice

    wants_gpus = bool(found.devices) and not cpu_only and job.spec.resources.gpus != 0
    return choice.choose(wanted, job.spec.image, found, wants_gpus, job.document.place(("image",)))


def _print(renderable: Any) -> None:
    """A table: fitted to a terminal, unfolded in a file or pipe."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 220, highlight=False, markup=False).print(renderable)


def _shown(path: Path) -> str:
    return shlex.quote(os.path.relpath(path))  # for a shell


from launcher.cli import cache, images, slurm  # noqa: E402, F401  further commands, which need what is above
from launcher.cli import looking as looking_commands  # noqa: E402, F401
