"""Options of several commands, and helpers for printing. Imports nothing heavier than click."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from launcher.base.errors import RefusedError
from launcher.base.text import PlainWriter, printable, relative, wrapped
from launcher.cli import completion
from launcher.engines import registry
from trainer.base.errors import EXIT_USAGE
from trainer.base.files import json_text

if TYPE_CHECKING:
    from rich.console import Console

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
    "--runs", "runs_root", default=lambda: os.environ.get("LAUNCHER_RUNS") or "runs", type=click.Path(path_type=Path),
    help="Folder of the submissions (default: $LAUNCHER_RUNS, else runs).",
)  # fmt: skip
detach_option = click.option("--detach", is_flag=True, help="Run in the background and return immediately.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
ENGINES = click.Choice([registry.AUTO, *registry.ENGINES])
job_options = options(
    click.argument("words", metavar="JOB|KEY=VALUE…", nargs=-1, required=True, shell_complete=completion.job_words),
    click.option("--set", "settings", multiple=True, metavar="PATH=VALUE", help="Change a field of the job file."),
    click.option("--gpus", metavar="0,1", help="GPUs to use (default: all, or CUDA_VISIBLE_DEVICES)."),
    click.option("--machine", metavar="NAME|FILE", help="cuda-server, mac-m4-pro or a YAML file (default: this host)."),
    click.option("--cpu", "cpu_only", is_flag=True, help="Train on the CPU, even if the job asks for GPUs."),
    click.option("--multirun", is_flag=True, help="No effect; `model=a,b` already means two runs."),
)
engine_options = options(
    *(
        click.option(f"--{field}", metavar="NAME", help=f"Same as {name}.{field} in the job file.")
        for name, entry in registry.ENGINES.items()
        for field in entry.options
    )
)
"""Fields of the engines' sections of the job file that are also options of `submit`."""


def engine_settings(engine: str, given: Mapping[str, str | None]) -> list[str]:
    """An engine's options as `path=value` for the job file. Raises click.UsageError for another engine's option."""
    settings = []
    for field, value in given.items():
        owner = next(name for name, entry in registry.ENGINES.items() if field in entry.options)
        if value and owner != engine:
            raise click.UsageError(f"--{field} needs --engine {owner}")
        settings += [f"{owner}.{field}={value}"] if value else []
    return settings


def load_job(words: tuple[str, ...], settings: tuple[str, ...]) -> Job:
    """The job that the words of the command line name. Raises JobError with every error of its fields."""
    from launcher.job import document, spec

    sent: bytes | None = click.get_current_context().obj
    first, rest, sections = words[0], words[1:], registry.sections()
    if sent is None and not document.names_file(first):
        return spec.from_overrides(words, settings, sections)
    for word in rest:
        if "=" not in word:
            raise RefusedError(
                f"{word}: only one job file is allowed, and {first} is one; write other words as key=value",
                EXIT_USAGE,
            )
    return spec.load(Path(first), rest, settings, sent, sections)


def say(line: str) -> None:
    """Print a line that is no result."""
    click.echo(line, err=True)


def echo(line: str) -> None:
    """Print a line for people; a long one as several."""
    click.echo(wrapped(line))


def print_json(value: Any) -> None:
    """Print JSON in UTF-8, whatever bytes the names in it have. One line for each field, and for each item of a list:
    json's own indentation takes seconds for thousands of runs."""
    if isinstance(value, dict):
        fields = [f"  {json_text(key)}: {_items(field, '  ')}" for key, field in value.items()]
        click.echo("{\n" + ",\n".join(fields) + "\n}" if fields else "{}")
    else:
        click.echo(_items(value))


def _items(value: Any, indent: str = "") -> str:
    if not (isinstance(value, list) and any(isinstance(item, dict | list) for item in value)):
        return json_text(value)
    return "[\n" + ",\n".join(f"{indent}  {json_text(item)}" for item in value) + f"\n{indent}]"


PIPE_WIDTH = 220
"""Columns of a table in a file or pipe."""


def print_table(renderable: Any) -> None:
    """Print a table: fitted to a terminal, or with unbroken lines in a file or pipe."""
    on_terminal = sys.stdout.isatty()
    lines = None if on_terminal else plain_lines(renderable, PIPE_WIDTH)
    if lines is None:
        new_console(width=None if on_terminal else PIPE_WIDTH).print(renderable)
    else:
        click.echo("\n".join(lines))


def plain_lines(table: Any, width: int) -> list[str] | None:
    """The lines of a table without lines between its cells, as rich prints them without colours; rich takes a
    millisecond for each row. None if rich has to break a text, or if it is no such table."""
    cells = [[column.header, *column.cells] for column in getattr(table, "columns", [])]
    if not cells or table.box or table.pad_edge:
        return None
    around = [
        [] if not text else text.split("\n") if isinstance(text, str) and justify == "left" else None
        for text, justify in ((table.title, table.title_justify), (table.caption, table.caption_justify))
    ]
    above, below = around
    texts = [text for column in cells for text in column]
    if above is None or below is None or not all(isinstance(text, str) for text in texts):
        return None
    widths = [max(map(_width, column)) for column in cells]
    whole = sum(widths) + len(GAP) * (len(widths) - 1)
    if 0 in widths or whole > width or any(_width(line) > whole for line in (*above, *below)):
        return None
    if not all(text.isprintable() and not text.endswith(" ") for text in (*texts, *above, *below)):
        return None
    rights = [column.justify == "right" for column in table.columns]
    rows = [
        GAP.join(_padded(text, size, right) for text, size, right in zip(row, widths, rights, strict=True))
        for row in zip(*cells, strict=True)
    ]
    return [*(_padded(line, whole) for line in above), *rows, *(_padded(line, whole) for line in below)]


GAP = "  "


def _padded(text: str, width: int, right: bool = False) -> str:
    space = " " * (width - _width(text))
    return space + text if right else text + space


def _width(text: str) -> int:
    """Columns of a terminal that a text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def new_console(width: int | None = None) -> Console:
    """A console on standard output that prints the text of others without control characters."""
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class PlainConsole(Console):
        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else Segment(printable(segment.text), segment.style)

    out: Any = _Styled(sys.stdout) if isinstance(sys.stdout, PlainWriter) else None
    return PlainConsole(file=out, width=width, highlight=False, markup=False, emoji=False)


class _Styled:
    """A `PlainWriter` as rich's file: the escape sequences are rich's own."""

    def __init__(self, stream: PlainWriter) -> None:
        self.write, self.flush = stream.write_styled, stream.flush
        self.isatty, self.fileno, self.encoding = stream.isatty, stream.fileno, stream.encoding


def shown(path: Path) -> str:
    """The path relative to the working directory, quoted for a shell."""
    return shlex.quote(relative(path))
