"""Folds as an axis of a job's matrix: `data.fold: all`, and the runs that are folds of one configuration."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.base.errors import JobError, LauncherError
from launcher.job.document import COMMAND_LINE, Document
from launcher.record.request import RunRequest, read_request

AXIS = "data.fold"
COUNT = "data.folds"
TEACHERS = "training.teachers"
ALL = "all"
MOST = 1000
"""Largest number of folds, as in the trainer."""


def spread(document: Document, words: Sequence[str]) -> tuple[Document, list[str]]:
    """Replace each `data.fold: all` in the job file and on the command line by the list of all folds.

    Raises JobError if the number of folds is not the same for all runs.
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
            f"{place}: {AXIS}: {ALL}: how many? write overrides: {{{COUNT}: 5}}, or on the command line {COUNT}=5 "
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


def configuration(words: Sequence[str], taught: Sequence[str] = ()) -> str:
    """The common name of runs whose overrides differ only in the fold. `taught`: what `taught_by` says of the teachers,
    which may be other files for each fold."""
    others = sorted(word for word in words if not word.startswith((f"{AXIS}=", f"{TEACHERS}=")))
    words = [*others, *taught]
    return hashlib.sha256(repr(words).encode()).hexdigest()


def taught_by(teacher: str, folds: int, fold: int) -> str:
    """A description of a teacher of a run with a fold. One that is the same fold of another configuration is described
    by this configuration, any other by its path."""
    try:
        own = read_request(Path(teacher).expanduser().parent)
    except (LauncherError, OSError):
        return teacher
    same = (own.config.get("folds"), own.config.get("fold")) == (folds, fold) and bool(own.configuration)
    return f"fold of {own.configuration}" if same else teacher


def counts(trained: Sequence[RunRequest]) -> dict[str, int]:
    """Number of folds of each configuration that has several."""
    folds = collections.Counter(request.configuration for request in trained if request.configuration)
    return {configuration: number for configuration, number in folds.items() if number > 1}
