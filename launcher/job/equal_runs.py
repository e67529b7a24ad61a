"""Runs of a job that equal each other in all but their name: which values make no difference, and where they are."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.job.matrix import Entry, override_value
from launcher.record import reuse
from trainer.config.keys import CONF_DIR, GROUPS, option_names

KeyPath = tuple[str | int, ...]
Origins = Mapping[str, KeyPath | None]
"""The place of each key's value in the job file; None: the command line."""


@dataclass(frozen=True)
class _Pair:
    """Two equal runs: their indices from 1, their names, and the origins of the second."""

    first: tuple[int, str]
    second: tuple[int, str]
    origins: Origins


class EqualRuns:
    """Finds equal runs among the runs that it is given one after another."""

    def __init__(self, entries: Sequence[Entry], keys: Sequence[str]) -> None:
        """`entries` are the combinations of the matrix, `keys` the keys of the job's further overrides."""
        self._entries = entries
        named = {*keys, *(key for entry in entries[:1] for key in entry.values)}
        named |= {key for entry in entries if entry.includes for key in entry.values}
        self._groups = any(group in named and any(key.startswith(f"{group}.") for key in named) for group in GROUPS)
        """Whether a key may set what a group sets: then two groups can be equal."""
        self._firsts: dict[tuple[str, ...], tuple[int, str]] = {}
        self._pairs: list[_Pair] = []
        self._texts: dict[int, tuple[object, str]] = {}

    def add(self, index: int, name: str, plain: Mapping[str, Any], identity: str, origins: Origins) -> None:
        """A run with its configuration and its identity."""
        if self._groups:
            identity = reuse.identity({**plain, "choices": {}}, self._texts)
        others = (key.rpartition(".") for key in reuse.UNIMPORTANT)
        key = (identity, *(repr(plain[section][leaf]) for section, _, leaf in others))
        first = self._firsts.setdefault(key, (index, name))
        if first[0] != index:
            self._pairs.append(_Pair(first, (index, name), origins))

    def errors(self, axes: Mapping[str, Sequence[object]], place: Callable[[KeyPath | None], str]) -> list[str]:
        """One line for each cause, with one example. `axes` are those of the matrix."""
        if not self._pairs:
            return []
        twice = [key for key, values in axes.items() if len(set(map(override_value, values))) < len(values)]
        by_cause: dict[str, list[_Pair]] = {}
        for pair in self._pairs:
            by_cause.setdefault(self._cause(pair, twice, place), []).append(pair)
        lines = []
        for cause, same in by_cause.items():
            others = len(same) - 1
            more = f", and {others} other pair{'s are' if others > 1 else ' is'} equal, too" if others else ""
            names = f"{same[0].second[1]} equals {same[0].first[1]}"
            lines.append(f"{cause}: {names}{more}; remove one of them")
        return lines

    def _cause(self, pair: _Pair, twice: Sequence[str], place: Callable[[KeyPath | None], str]) -> str:
        """The places to blame, and which values make no difference. `twice`: axes that have a value twice."""
        one, other = (self._entries[index - 1] for index, _ in (pair.first, pair.second))
        keys = [*dict.fromkeys([*one.values, *other.values])]
        texts = [
            {key: override_value(entry.values[key]) for key in keys if key in entry.values} for entry in (one, other)
        ]
        differing = [key for key in keys if texts[0].get(key) != texts[1].get(key)]
        groups = [(key, text[key]) for key in differing for text in texts if key in text]
        beside = [key for key in pair.origins if any(_sets(group, option, key) for group, option in groups)]
        if differing and beside:
            origins: list[KeyPath | None] = [pair.origins.get(key, ()) for key in (*differing, *beside)]
            what = f"{' and '.join(differing)} makes no difference beside {' and '.join(beside)}"
        elif differing:
            origins = [pair.origins.get(key, ()) for key in differing]
            what = ", ".join(f"{key}: {texts[0].get(key)} and {texts[1].get(key)} are the same" for key in differing)
        else:
            added = [("include", number) for number in (*one.includes, *other.includes)]
            origins = [*(pair.origins.get(key, ()) for key in twice), *added]
            what = f"{' and '.join(twice)} has a value twice" if twice else "the same run twice"
        short = [path[:-1] if path and isinstance(path[-1], int) and path[0] == "matrix" else path for path in origins]
        return f"{' and '.join(dict.fromkeys(map(place, short)))}: {what}"


def _sets(group: str, option: str, key: str) -> bool:
    """Whether an option of a group sets this key."""
    if group not in GROUPS or option not in option_names(group) or not key.startswith(f"{group}."):
        return False
    text = (CONF_DIR / group / f"{option}.yaml").read_text(encoding="utf-8")
    return re.search(rf"^{re.escape(key.removeprefix(f'{group}.').partition('.')[0])}:", text, re.M) is not None
