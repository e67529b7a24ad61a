"""Commands that only read submissions: status, logs, attach, replay."""

from __future__ import annotations

from pathlib import Path

import click

from launcher.base.errors import EXIT_INTERRUPTED, RefusedError, watching
from launcher.base.sizes import listed
from launcher.cli import completion
from launcher.cli.options import echo, json_option, print_json, print_table, runs_option, shown
from launcher.remote.host_option import on_host
from trainer.base.errors import EXIT_FAILED, EXIT_OK
from trainer.base.plural import counted


@click.command(short_help="Show the state and progress of each run")
@on_host()
@click.argument("name", metavar="[SUBMISSION]", required=False, shell_complete=completion.submissions)
@json_option
@click.option("-w", "--watch", "watched", is_flag=True, help="Update the table until the submission ends.")
@runs_option
def status(name: str | None, as_json: bool, watched: bool, runs_root: Path) -> int:
    """Show the state and progress of each run of a submission (default: the latest).

    Ends with 0; with --watch, with the exit code of `attach`.
    """
    from launcher.cli import watch
    from launcher.record.find import find_submission
    from launcher.supervise import others

    code = EXIT_OK
    with watching():
        directory = find_submission(runs_root, name)
        if watched:
            from launcher.cli import live

            code = live.watch_submission(directory, as_json)
        seen = watch.status_json(directory, None if as_json else watch.SHOWN)
    if as_json:
        print_json(seen)
        return code
    None if watched else print_table(watch.status_table(seen))
    if seen["waits"] and not any(run["state"] == "queued" for run in seen["runs"]):
        click.echo(seen["waits"])
    if seen["state"] == "unattended":
        at = f"{directory.name} --runs {shown(directory.resolve().parent)}"
        click.echo(
            f"No launcher is running this submission. Queued runs will not start. Continue with: launcher resume {at}"
        )
    if name is None and (note := others.note(directory, "see: launcher status")):
        echo(note)
    return code


@click.command(short_help="Print a run's log")
@on_host()
@click.argument("run", shell_complete=completion.runs)
@click.option("-f", "--follow", is_flag=True, help="Print new lines until the run ends.")
@click.option("--tail", "lines", type=click.IntRange(min=0), metavar="N", help="Print only the last N lines.")
@runs_option
def logs(run: str, follow: bool, lines: int | None, runs_root: Path) -> int:
    """Print a run's log. RUN is its directory, SUBMISSION/NAME, or a name or number in the latest submission.

    Escape sequences and control characters are left out. With --follow, ends with 0 if the run succeeded, 130 if it was
    stopped, else 1.
    """
    from launcher.cli import live, watch
    from launcher.record.find import find_run
    from launcher.record.folders import is_run

    with watching():
        run_dir = find_run(runs_root, run)
        if "/" not in run and not is_run(Path(run)):
            click.echo(f"{run_dir.parent.name}/{run_dir.name}:", err=True)  # not on stdout: the log is often piped
        if watch.follow_log(run_dir, follow, lines):
            return EXIT_OK if not follow else live.exit_code([run_dir]) or EXIT_OK
        at = f"{run_dir.parent.name} --runs {shown(run_dir.resolve().parents[1])}"
        raise RefusedError(
            f"{run_dir.name} is queued, and no launcher is running its submission; continue with: launcher resume {at}",
            EXIT_FAILED,
        )


@click.command(short_help="Follow a submission until it ends")
@click.argument("name", metavar="[SUBMISSION]", required=False, shell_complete=completion.submissions)
@runs_option
def attach(name: str | None, runs_root: Path) -> int:
    """Follow a submission that another launcher is running, until it ends (default: the latest).

    Prints the same lines as `submit` and ends with the same exit codes. Ctrl-C stops only the watching; the runs
    continue.
    """
    from launcher.cli import live, tables
    from launcher.record.find import find_submission, list_runs
    from launcher.record.journal import look
    from launcher.record.states import GOOD
    from launcher.results import collect, leaderboard
    from launcher.supervise import others

    with watching():
        directory = find_submission(runs_root, name).resolve()
        at = f"{directory.name} --runs {shown(directory.parent)}"
        click.echo(
            f"{directory.name}: {counted(len(list_runs(directory)), 'run')}; Ctrl-C stops only the watching, the runs "
            "continue"
        )
        code = live.follow(directory, tables.Announcer(directory).event)
        if code is None:
            note = others.note(directory, "follow it: launcher attach") if name is None else ""
            also = f"\n{note}" if note else ""
            raise RefusedError(
                f"{directory.name}: no launcher is running this submission; continue with: launcher resume {at}{also}",
                EXIT_FAILED,
            )
        rows = collect.leaderboard_rows(directory)
    click.echo()
    print_table(leaderboard.render(rows))
    bad = [path.name for path in list_runs(directory) if look(path).state not in GOOD]
    if code == EXIT_INTERRUPTED:
        click.echo(f"stopped; continue with: launcher resume {at}")
    elif bad:
        log = f"{directory.name}/{bad[0]} --runs {shown(directory.parent)}"
        click.echo(f"not succeeded: {listed(bad)}; for the reason: launcher logs {log}")
    return code


@click.command(short_help="Check the journals of runs")
@click.argument("name", metavar="[SUBMISSION|RUN]", required=False, shell_complete=completion.submissions_and_runs)
@runs_option
def replay(name: str | None, runs_root: Path) -> int:
    """Check that every state in the journals may follow the state before it (default: the latest submission)."""
    from launcher.base.errors import RunError
    from launcher.record import journal
    from launcher.record.find import find_submission_or_run, list_runs
    from launcher.record.states import UNKNOWN

    directory, run = find_submission_or_run(runs_root, name)
    paths = [directory / run] if run else list_runs(directory)
    bad = 0
    for run_dir in paths:
        try:
            if (status := journal.look(run_dir)).state == UNKNOWN:
                raise RunError(status.reason)
            events = journal.read_events(run_dir)
            journal.replay(events)
            click.echo(f"✓ {run_dir.name}: {' → '.join(event['state'] for event in events)}")
        except RunError as error:
            bad += 1
            click.echo(f"✗ {run_dir.name}: {error}")
    return 1 if bad else 0
