"""Thumbnails of validation images for the report, as `data:` addresses."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from trainer.augment.corruption import Corruption
from trainer.base.figures import Copy
from trainer.images import files, reading
from trainer.scores.val_predictions import Validation

SIDE = 240
"""Longest side of a thumbnail, in pixels."""


@dataclass(frozen=True)
class Picture:
    """An image with its predictions."""

    id: str
    address: str | None
    """None: no picture."""
    label: str
    other: str
    """The predicted or suggested class."""
    sure: float
    """Probability of the other class."""
    fits: float
    """Probability of the label."""
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """The source of pictures. `root` and `corruption` are None, and `kinds` is empty, if unknown."""

    validation: Validation
    root: Path | None
    corruption: Corruption | None
    kinds: list[tuple[str, ...]]

    def mistake(self, row: int, copy: Copy) -> Picture:
        """Image `row`, clean or corrupted, with its predicted class."""
        return self._picture(row, copy, int(self.validation.copies[copy][row].argmax()))

    def label_error(self, row: int, suggested: int) -> Picture:
        """Image `row` with its suggested class."""
        return self._picture(row, "clean", suggested)

    def _picture(self, row: int, copy: Copy, other: int) -> Picture:
        known, chances = self.validation, self.validation.copies[copy][row]
        target = int(known.targets[row])
        worse = copy == "corrupted"
        return Picture(
            known.ids[row],
            self._address(row, worse),
            known.class_names[target],
            known.class_names[other],
            float(chances[other]),
            float(chances[target]),
            tuple(kind.replace("_", " ") for kind in self.kinds[row]) if worse and self.kinds else (),
        )

    def _address(self, row: int, worse: bool) -> str | None:
        path = files.find_image(self.root, self.validation.ids[row]) if self.root is not None else None
        if path is None or (worse and self.corruption is None):
            return None
        try:
            image = reading.open_image(path)
        except (OSError, ValueError):
            return None
        if worse and self.corruption is not None:
            image = Image.fromarray(self.corruption(np.asarray(image), self.validation.ids[row]))
        image.thumbnail((SIDE, SIDE))
        out = io.BytesIO()
        image.save(out, "JPEG", quality=80, optimize=True)
        return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
