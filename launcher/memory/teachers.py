"""The files behind `training.teachers`: checkpoints, and ensembles, which name theirs."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path


def members(path: Path) -> list[Path]:
    """The checkpoints that an ensemble.json is made of, which it names from its own folder; none of any other file.

    One that cannot be read has none: the trainer says what is wrong with it.
    """
    if path.suffix != ".json":
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["members"]
        return [Path(os.path.abspath(path.parent / entry["checkpoint"])) for entry in entries]  # noqa: PTH100  # keeps links
    except (OSError, ValueError, KeyError, TypeError):
        return []


def size(names: Sequence[str]) -> int:
    """The bytes of the checkpoints, which are little more than their weights; 0 for what is not there."""
    paths = [Path(name).expanduser() for name in names]
    return sum(file.stat().st_size for path in paths for file in members(path) or [path] if file.is_file())
