"""What a trainer says about its run, in progress.json, metrics.json and ensemble.json.

Nothing in these files is believed: each value is checked for its type and range, and a value that fails is left out.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.base.errors import RunFileError
from launcher.base.text import one_line
from launcher.record.trainer_files import (
    ENSEMBLE,
    LIMITS,
    METRICS,
    PROGRESS,
    is_usable,
    open_named,
    read,
    run_of,
)
from trainer.base import figures

Figures = dict[str, Any]
"""The figures of a run by the names of metrics.json, checked: see `read_metrics`."""


def parsed(content: bytes) -> Any:
    """The value of a JSON text that nobody has checked; NaN and infinities are None. Raises ValueError, also for a
    value that is nested too deep."""
    try:
        return json.loads(content.decode(errors="replace"), parse_constant=lambda word: None)
    except RecursionError:
        raise ValueError("nested too deep") from None


def number(value: object, low: float = -1e15, high: float = 1e15) -> float | int | None:
    """The value if it is a number from `low` to `high`, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return value if math.isfinite(value) and low <= value <= high else None
    except OverflowError:  # of an integer with hundreds of digits
        return None


def whole(value: object, low: int = 0, high: int = 10**15) -> int | None:
    """The value if it is an integer from `low` to `high`, else None."""
    return value if isinstance(value, int) and number(value, low, high) is not None else None


def line(value: object, most: int = 500) -> str | None:
    """The value if it is a text: as one line without control characters, at most `most` characters. Else None."""
    if not isinstance(value, str):
        return None
    return one_line(value[: 4 * most].encode(errors="replace").decode(), most)


@dataclass(frozen=True)
class Progress:
    """The trainer's heartbeat, progress.json: the fields in `docs/json.md`. None: unknown, or not in its range."""

    epoch: int
    epochs: int
    time: float | None = None
    step: int | None = None
    steps: int | None = None
    images_per_second: float | None = None
    eta_seconds: float | None = None
    device: str | None = None
    device_memory_bytes: int | None = None
    best_f1: float | None = None
    first_step_time: float | None = None


def read_progress(run_dir: Path) -> Progress | None:
    """The heartbeat of a run; None if there is none that can be read, or if it does not say the epoch."""
    try:
        content = parsed(read(run_dir, PROGRESS, LIMITS[PROGRESS]))
    except (RunFileError, ValueError):
        return None
    content = content if isinstance(content, dict) else {}
    epoch, epochs = whole(content.get("epoch"), 0, 10**9), whole(content.get("epochs"), 0, 10**9)
    if epoch is None or epochs is None:
        return None
    years = 10**9  # seconds
    return Progress(
        epoch,
        epochs,
        time=number(content.get("time"), 0, 10**11),
        step=whole(content.get("step")),
        steps=whole(content.get("steps")),
        images_per_second=number(content.get("images_per_second"), 0, 10**9),
        eta_seconds=number(content.get("eta_seconds"), 0, years),
        device=line(content.get("device"), 50),
        device_memory_bytes=whole(content.get("device_memory_bytes"), 0, 2**60),
        best_f1=number(content.get("best_f1"), 0, 1),
        first_step_time=number(content.get("first_step_time"), 0, 10**11),
    )


def _interval(value: object) -> list[float] | None:
    if not isinstance(value, list) or len(value) != 2:
        return None
    low, high = number(value[0], 0, 1), number(value[1], 0, 1)
    return None if low is None or high is None or low > high else [low, high]


def _members(value: object) -> list[dict[str, Any]] | None:
    """The members of an ensemble that name a checkpoint."""
    if not isinstance(value, list):
        return None
    members = []
    for entry in value[:10_000]:
        checkpoint = line(entry.get("checkpoint"), 4096) if isinstance(entry, dict) else None
        if checkpoint:
            member = entry.get("member")
            known: int | str | None = whole(member) if not isinstance(member, str) else line(member, 200)
            members.append({"checkpoint": checkpoint, **({} if known is None else {"member": known})})
    return members


def _lines(value: object) -> list[str] | None:
    words = [line(each, 200) for each in value[:100_000]] if isinstance(value, list) else []
    known = [word for word in words if word is not None]
    return known if known and len(known) == len(words) else None


_COUNTS = ("epochs", "best_epoch", "params", "img_size", "seed")
ORIGIN = ("split_fingerprint", "data_fingerprint", "git_sha", "model", "model_name", "data", "training")
"""Texts of metrics.json that say what was trained, on what."""
_CHECKS: dict[str, Callable[[object], Any]] = {
    **dict.fromkeys(_COUNTS, whole),
    **dict.fromkeys((*ORIGIN, "groups", "method", "why_no_val"), line),
    "seconds": lambda value: number(value, 0, 10**9),
    "images_per_second": lambda value: number(value, 0, 10**9),
    "members": _members,
    "class_names": _lines,
}


def read_metrics(run_dir: Path) -> Figures:
    """The figures in a run's metrics.json, and what it says about the run; empty if it cannot be read.

    Each value has its type and range: figures are finite numbers, not above their `highest`; `monitor` names a figure;
    intervals are pairs from 0 to 1; texts are lines without control characters. Anything else is left out.
    """
    try:
        content = parsed(read(run_dir, METRICS, LIMITS[METRICS]))
    except (RunFileError, ValueError):
        return {}
    return checked(content) if isinstance(content, dict) else {}


def checked(content: Mapping[str, Any]) -> Figures:
    """What is valid in the content of a metrics.json: see `read_metrics`."""
    valid: Figures = {}
    columns = figures.columns()
    for name, column in columns.items():
        highest = column.figure.highest
        valid[name] = number(content.get(name), high=1e15 if highest is None else highest)
        valid[f"{name}_interval"] = _interval(content.get(f"{name}_interval"))
    for name, check in _CHECKS.items():
        valid[name] = check(content.get(name))
    monitor = content.get("monitor")
    valid["monitor"] = monitor if isinstance(monitor, str) and monitor in columns else None
    return {name: value for name, value in valid.items() if value is not None}


def ensemble_members(path: Path) -> list[Path]:
    """The checkpoints that an ensemble.json names, by paths relative to its folder; empty for any other file, and if it
    cannot be read. One in a run directory may name only files of runs in its runs folder."""
    if path.suffix != ".json":
        return []
    within = run_of(path)
    try:
        with open_named(path) as file:
            members = _members(parsed(file.read(LIMITS[ENSEMBLE]))["members"]) or []
    except (RunFileError, OSError, ValueError, KeyError, TypeError):
        return []
    paths = [Path(os.path.abspath(path.parent / member["checkpoint"])) for member in members]  # noqa: PTH100  # keeps links
    if within is None:
        return paths
    root = within[0].parent.parent
    return [each for each in paths if each.is_relative_to(root) and run_of(each) and is_usable(each)]
