"""`launcher why`: what the records of a run say about it, in sentences."""

from __future__ import annotations

import dataclasses
import time
from contextlib import suppress
from pathlib import Path

import click

from launcher.base.errors import watching
from launcher.base.text import one_line
from launcher.cli import completion
from launcher.cli.options import echo, json_option, print_json, runs_option
from launcher.remote.host_option import on_host

MOST = 30
"""Sentences that are printed, the last ones; a run can have a hundred attempts."""


@click.command("why", short_help="Say why a run waits, failed or was repeated")
@on_host()
@click.argument("run", shell_complete=completion.runs)
@json_option
@runs_option
def why(run: str, as_json: bool, runs_root: Path) -> None:
    """Say why a run waits, has failed, was repeated, was reused or not, and whether its score may be chance. RUN is as
    for `logs`."""
    from launcher.record.find import find_run
    from launcher.results import reasons

    with watching():
        run_dir = find_run(runs_root, run)
        status, found = reasons.answers(run_dir)
    if as_json:
        said = [dataclasses.asdict(answer) for answer in found]
        names = {"run": run_dir.name, "submission": run_dir.parent.name}
        print_json({**names, "state": status.state, "attempt": status.attempt, "answers": said})
        return
    click.echo(f"{one_line(f'{run_dir.parent.name}/{run_dir.name}', 400)}: {status.state}")
    if len(found) > MOST:
        click.echo(f"… {len(found) - MOST:,} earlier ones; --json has all")
    for answer in found[-MOST:]:
        echo(f"{_clock(answer.time)}  {answer.text}")
        if answer.next:
            click.echo(f"{'':16}  {answer.next}")


def _clock(moment: float | None) -> str:
    with suppress(ValueError, OverflowError, OSError):
        return f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(moment)) if moment else 'now':16}"
    return f"{'':16}"
