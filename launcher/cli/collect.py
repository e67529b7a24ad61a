"""`launcher collect`: the results of a submission."""

from __future__ import annotations

from pathlib import Path

import click

from launcher.base.text import relative
from launcher.cli import completion
from launcher.cli.options import json_option, print_json, print_table, runs_option
from launcher.remote.host_option import on_host


@click.command("collect", short_help="Write the leaderboard, keep the best model")
@on_host(fetches=True)
@click.argument("name", metavar="[SUBMISSION]", required=False, shell_complete=completion.submissions)
@click.option(
    "--champion",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the best model (default: RUNS/champion).",
)
@click.option("--replace", is_flag=True, help="Also replace a champion that was validated on another split.")
@json_option
@runs_option
def collect_command(name: str | None, champion: Path | None, replace: bool, as_json: bool, runs_root: Path) -> None:
    """Write leaderboard.csv, and put the best model into champion/ (default: the latest submission)."""
    from launcher.record.find import find_submission
    from launcher.results import collect, leaderboard

    directory = find_submission(runs_root, name)
    rows, line = collect.collect(directory.resolve(), champion, replace, lambda said: click.echo(said, err=True))
    if as_json:
        print_json({"submission": directory.name, "rows": rows, "champion": line})
        return
    print_table(leaderboard.render(rows))
    click.echo(f"{relative(directory / 'leaderboard.csv')}\n{line}")
