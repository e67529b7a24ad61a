"""Where a job sets each value of a run: the overrides of a run, and the place of an error in its configuration."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from launcher.job import matrix
from launcher.job.document import COMMAND_LINE
from launcher.job.spec import Job
from launcher.record.request import RunRequest

Place = tuple[str | int, ...]
"""The keys and positions that lead to a value in the job file."""
Origins = dict[str, Place | None]
"""The place of each key's value; None: the command line."""


def positions_of(job: Job) -> dict[str, dict[str, int]]:
    """Index of the first occurrence of each value of each axis. A search per run would be slow for thousands of
    runs."""
    positions: dict[str, dict[str, int]] = {}
    for key, axis in job.spec.matrix.items():
        for position, value in enumerate(axis):
            positions.setdefault(key, {}).setdefault(matrix.override_value(value), position)
    return positions


def overrides_of(job: Job, entry: matrix.Entry, positions: dict[str, dict[str, int]]) -> tuple[list[str], Origins]:
    """The run's overrides in Hydra's grammar, and the place of each key's value (None: the command line)."""
    values: dict[str, str] = {}
    origins: Origins = {}
    for key, value in job.spec.overrides.items():
        values[key], origins[key] = matrix.override_value(value), ("overrides", key)
    for key, value in entry.values.items():
        including = [i for i in entry.includes if key in job.spec.include[i]]
        typed = key in job.axes and not including  # a word of the command line is in Hydra's grammar already
        values[key] = value if typed else matrix.override_value(value)
        position = positions.get(key, {}).get(values[key])
        if typed:
            origins[key] = None
        elif including:
            origins[key] = ("include", including[-1], key)
        else:
            origins[key] = ("matrix", key) if position is None else ("matrix", key, position)
    words = {key: f"{key}={value}" for key, value in values.items()}
    for word in job.overrides:
        key = word.partition("=")[0]
        words[key], origins[key] = word, None
    return list(words.values()), origins


def attributed(line: str, origins: Origins, job: Job) -> str:
    """An error of the trainer with the place of the value."""
    first = line.partition("=")[0].partition(":")[0].strip()
    # A conflict names a second key; a key of the command line is to blame for it, not a line of the file.
    named = [_origin(key, origins) for key in (first, *re.findall(r"([a-z_]+(?:\.\w+)*)=", line))]
    known = [key for key in named if key is not None]
    if not known:
        return f"{job.document.place(())}: {line}"
    to_blame = next((key for key in known if origins[key] is None), known[0])
    return f"{place_of(origins[to_blame], job)}: {line}"


def blame(job: Job) -> Callable[[RunRequest, str], str]:
    """A function that puts the place of the value before an error of a run that its trainer would find. Errors that
    name no value stay as they are."""
    entries: list[matrix.Entry] = []
    positions = positions_of(job)

    def placed(request: RunRequest, line: str) -> str:
        if request.kind != "train":
            offset = next((n for n, step in enumerate(job.spec.after) if request.name.endswith(f"-{step.name}")), 0)
            return f"{job.document.place(('after', offset))}: {request.name.partition('-')[2]}: {line}"
        if not re.match(r"(data|training|model)(\.\w+)+[=:]", line):
            return line
        if not entries:  # expanded again, because most jobs have no such error
            entries.extend(matrix.expand(job.matrix, job.spec.exclude, job.spec.include))
        return attributed(line, overrides_of(job, entries[request.index - 1], positions)[1], job)

    return placed


def _origin(key: str, origins: Mapping[str, object]) -> str | None:
    """The key of the job that sets `key`: itself, else the longest one above it (a group), else one below it."""
    if key in origins:
        return key
    above = [other for other in origins if key.startswith(f"{other}.")]
    return max(above, key=len, default=next((other for other in origins if other.startswith(f"{key}.")), None))


def place_of(path: Place | None, job: Job) -> str:
    """The place of a value, for a message."""
    return COMMAND_LINE if path is None else job.document.place(path)
