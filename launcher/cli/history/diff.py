"""`launcher diff`: two runs beside each other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from launcher.base.errors import watching
from launcher.base.text import one_line
from launcher.cli import completion
from launcher.cli.options import echo, json_option, print_json, print_table, runs_option
from launcher.remote.host_option import on_host
from trainer.base.files import json_text


@click.command("diff", short_help="Show what differs between two runs")
@on_host()
@click.argument("first", metavar="RUN", shell_complete=completion.runs)
@click.argument("second", metavar="RUN", shell_complete=completion.runs)
@json_option
@runs_option
def diff(first: str, second: str, as_json: bool, runs_root: Path) -> None:
    """Show the keys whose values differ between two runs, and their figures side by side. RUN is as for `logs`.

    Ends with 0 also if they differ.
    """
    from rich.table import Table

    from launcher.record.find import find_run
    from launcher.results import differences

    with watching():
        found = differences.compare(find_run(runs_root, first), find_run(runs_root, second))
    if as_json:
        print_json(found)
        return
    one, two = (one_line(name, 300) for name in found["runs"])
    click.echo(f"1: {one}\n2: {two}")
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("", "1", "2", ""):
        grid.add_column(title, overflow="fold")
    for each in found["configuration"]:
        grid.add_row(one_line(each["key"], 100), *(_value(value) for value in each["values"]), "")
    for each in found["figures"]:
        grid.add_row(*_figure(each))
    print_table(grid)
    if not found["configuration"]:
        click.echo("no key of their configurations differs")
    if found["not_compared"]:
        echo(f"whether differences may be chance is not known: {found['not_compared']}")


def _value(value: Any) -> str:
    if value is None:
        return "–"
    return one_line(value if isinstance(value, str) else json_text(value), 300)


def _figure(each: Mapping[str, Any]) -> tuple[str, str, str, str]:
    cells = []
    for value, interval in zip(each["values"], each["intervals"], strict=True):
        shown = "–" if value is None else f"{value:.4f}" if isinstance(value, float) else f"{value:,}"
        cells.append(shown + (f" [{interval[0]:.2f}–{interval[1]:.2f}]" if interval else ""))
    said = {None: "", True: "may be chance", False: "more than chance"}[each["may_be_chance"]]
    same = each["values"][0] == each["values"][1]
    return each["name"], cells[0], cells[1], "" if same else said
