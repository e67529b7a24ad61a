"""Commands that only look: attach, top, replay; and the shell's completion. Registered by `launcher.cli.main`."""

from __future__ import annotations

from pathlib import Path

import click

from launcher.base.errors import RefusedError, looking, refusals
from launcher.cli import completion
from launcher.cli.main import _print, _shown, cli, json_option, runs_option


@cli.command()
@click.argument("name", metavar="[SUBMISSION]", required=False, shell_complete=completion.submissions)
@runs_option
def attach(name: str | None, runs_root: Path) -> int:
    """Follow a submission that another launcher drives, until it is over (default: the latest).

    Prints what `submit` prints and ends with its exit codes. Ctrl-C ends the looking alone: the runs go on.
    """
    from launcher.cli import live, tables
    from launcher.record.find import find_submission, list_runs
    from launcher.record.journal import read_status
    from launcher.record.states import GOOD
    from launcher.results import collect, leaderboard

    with looking(), refusals():
        directory = find_submission(runs_root, name).resolve()
        at = f"{directory.name} --runs {_shown(directory.parent)}"
        click.echo(f"{directory.name}: {len(list_runs(directory))} runs; Ctrl-C ends the looking, and they go on")
        code = live.follow(directory, tables.Announcer(directory).event)
        if code is None:
            raise RefusedError(f"{directory.name}: no launcher drives it; go on with it: launcher resume {at}", 1)
        rows = collect.leaderboard_rows(directory)
    click.echo()
    _print(leaderboard.render(rows))
    bad = [path.name for path in list_runs(directory) if read_status(path).state not in GOOD]
    if code == 130:
        click.echo(f"stopped; go on with: launcher resume {at}")
    elif bad:
        log = f"{directory.name}/{bad[0]} --runs {_shown(directory.parent)}"
        click.echo(f"not succeeded: {', '.join(bad)}; read why: launcher logs {log}")
    return code


@cli.command()
@click.option("--once", is_flag=True, help="Print it once, and end.")
@json_option
def top(once: bool, as_json: bool) -> None:
    """Show what the machine does: GPUs and the runs that have them, cores, memory. Ctrl-C ends it."""
    from launcher.cli import live

    with looking():
        live.show_top(once, as_json)


@cli.command()
@click.argument("name", metavar="[SUBMISSION|RUN]", required=False, shell_complete=completion.submissions_and_runs)
@runs_option
def replay(name: str | None, runs_root: Path) -> int:
    """Check journals: whether each state could follow the one before (default: the latest submission)."""
    from launcher.base.errors import RunError
    from launcher.record.find import find_run, find_submission, list_runs
    from launcher.record.journal import read_events, replay

    with refusals():
        try:
            paths = list_runs(find_submission(runs_root, name))
        except RunError:
            if name is None:
                raise
            paths = [find_run(runs_root, name)]
    bad = 0
    for run_dir in paths:
        events = read_events(run_dir)
        try:
            replay(events)
            click.echo(f"✓ {run_dir.name}: {' → '.join(event['state'] for event in events)}")
        except RunError as error:
            bad += 1
            click.echo(f"✗ {run_dir.name}: {error}")
    return 1 if bad else 0


@cli.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(shell: str) -> None:
    """Print what makes the shell complete commands, jobs, submissions and runs.

    bash and zsh: put `source <(launcher completion bash)` into ~/.bashrc, or zsh into ~/.zshrc.
    fish: launcher completion fish > ~/.config/fish/completions/launcher.fish
    """
    click.echo(completion.script(shell, cli))
