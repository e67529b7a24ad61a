"""Pictures with captions in one plot."""

from __future__ import annotations

import os
import tempfile
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
        axes.set_title(tile.caption, fontsize=8, color=tile.colour)
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


def save(figure: Figure, path: Path) -> None:
    """Write the figure to `path`, atomically."""
    FigureCanvasAgg(figure)
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # characters without a glyph: `lettering` has said it once
        figure.savefig(temporary, dpi=110)
