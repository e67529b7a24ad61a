"""Errors that end a command, each with its exit code from the contract.

A caller that catches `TrainerError` can print `str(error)`. It says what is wrong, where, and what to type next.
"""

from __future__ import annotations

import functools
import heapq
import os
from collections.abc import Iterable, Sequence

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 64
EXIT_DATA = 65
EXIT_DEVICE_MEMORY = 75
EXIT_STOPPED = 143


class TrainerError(Exception):
    """An error that ends a command with one clear message and no traceback."""

    exit_code = EXIT_FAILED


class ConfigError(TrainerError):
    """Bad arguments, configuration, checkpoint or weights. A retry does not help."""

    exit_code = EXIT_USAGE


class DataError(TrainerError):
    """Bad data. The message names the file and the row."""

    exit_code = EXIT_DATA


class DeviceMemoryError(TrainerError):
    """The device ran out of memory. Retry in a new process with a smaller micro-batch."""

    exit_code = EXIT_DEVICE_MEMORY


class StoppedError(TrainerError):
    """Stopped on request (SIGTERM or Ctrl-C), after the run wrote `last.ckpt`."""

    exit_code = EXIT_STOPPED


def os_error(error: OSError) -> str:
    """A system error in the form of our messages: the file, then the reason."""
    if error.filename is None or error.strerror is None:
        return str(error)
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    return f"{' → '.join(names) or error.filename}: {error.strerror}"


def nearest(word: str, valid: Iterable[str]) -> str:
    """A hint for an error message: the nearest name of `valid`, or the valid names if none is near. Dashes at the
    beginning of options count for nothing: they would make all of them alike.

    >>> nearest("resnet43", ["resnet34", "deit_base_384"])
    "did you mean 'resnet34'?"
    """
    return _nearest(word, tuple(sorted(set(valid))))


@functools.lru_cache(1024)
def _nearest(word: str, names: Sequence[str]) -> str:
    """Cached: a thousand runs with one wrong name ask a thousand times."""
    import difflib

    lower, word = {name.lower().lstrip("-"): name for name in names}, word.lower().lstrip("-")
    candidates = heapq.nlargest(1000, lower, key=lambda name: _in_place(name, word))  # difflib is slow
    match = difflib.get_close_matches(word, candidates, n=1, cutoff=0.6)
    if match:
        return f"did you mean '{lower[match[0]]}'?"
    if len(names) <= 12:
        return "valid: " + ", ".join(names)
    return "valid: " + ", ".join(names[:12]) + f", … ({len(names)} in all)"


def _in_place(one: str, other: str) -> int:
    """How many characters of two words agree at the same place, from their beginning or from their end."""
    ways = (one, other), (one[::-1], other[::-1])
    return max(sum(a == b for a, b in zip(*way, strict=False)) for way in ways)
