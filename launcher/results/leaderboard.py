"""The leaderboard as a table for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from launcher.base.sizes import show_duration
from launcher.results.champion import Row
from trainer.base.figures import F1, MAIN, columns
from trainer.base.names import GROUPED

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = 100
"""Largest number of rows in the terminal."""
MARK = "≈"
"""Mark beside the rank of a row that is not distinguishable from the best."""
CORRUPTED = F1.column("corrupted")


def render(rows: Sequence[Row]) -> Table:
    """The rows of `collect.leaderboard_rows`; folds of a configuration only if they could not be joined."""
    from rich.table import Table

    several = sum(row["distinguishable"] == "no" for row in rows) > 1
    corrupted = any(row[CORRUPTED] != "" for row in rows)
    scored = corrupted or any(row["monitor"] not in ("", MAIN) for row in rows)
    table = Table(box=None, pad_edge=False, header_style="bold", caption=caption(rows), caption_justify="left")
    for title, justify in (
        ("#", "right"),
        ("run", "left"),
        ("model", "left"),
        ("size", "right"),
        (f"{columns()[MAIN].short} [95 %]", "left"),
        *((("corrupted", "right"),) if corrupted else ()),
        *((("score", "right"),) if scored else ()),
        ("epochs", "right"),
        ("time", "right"),
        ("state", "left"),
    ):
        table.add_column(title, justify=justify, overflow="fold" if title == "run" else "ellipsis")
    visible = list(_shown(rows))
    for row, below in visible[:SHOWN]:
        seconds = float(row["minutes"]) * 60 if row["minutes"] != "" else None
        table.add_row(
            f"{MARK} {row['rank']}" if several and row["distinguishable"] == "no" else str(row["rank"]),
            "  " * below + row["run"],
            _model(row),
            str(row["img_size"]),
            _four(row[MAIN]) + _interval(row),
            *((_four(row[CORRUPTED]),) if corrupted else ()),
            *((_four(row["score"]),) if scored else ()),
            f"{row['best_epoch']}/{row['epochs']}" if row["best_epoch"] != "" else "",
            show_duration(seconds) if seconds is not None else "",
            row["state"] + (f": {row['reason']}" if row["reason"] else ""),
        )
    if len(visible) > SHOWN:
        table.add_row("", f"… and {len(visible) - SHOWN:,} more: leaderboard.csv")
    return table


def caption(rows: Sequence[Row]) -> str | None:
    """The meaning of the ranks, in one or two sentences; None if there is nothing to compare."""
    ranked = [row for row in rows if row["rank"] != ""]
    alike = [row["rank"] for row in ranked if row["distinguishable"] == "no"]
    others = [row for row in ranked if row["distinguishable"] == "yes"]
    lines = []
    if len(alike) + len(others) > 1:
        images = ranked[0]["val_images"]
        on = "on the one validation image" if images == 1 else f"on these {images} validation images"
        if len(alike) == 1:
            lines.append(f"the first is significantly better than the others {on} (95 %)")
        elif alike == list(range(1, len(alike) + 1)):
            lines.append(f"{MARK} the first {len(alike)} are not distinguishable {on}")
        else:
            lines.append(f"{MARK} these {len(alike)} are not distinguishable from the best {on}")
    if any(row["groups"] != "" for row in ranked):
        lines.append(f"intervals are too narrow and differences too certain: {GROUPED}")
    if alike and (rest := len(ranked) - len(alike) - len(others)):
        same = columns()[ranked[0]["monitor"]].figure.of_counts is not None
        why = "without predictions for the same images" if same else "because only figures of predicted classes are"
        lines.append(f"not compared, {why}: {rest}")
    lines += _no_mistake(ranked)
    if ranked and (ranked[0]["monitor"] != MAIN or any(row[CORRUPTED] != "" for row in ranked)):
        lines.append(f"score: {columns()[ranked[0]['monitor']].short}")
    return "\n".join(lines) or None


def _shown(rows: Sequence[Row]) -> Iterator[tuple[Row, bool]]:
    """The rows, and whether each is a fold below its configuration."""
    folds: list[str] = []
    joined = False
    for row in rows:
        if row["kind"] == "folds":
            folds, joined = row["members"].split(), row["rank"] != ""
        below = row["kind"] == "train" and row["run"] in folds
        if not (below and joined):
            yield row, below


def _model(row: Row) -> str:
    number = len(row["members"].split())
    if row["kind"] == "folds":
        return f"{row['model']} × {number} folds"
    if not number:
        return str(row["model"])
    return f"{row['model']} of {row['voters']}" + (f" ({number} checkpoints)" if row["voters"] != number else "")


def _four(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float | int) else ""


def _interval(row: Row) -> str:
    if row[f"{MAIN}_low"] != "":
        return f" [{row[f'{MAIN}_low']:.2f}–{row[f'{MAIN}_high']:.2f}]"
    return "" if row[MAIN] == "" else " [no mistake]" if row[MAIN] == 1 else " [none]"


def _no_mistake(ranked: Sequence[Row]) -> list[str]:
    """A bound for rows without an interval because no prediction was wrong; for the fewest images if they differ."""
    if not (images := [row["val_images"] for row in ranked if row[MAIN] == 1 and row["val_images"] != ""]):
        return []
    from trainer.scores import intervals  # loads numpy

    return [f"no mistake: {intervals.in_words(None, 1, min(images))}"]
