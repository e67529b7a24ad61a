"""Types of the fields of a JSON object that a crash, another program or another user may have changed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from trainer.base.brief import in_brief

Check = tuple[tuple[type, ...], Callable[[Any], bool] | None, str]
"""The types of a value as JSON has them, what else must be true of it, and their name. Thousands of runs have tens of
fields each: a type is compared faster than a function is called."""


class NotFiniteError(ValueError):
    """A number is NaN or infinite, which JSON does not have."""


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise NotFiniteError(f"{in_brief(text, 40)} is not a finite number")
    return number


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)


def parsed(text: str) -> Any:
    """The value of a JSON text. Raises ValueError, and RecursionError if it is nested too deep."""
    return _DECODER.decode(text)


def wrong(content: Mapping[str, Any], checks: Mapping[str, Check], required: Collection[str] = ()) -> str:
    """The first field of another type, for a message: `devices: 7 is not a list of texts`. Empty if there is none. A
    field that is missing is right, and one that is null if it is not `required`."""
    for name, value in content.items():
        if value is None:
            if name in required:
                return f"{name} is null"
        elif name in checks:
            types, is_right, what = checks[name]
            if type(value) not in types or (is_right is not None and not is_right(value)):
                shown = json.dumps(value)
                return f"{name}: {shown if len(shown) <= 40 else shown[:39] + '…'} is not {what}"
    return ""


def whole(low: int = 0, high: int = 10**15) -> Check:
    """An integer from `low` to `high`."""
    return (int,), lambda value: low <= value <= high, "an integer in its range"


def number(low: float = 0, high: float = 1e15) -> Check:
    """A finite number from `low` to `high`."""
    return (int, float), lambda value: low <= value <= high and math.isfinite(value), "a number in its range"


def one_of(values: tuple[str, ...]) -> Check:
    """One of these texts."""
    return (str,), lambda value: value in values, "a word of this launcher"


def _are_texts(values: Iterable[Any]) -> bool:
    return {str}.issuperset(map(type, values))


def _are_names(values: list[Any]) -> bool:
    return _are_texts(values) and all(is_name(item) for item in values)


def is_name(text: str) -> bool:
    """Whether a text can be the name of a run or submission: a file's name that is not hidden."""
    return text != "" and not text.startswith(".") and "/" not in text and "\0" not in text


TEXT: Check = (str,), None, "a text"
TEXTS: Check = (list,), _are_texts, "a list of texts"
NAME: Check = (str,), is_name, "a name"
NAMES: Check = (list,), _are_names, "a list of names"
FLAG: Check = (bool,), None, "true or false"
MAPPING: Check = (dict,), None, "a mapping"
TEXTS_BY_NAME: Check = (dict,), lambda value: _are_texts(value.values()), "a mapping of texts"
COUNT: Check = whole()
AMOUNT: Check = number()
