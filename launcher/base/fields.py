"""Types of the fields of a JSON object that a crash, another program or another user may have changed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

Check = tuple[Callable[[Any], bool], str]
"""Whether a value has the type, and the name of the type."""


class NotFiniteError(ValueError):
    """A number is NaN or infinite, which JSON does not have."""


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise NotFiniteError(f"{text[:40]} is not a finite number")
    return number


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)


def parsed(text: str) -> Any:
    """The value of a JSON text. Raises ValueError, and RecursionError if it is nested too deep."""
    return _DECODER.decode(text)


def wrong(content: Mapping[str, Any], checks: Mapping[str, Check]) -> str:
    """The first field of another type, for a message: `devices: 7 is not a list of texts`. Empty if there is none. A
    field that is missing or null is right."""
    if all(value is None or name not in checks or checks[name][0](value) for name, value in content.items()):
        return ""
    for name, (is_right, what) in checks.items():
        value = content.get(name)
        if value is not None and not is_right(value):
            shown = json.dumps(value)
            return f"{name}: {shown if len(shown) <= 40 else shown[:39] + '…'} is not {what}"
    return ""


def whole(low: int = 0, high: int = 10**15) -> Check:
    """An integer from `low` to `high`."""
    return lambda value: type(value) is int and low <= value <= high, "an integer in its range"


def number(low: float = 0, high: float = 1e15) -> Check:
    """A finite number from `low` to `high`."""

    def is_right(value: Any) -> bool:
        return type(value) in (int, float) and low <= value <= high and math.isfinite(value)

    return is_right, "a number in its range"


def one_of(values: tuple[str, ...]) -> Check:
    """One of these texts."""
    return lambda value: isinstance(value, str) and value in values, "a word of this launcher"


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_mapping_of_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


def _is_names(value: Any) -> bool:
    return _is_texts(value) and all(is_name(item) for item in value)


def is_name(text: str) -> bool:
    """Whether a text can be the name of a run or submission: a file's name that is not hidden."""
    return text != "" and not text.startswith(".") and "/" not in text and "\0" not in text


TEXT: Check = (lambda value: isinstance(value, str), "a text")
TEXTS: Check = (_is_texts, "a list of texts")
NAME: Check = (lambda value: isinstance(value, str) and is_name(value), "a name")
NAMES: Check = (_is_names, "a list of names")
FLAG: Check = (lambda value: isinstance(value, bool), "true or false")
MAPPING: Check = (lambda value: isinstance(value, dict), "a mapping")
TEXTS_BY_NAME: Check = (_is_mapping_of_texts, "a mapping of texts")
COUNT: Check = whole()
AMOUNT: Check = number()
