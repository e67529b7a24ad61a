"""Pictures with captions in one plot."""

from __future__ import annotations

import os
import tempfile
import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.base.files import replacing
from trainer.images.reading import open_image

if not os.access(os.environ.get("HOME", "/"), os.W_OK):  # matplotlib would warn about its font cache
    os.environ.setdefault("MPLCONFIGDIR", tempfile.gettempdir())

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

WIDTH = 22.0
"""Widest line of a caption, in heights of its letters."""
matplotlib.rcParams["text.parse_math"] = False  # a class may be called $x$


@dataclass(frozen=True)
class Tile:
    path: Path | None
    """Image file. None or an unreadable file gives an empty place."""
    caption: str
    colour: str = "black"


def gallery(tiles: Sequence[Tile], columns: int, title: str) -> Figure:
    """`tiles` in order, `columns` per row. Without tiles only the title."""
    if not tiles:
        figure = Figure(figsize=(6, 2), layout="constrained")
        figure.text(0.5, 0.5, title, ha="center", va="center")
        return figure
    columns = min(columns, len(tiles))
    lines = -(-len(tiles) // columns)
    figure = Figure(figsize=(2.6 * columns, 0.5 + 3.2 * lines), layout="constrained")
    for position, tile in enumerate(tiles, start=1):
        axes = figure.add_subplot(lines, columns, position)
        axes.set_axis_off()
        caption = "\n".join(fitted(line) for line in tile.caption.split("\n"))
        axes.set_title(caption, fontsize=8, color=tile.colour)
        try:
            if tile.path is None:
                raise OSError
            image = open_image(tile.path)
        except (OSError, ValueError):
            axes.text(0.5, 0.5, "no picture", ha="center", va="center", color="grey", transform=axes.transAxes)
            continue
        image.thumbnail((400, 400))
        axes.imshow(np.asarray(image))
    figure.suptitle(title, fontsize=11)
    return figure


def fitted(line: str) -> str:
    """The line, with its middle left out if it is wider than a tile: a caption would cover those beside it.

    >>> fitted("x" * 100), fitted("short")
    ('xxxxxxxxxxxxxxxx…xxxxxxxxxxxxxxxx', 'short')
    """
    widths = [_width(letter) for letter in line]
    if sum(widths) <= WIDTH:
        return line
    ends = [line, line[::-1]]
    for place, letters in enumerate((widths, widths[::-1])):
        count, room = 0, WIDTH / 2 - 0.5
        while room >= letters[count]:
            room -= letters[count]
            count += 1
        ends[place] = ends[place][:count]
    return f"{ends[0]}…{ends[1][::-1]}"


def width(line: str) -> float:
    """About the width of the line, in heights of its letters."""
    return sum(map(_width, line))


def _width(letter: str) -> float:
    """About its width, in heights of its letters."""
    if unicodedata.east_asian_width(letter) in "WF" or letter in "MWmw@%":
        return 1.0
    return 0.78 if letter.isupper() else 0.64


def save(figure: Figure, path: Path) -> None:
    """Write the figure to `path`, atomically."""
    FigureCanvasAgg(figure)
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # characters without a glyph: `lettering` has said it once
        figure.savefig(temporary, dpi=110)
