"""Folds as an axis of a job's matrix: `data.fold: all`, and the runs that are folds of one configuration."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

from launcher.base.errors import JobError
from launcher.job.document import COMMAND_LINE, Document
from launcher.record.request import RunRequest

AXIS = "data.fold"
COUNT = "data.folds"
ALL = "all"
MOST = 1000
"""Folds: as the trainer has it."""


def spread(document: Document, words: Sequence[str]) -> tuple[Document, list[str]]:
    """The job file's content and the command line's words with each `data.fold: all` as the list of all folds.

    Raises JobError where the number of folds is not one for all runs.
    """
    matrix = document.content.get("matrix")
    in_file = isinstance(matrix, dict) and matrix.get(AXIS) == ALL
    word = f"{AXIS}={ALL}"
    if not in_file and word not in words:
        return document, list(words)
    folds = _count(document, words)
    if folds is None:
        place = COMMAND_LINE if word in words else document.place(("matrix", AXIS))
        raise JobError(
            f"{place}: {AXIS}: {ALL}: of how many? say overrides: {{{COUNT}: 5}}, or {COUNT}=5 on the command line "
            f"(2 to {MOST})"
        )
    numbers = list(range(folds))
    if in_file:
        assert isinstance(matrix, dict)
        content = {**document.content, "matrix": {**matrix, AXIS: numbers}}
        document = dataclasses.replace(document, content=content)
    return document, [f"{AXIS}={','.join(map(str, numbers))}" if override == word else override for override in words]


def _count(document: Document, words: Sequence[str]) -> int | None:
    overrides = document.content.get("overrides")
    count: Any = overrides.get(COUNT) if isinstance(overrides, dict) else None
    for override in words:
        key, _, text = override.partition("=")
        count = text if key == COUNT else count
    number = int(count) if isinstance(count, int | str) and str(count).isdecimal() else 0
    return number if 2 <= number <= MOST else None


def configuration(words: Sequence[str]) -> str:
    """The name that runs share whose overrides differ in their fold alone."""
    others = sorted(word for word in words if not word.startswith(f"{AXIS}="))
    return hashlib.sha256(repr(others).encode()).hexdigest()


def counts(trained: Sequence[RunRequest]) -> dict[str, int]:
    """How many folds each configuration has, of those that have several."""
    folds = collections.Counter(request.configuration for request in trained if request.configuration)
    return {configuration: number for configuration, number in folds.items() if number > 1}
