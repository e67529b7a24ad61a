"""Geometry of the report's line charts and reliability diagrams, in SVG user units, for the template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator

from trainer.base.plural import counted
from trainer.scores.calibration import Reliability

WIDTH, HEIGHT = 440, 236
LEFT, RIGHT, TOP, BOTTOM = 42, 12, 12, 42
SIDE = 240
"""Side of a reliability diagram without margins."""


@dataclass(frozen=True)
class Line:
    name: str
    tone: str
    """The class for its colour in the style sheet."""
    points: list[tuple[float, float]]

    @property
    def path(self) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in self.points)


@dataclass(frozen=True)
class Chart:
    title: str
    summary: str
    """Text for screen readers."""
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    mark: float | None
    """Position of the chosen validation."""


@dataclass(frozen=True)
class Bubble:
    """A bin of confidence: its position and radius, and the position of a calibrated bin with this confidence."""

    x: float
    y: float
    radius: float
    even: float
    title: str


def lines(
    title: str,
    x: Sequence[float],
    series: Sequence[tuple[str, str, Sequence[float]]],
    chosen: int | None,
    top: float | None = None,
) -> Chart:
    """`series` are (name, tone, values), with one value per epoch of `x`. `chosen` is an index of `x`. The vertical
    axis goes from 0 to `top`; the default is above the highest value."""
    high = top or max(max(values) for _, _, values in series) * 1.02 or 1.0
    first, last = min(x), max(x)
    wide = last - first or 1.0

    def across(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * ((value - first) / wide if last > first else 0.5)

    def up(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / high

    x_ticks = [t for t in MaxNLocator(6, integer=True).tick_values(first, last) if first <= t <= last]
    y_ticks = [t for t in MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(0, high) if 0 <= t <= high]
    ranges = "; ".join(f"{name} from {values[0]:.3f} to {values[-1]:.3f}" for name, _, values in series)
    return Chart(
        title,
        f"{title} by epoch: {ranges}",
        [Line(n, tone, [(across(a), up(b)) for a, b in zip(x, v, strict=True)]) for n, tone, v in series],
        [(across(tick), f"{tick:g}") for tick in x_ticks],
        [(up(tick), f"{tick:g}") for tick in y_ticks],
        across(x[chosen]) if chosen is not None else None,
    )


def bubbles(reliability: Reliability) -> list[Bubble]:
    """The bins with images, as circles. The area is the share of the images."""
    largest = max(1, int(reliability.counts.max()))
    return [
        Bubble(
            SIDE * sure,
            SIDE * (1 - right),
            float(3 + 11 * np.sqrt(count / largest)),
            SIDE * (1 - sure),
            f"{counted(count, 'image')}: confidence {sure:.0%}, right {right:.0%}",
        )
        for count, sure, right in zip(
            reliability.counts.tolist(), reliability.confidence.tolist(), reliability.accuracy.tolist(), strict=True
        )
        if count
    ]
