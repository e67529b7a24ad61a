"""`launcher list`: the submissions of a runs folder."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launcher.base.errors import RunError, watching
from launcher.base.sizes import show_size
from launcher.base.text import one_line
from launcher.cli.options import echo, json_option, print_json, print_table, runs_option
from launcher.remote.host_option import on_host
from trainer.base.errors import os_error

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = 100
"""Largest number of submissions in a table."""
MOST_FILES = 100_000
"""So many files and folders of a submission are measured: a run may have written any number."""
MARKS = {
    "succeeded": "✓", "reused": "✓", "starting": "▶", "running": "▶", "queued": "·", "cancelled": "–",
}  # fmt: skip
NARROW = 12
"""Columns that a name has at least on a narrow terminal."""


@click.command("list", short_help="List the submissions, newest first")
@on_host()
@json_option
@runs_option
def list_command(as_json: bool, runs_root: Path) -> None:
    """List the submissions of the runs folder, newest first: when each was started, its state and runs, its best score,
    its size on the disk, and its owner."""
    from launcher.record.find import find_submission, hidden_folders, list_submissions

    with watching():
        found, hidden = list_submissions(runs_root)[::-1], hidden_folders(runs_root)
        if as_json:
            rows = [row(submission) for submission in found]
            print_json({"runs": str(runs_root), "submissions": rows, "hidden": hidden})
            return
        if not found:
            find_submission(runs_root)  # raises an error that says what to type
        rows = [row(submission) for submission in found[:SHOWN]]
    print_table(table(rows, _width()))
    if rest := len(found) - SHOWN:
        click.echo(f"… and {rest:,} older; --json lists all") if rest > 0 else None
    for each in rows:
        if each["reason"]:
            echo(f"{_name(each)}: {one_line(each['reason'])}")
    if hidden:
        echo(f"you may not look into: {', '.join(one_line(name, 200) for name in hidden)}")


def _width() -> int | None:
    """Columns of the terminal; None in a file or pipe."""
    import shutil

    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def row(submission: Path) -> dict[str, Any]:
    """The stable form of an entry of `list --json`. A submission whose records cannot be used is `unknown`, with the
    reason."""
    from launcher.record import folders

    found: dict[str, Any] = {
        "name": submission.name,
        "directory": str(submission),
        "started": None,
        "state": "unknown",
        "runs": {},
        "best": None,
        "figure": None,
        "best_run": None,
        "size_bytes": 0,
        "size_complete": True,
        "owner": None,
        "reason": "",
    }
    try:
        found["started"] = os.lstat(submission / "submission.json").st_mtime
        found["owner"] = folders.user_name(submission.stat().st_uid)
        found |= _state(submission)
        found["size_bytes"], found["size_complete"] = disk_use(submission)
    except OSError as error:
        found["reason"] = os_error(error)
    except RunError as error:
        found["reason"] = str(error)
    return found


def _state(submission: Path) -> dict[str, Any]:
    """The fields of a row that the records say. Raises OSError and RunError."""
    from launcher.cli import watch
    from launcher.record import folders
    from launcher.record.find import read_submission
    from launcher.record.records import Records
    from launcher.record.states import ENDED, GOOD

    with folders.opened(submission):  # a link to another folder is no submission of this one
        folders.refuse_unreadable(submission)
    written = read_submission(submission)
    with Records(submission) as records:
        observed = watch.observe(submission, records)
    states = [status.state for _, status in observed]
    state = watch.submission_state(submission, [status for _, status in observed])
    best = _from_leaderboard(submission) if ENDED.issuperset(states) else None
    if best is None:
        trained = frozenset(written.get("runs") or ())
        best = _from_runs([run for run, status in observed if status.state in GOOD and run.name in trained])
    return {"state": state, "runs": dict(Counter(states)), **(best or {})}


def _from_leaderboard(submission: Path) -> dict[str, Any] | None:
    """The best score by leaderboard.csv, which `collect` has written; None if it has none that can be used."""
    import csv
    import io

    from launcher.record import folders
    from launcher.record.trainer_figures import number
    from trainer.base.figures import columns

    with suppress(OSError, ValueError, csv.Error), folders.opened(submission) as folder:
        text = folders.read(folder, "leaderboard.csv").decode(errors="surrogateescape")
        first = next(csv.DictReader(io.StringIO(text)), {})
        figure, score = first.get("monitor") or "", number(float(first.get("score") or "nan"))
        if figure in columns() and score is not None:
            return {"best": score, "figure": figure, "best_run": one_line(first.get("run") or "", 200)}
    return None


def _from_runs(run_dirs: Sequence[Path]) -> dict[str, Any] | None:
    """The best score of these runs, each for itself; None if none has one."""
    from launcher.record import standings
    from launcher.record.trainer_figures import read_metrics

    measured = [(run_dir, read_metrics(run_dir)) for run_dir in run_dirs]
    figure = standings.judged_by(figures for _, figures in measured)
    judged = [pair for pair in measured if standings.score(pair[1], figure) is not None]
    if not judged:
        return None
    run_dir, figures = max(judged, key=lambda pair: standings.worth(pair[1], figure))
    return {"best": standings.score(figures, figure), "figure": figure, "best_run": run_dir.name}


def disk_use(folder: Path) -> tuple[int, bool]:
    """Bytes on the disk of everything below a folder, and whether all of it was measured. Follows no links, counts a
    file with several names once, and leaves out what cannot be read."""
    size, left, waiting, seen = 0, MOST_FILES, [str(folder)], set[tuple[int, int]]()
    while waiting and left > 0:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    left -= 1
                    if left <= 0:
                        break
                    with suppress(OSError):
                        found = entry.stat(follow_symlinks=False)
                        if found.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
                            if (found.st_dev, found.st_ino) in seen:
                                continue
                            seen.add((found.st_dev, found.st_ino))
                        size += found.st_blocks * 512
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(entry.path)
        except OSError:
            continue
    return size, left > 0


def table(rows: Sequence[Mapping[str, Any]], width: int | None) -> Table:
    """The rows for a terminal of this many columns, with names elided in their middle if they do not fit; None: whole
    names. Without the owners if they are all the same."""
    from rich.cells import cell_len
    from rich.table import Table

    owners = {each["owner"] for each in rows} - {None}
    shown = [
        [
            _name(each),
            _clock(each["started"]),
            " ".join([each["state"], *_counts(each["runs"])]),
            "" if each["best"] is None else f"{each['best']:.4f}",
            ("" if each["size_complete"] else "> ") + show_size(each["size_bytes"]) if each["size_bytes"] else "",
            *([elided(each["owner"] or "", 10)] if len(owners) > 1 else []),
        ]
        for each in rows
    ]
    titles = ["submission", "started", "state", "best", "size", *(["who"] if len(owners) > 1 else [])]
    if width is not None:
        others = sum(max(map(cell_len, column)) for column in list(zip(titles, *shown, strict=True))[1:])
        room = max(NARROW, width - others - 2 * (len(titles) - 1))
        shown = [[elided(line[0], room), *line[1:]] for line in shown]
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        grid.add_column(title, justify="right" if title in ("best", "size") else "left", no_wrap=True)
    for line in shown:
        grid.add_row(*line)
    return grid


def elided(text: str, width: int) -> str:
    """A text of at most this many columns, without its middle if it is longer.

    >>> elided("benchmark-20261123-211500", 15)
    'benchma…-211500'
    """
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) <= width:
        return text
    head, tail = width // 2, (width - 1) // 2
    end = text[::-1]
    return f"{set_cell_size(text, head).rstrip()}…{set_cell_size(end, tail).rstrip()[::-1]}"


def _name(each: Mapping[str, Any]) -> str:
    return one_line(each["name"], 300)


def _counts(runs: Mapping[str, int]) -> list[str]:
    """`✓12 ✗2`: how many runs are in which kind of state."""
    counts = Counter[str]()
    for state, number in runs.items():
        counts[MARKS.get(state, "✗")] += number
    return [f"{mark}{counts[mark]:,}" for mark in (*dict.fromkeys(MARKS.values()), "✗") if counts[mark]]


def _clock(moment: float | None) -> str:
    """Day and time, or the year in place of the time if it is not this one."""
    if moment is None:
        return ""
    with suppress(ValueError, OverflowError, OSError):  # a file can have any time
        at = time.localtime(moment)
        return time.strftime("%m-%d %H:%M" if at.tm_year == time.localtime().tm_year else "%Y-%m-%d", at)
    return ""
