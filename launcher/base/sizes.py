"""Sizes and durations as people write them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from launcher.base.errors import SizeError
from trainer.base.durations import duration

GIB = 2**30
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_DURATION = re.compile("".join(rf"(?:(?P<{unit}>[0-9]+(?:\.[0-9]+)?)\s*{unit}\s*)?" for unit in _SECONDS))
"""Each unit at most once, the largest first."""
SIZE_PATTERN = r"\s*(?=.*[1-9])([0-9]+(\.[0-9]+)?\s*[KkMmGgTt]([Ii]?[Bb])?|[0-9]{7,}(\.[0-9]+)?\s*([Ii]?[Bb])?)\s*"
DURATION_PATTERN = (
    r"\s*(?=.*[1-9])([0-9]+(\.[0-9]+)?|"
    + "".join(rf"([0-9]+(\.[0-9]+)?\s*[{unit.upper()}{unit}]\s*)?" for unit in _SECONDS)
    + r")\s*"
)
"""Texts that `parse_size` and `parse_duration` read, for a JSON schema, whose patterns have no flags."""


def parse_size(value: Any) -> int:
    """`24g`, `1.5GiB`, `512m` or a number of bytes → bytes (a unit is a power of 1,024). Raises SizeError."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(?:i?b)?", str(value).strip().lower())
    if isinstance(value, bool) or match is None:
        raise SizeError(f"{value!r} is not a size; write it like 24g, 512m or a number of bytes")
    size = float(match[1]) * _UNITS[match[2]]
    if size < 1:
        raise SizeError(f"{value!r} is less than one byte; write it like 24g, 512m or a number of bytes")
    if not match[2] and size < 2**20:
        raise SizeError(f"{value!r} would be bytes; write its unit, like {match[1]}g or {match[1]}m")
    if not size < 2**60:
        raise SizeError(f"{value!r} is too large for any machine; write it like 24g")
    return int(size)


def parse_duration(value: Any) -> float:
    """`8h`, `90s`, `1h30m` or a number of seconds → seconds. Raises SizeError."""
    text = str(value).strip().lower()
    if not isinstance(value, bool) and re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
        seconds = float(text)
    else:
        match = _DURATION.fullmatch(text)
        if match is None or not text:
            raise SizeError(f"{value!r} is not a duration; write it like 8h, 30m or 1h30m")
        seconds = sum(float(match[unit]) * size for unit, size in _SECONDS.items() if match[unit])
    if seconds == 0:
        raise SizeError(f"{value!r} is no time at all; write it like 8h, 30m or 1h30m")
    if not 0 < seconds < 1e9 or not math.isfinite(seconds):
        raise SizeError(f"{value!r} is too long; write it like 8h, 30m or 1h30m")
    return seconds


def show_size(size: int | None) -> str:
    """Bytes → `24 GiB`, `512 MiB`, `–`."""
    if size is None:
        return "–"
    amount, unit = (size / GIB, "GiB") if size >= GIB else (size / 2**20, "MiB")
    return f"{amount:.0f} {unit}" if amount >= 100 else f"{amount:.3g} {unit}"


def show_duration(seconds: float | None) -> str:
    """Seconds → `1 h 5 min`, `3 min 20 s`, `8 s`, `–`."""
    return "–" if seconds is None else duration(seconds)


def typed_duration(seconds: float) -> str:
    """Seconds as `parse_duration` reads them: `1h30m`.

    >>> typed_duration(86400 + 5400)
    '25h30m'
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return "".join(f"{number}{unit}" for number, unit in ((hours, "h"), (minutes, "m"), (rest, "s")) if number) or "0s"


def listed(names: Sequence[str], most: int = 12) -> str:
    """Names in a row: at most `most`, then how many more there are.

    >>> listed(["a", "b", "c"], most=2)
    'a, b … and 1 more'
    """
    more = f" … and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
