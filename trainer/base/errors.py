"""Errors that end a command, each with the exit code that the contract gives it.

A caller that catches `TrainerError` can print `str(error)` as it stands: it says what was wrong, where, and what to
type next.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 64
EXIT_DATA = 65
EXIT_DEVICE_MEMORY = 75
EXIT_STOPPED = 143


class TrainerError(Exception):
    """Anything that ends a command with one clear message and no traceback."""

    exit_code = EXIT_FAILED


class ConfigError(TrainerError):
    """Bad arguments, configuration, checkpoint or weights: never worth a retry."""

    exit_code = EXIT_USAGE


class DataError(TrainerError):
    """Bad data: the message names the file and the row."""

    exit_code = EXIT_DATA


class DeviceMemoryError(TrainerError):
    """The device ran out of memory: worth a retry in a fresh process with a smaller micro-batch."""

    exit_code = EXIT_DEVICE_MEMORY


class StoppedError(TrainerError):
    """Stopped on request (SIGTERM or Ctrl-C), after `last.ckpt` was written."""

    exit_code = EXIT_STOPPED


def os_error(error: OSError) -> str:
    """The system's error in the form of every other message: the file, then what is the matter with it."""
    if error.filename is None or error.strerror is None:
        return str(error)
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    return f"{' → '.join(names) or error.filename}: {error.strerror}"


def nearest(word: str, valid: Iterable[str]) -> str:
    """A hint to append to an error: the nearest of `valid`, or all of them when none is near (and they are few).

    >>> nearest("resnet43", ["resnet34", "deit_base_384"])
    "did you mean 'resnet34'?"
    """
    names = sorted(set(valid))
    lower = {name.lower(): name for name in names}
    match = difflib.get_close_matches(word.lower(), list(lower), n=1, cutoff=0.6)
    if match:
        return f"did you mean '{lower[match[0]]}'?"
    if len(names) <= 12:
        return "valid: " + ", ".join(names)
    return "valid: " + ", ".join(names[:12]) + f", … ({len(names)} in all)"
