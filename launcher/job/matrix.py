"""Combinations: expand, exclude, include, name. Uses only strings and dicts, so that 10,000 are fast."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Combination = dict[str, Any]
SHORT = ("model", "data", "training", "model.name")


@dataclass(frozen=True)
class Entry:
    """A combination, with the positions of the include entries that changed it, for messages."""

    values: Combination
    includes: tuple[int, ...] = ()


def expand(
    matrix: Mapping[str, Sequence[Any]], exclude: Sequence[Combination] = (), include: Sequence[Combination] = ()
) -> list[Entry]:
    """Every combination of the axes (in their order, the last fastest), as GitHub Actions expands a matrix.

    Leaves out a combination that has all pairs of an `exclude` entry. Adds an `include` entry to each combination whose
    axis values it does not change (it may change values of an earlier include). If there is no such combination, the
    entry becomes a combination of its own. Without axes and includes there is one empty combination.
    """
    axes = list(matrix)
    products = [dict(zip(axes, values, strict=True)) for values in itertools.product(*matrix.values())] if axes else []
    kept = [combo for combo in products if not any(_has(combo, entry) for entry in exclude)]
    results: list[tuple[Combination, Combination, list[int]]] = [(combo, dict(combo), []) for combo in kept]
    added: list[tuple[Combination, int]] = []
    for position, entry in enumerate(include):
        fitted = False
        for original, values, positions in results:
            if entry and all(key not in original or _same(original[key], value) for key, value in entry.items()):
                values.update(entry)
                positions.append(position)
                fitted = True
        if not fitted:
            added.append((dict(entry), position))
    entries = [Entry(values, tuple(positions)) for _, values, positions in results]
    entries += [Entry(values, (position,)) for values, position in added]
    return entries if axes or entries else [Entry({})]


def unmatched(matrix: Mapping[str, Sequence[Any]], exclude: Sequence[Combination]) -> list[int]:
    """The positions of exclude entries that match nothing, which are almost always mistakes."""
    return [
        position
        for position, entry in enumerate(exclude)
        if not entry or not all(any(_same(v, value) for v in matrix.get(key, ())) for key, value in entry.items())
    ]


def _has(combo: Combination, entry: Combination) -> bool:
    return bool(entry) and all(key in combo and _same(combo[key], value) for key, value in entry.items())


def _same(a: Any, b: Any) -> bool:
    return override_value(a) == override_value(b)


def override_value(value: Any) -> str:
    """A YAML value in Hydra's override grammar: `null`, `true`, `[1,2]`, `{a:1}`, text quoted if necessary."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ",".join(override_value(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{override_value(item)}" for key, item in value.items()) + "}"
    text = str(value)
    if isinstance(value, int | float) or re.fullmatch(r"[A-Za-z0-9_./@%+~:-]*[A-Za-z0-9_/]|\$\{[\w.:,]+\}", text):
        return text
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text)
    return f"'{escaped}'"


def differing(combinations: Sequence[Combination]) -> list[str]:
    """The keys whose values differ between combinations, in the order of their first occurrence."""
    keys = dict.fromkeys(key for combo in combinations for key in combo)
    first = {key: override_value(combinations[0].get(key)) for key in keys} if combinations else {}
    missing = object()
    return [
        key
        for key in keys
        if any(combo.get(key, missing) is missing or override_value(combo[key]) != first[key] for combo in combinations)
    ]


def run_name(index: int, combo: Combination, keys: Sequence[str], fallback: str) -> str:
    """`003-swin_base_384-transformer_384`: the number (from 1) and the values of `keys`, in safe characters."""
    parts = [
        override_value(combo[key]) if key in SHORT else f"{key.rsplit('.', 1)[-1]}{override_value(combo[key])}"
        for key in keys
        if key in combo
    ]
    text = "-".join(re.sub(r"[^A-Za-z0-9_.+]+", "_", part.rsplit("/", 1)[-1]).strip("_.") or "x" for part in parts)
    return f"{index:03d}-{text[:80] or fallback}"
