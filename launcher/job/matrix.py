"""Combinations: expand, exclude, include, name. Uses only strings and dicts, so that 10,000 are fast."""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

Combination = dict[str, Any]
MOST_RUNS = 10_000
MOST_COMPARED = 2_000_000
"""Pairs of a combination and an entry of exclude or include. One takes about half a microsecond."""
MOST_KEYS = 1_000
"""Different keys of a job, which are more than the configuration has: each wrong one costs a millisecond."""
MOST_STEPS = 1_000
MOST_MATCHED = 500_000
"""Pairs of a run and a pattern of a step. One takes some microseconds."""
MOST_GLOBS = 5_000
"""Patterns of runs with wildcards: to make one ready takes as long as to compare it a hundred times."""
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
    # Compared as text, which is made once for each value: most of the time of a large matrix went there.
    known = {key: {id(value): _comparable(value) for value in values} for key, values in matrix.items()}
    excluded = [_comparables(entry) for entry in exclude]
    results: list[tuple[Combination, Combination, list[int]]] = []
    comparables: list[dict[str, Any]] = []
    for combo in products:
        texts = {key: known[key][id(value)] for key, value in combo.items()}
        if not any(entry and entry.items() <= texts.items() for entry in excluded):
            results.append((combo, dict(combo), []))
            comparables.append(texts)
    added: list[tuple[Combination, int]] = []
    for position, entry in enumerate(include):
        fitted = False
        on_axes = {key: value for key, value in _comparables(entry).items() if key in matrix}
        for texts, (_, values, positions) in zip(comparables, results, strict=True):
            if entry and on_axes.items() <= texts.items():
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
    known = {key: {_comparable(value) for value in values} for key, values in matrix.items()}
    return [
        position
        for position, entry in enumerate(exclude)
        if not entry or not all(value in known.get(key, ()) for key, value in _comparables(entry).items())
    ]


def too_many(
    matrix: Mapping[str, Sequence[Any]], exclude: Sequence[Combination], include: Sequence[Combination]
) -> tuple[str, str] | None:
    """Why the job would have too many runs, or would take too long to expand: the field to blame, and a text. None if
    it is fine. Builds nothing, so that a short text cannot take all memory."""
    count = math.prod(len(values) for values in matrix.values())
    if count > MOST_RUNS:
        product = " × ".join(f"{len(values):,} {key}" for key, values in matrix.items() if len(values) > 1)
        return "matrix", f"{product} = {count:,} runs; a job has at most {MOST_RUNS:,}: split it into several jobs"
    if len(include) > MOST_RUNS:
        return "include", f"{len(include):,} entries; a job has at most {MOST_RUNS:,} runs: split it into several jobs"
    for field, entries in (("exclude", exclude), ("include", include)):
        if count * len(entries) > MOST_COMPARED and count > 1:
            return field, (
                f"{len(entries):,} entries for {count:,} combinations are too many to compare (at most "
                f"{MOST_COMPARED:,} pairs): split the job into several"
            )
    return None


def _comparables(entry: Combination) -> dict[str, Any]:
    return {key: _comparable(value) for key, value in entry.items()}


def _comparable(value: Any) -> Any:
    """Equal for equal values: 1e-4 of the command line, which is text, and 0.0001 of a file."""
    text = override_value(value)
    if isinstance(value, bool) or not re.fullmatch(r"[-+]?[0-9]{1,300}(\.[0-9]*)?([eE][-+]?[0-9]{1,3})?", text):
        return text
    return Decimal(text)


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
    if isinstance(value, int | float) or re.fullmatch(r"[A-Za-z0-9_./@%+:-]*[A-Za-z0-9_/]|\$\{[\w.:,]+\}", text):
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


@functools.lru_cache(maxsize=10_000)
def _safe(part: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.+]+", "_", part.rsplit("/", 1)[-1]).strip("_.") or "x"


def run_name(index: int, combo: Combination, keys: Sequence[str], fallback: str) -> str:
    """`003-swin_base_384-transformer_384`: the number (from 1) and the values of `keys`, in safe characters."""
    parts = [
        override_value(combo[key]) if key in SHORT else f"{key.rsplit('.', 1)[-1]}{override_value(combo[key])}"
        for key in keys
        if key in combo
    ]
    text = "-".join(map(_safe, parts))
    return f"{index:03d}-{text[:80] or fallback}"
