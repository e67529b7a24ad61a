"""The images of a data folder, as columns."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Table:
    """Images and their data: lists with one entry per image. `targets` index `class_names` (empty for test images)."""

    ids: list[str]
    paths: list[Path]
    targets: list[int]
    class_names: list[str]
    labels: list[str]
    """The label of each class in the data folder and in a submission."""
    groups: list[str] | None = None
    """The group of each image. Empty: the image is alone in its group."""
    places: list[str] = field(default_factory=list)
    """The place of each training image for messages: `train.csv:2: train/a.jpg`."""
    held_out: list[bool] | None = None
    """Whether each image is in the data folder's own validation split. None: the folder has none."""
    own_split: str = ""
    """The name of that split for messages: `val/`."""
    notes: list[str] = field(default_factory=list)
    """Lines for the user: what was left out, and how the tables were read."""

    def __len__(self) -> int:
        return len(self.ids)

    def without(self, rows: Container[int]) -> Table:
        """The table without `rows`."""
        remaining = [row for row in range(len(self)) if row not in rows]

        def of(values: list[Any]) -> list[Any]:
            return [values[row] for row in remaining] if values else []

        columns: dict[str, Any] = {name: of(getattr(self, name)) for name in ("ids", "paths", "targets", "places")}
        for name in ("groups", "held_out"):
            if getattr(self, name) is not None:
                columns[name] = of(getattr(self, name))
        return replace(self, **columns)
