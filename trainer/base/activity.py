"""What a command is doing, on a terminal, until it is done. In a log or a pipe there is nothing of it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
ERASE = "\r\x1b[K"
"""Go to the begin of the line and erase it."""


def on_terminal() -> bool:
    """Whether a person sees standard error, on a terminal that can erase a line."""
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
    """Show `what …` inside this block, which must not print anything."""
    if not on_terminal():
        yield
        return
    print(f"{what} …", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        print(ERASE, end="", file=sys.stderr, flush=True)


def counting(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """The items, with a bar that counts them: `what`, how many of `total`, and the time that is left."""
    if not on_terminal():
        yield from items
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield from bar.track(items, total=total, description=what)
