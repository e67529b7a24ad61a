"""`.env` in the folder in which the launcher starts, read as the trainer reads it. The environment wins."""

from __future__ import annotations

import os
from pathlib import Path

FILE = Path(".env")
_notes: list[str] = []


def load() -> None:
    """Set the variables of `.env` that the environment lacks. `notes` then says which, and what is wrong with the file:
    a command that only looks must not fail because of it."""
    _notes.clear()
    if not FILE.is_file():
        return
    import logging

    from dotenv.main import DotEnv
    from dotenv.parser import parse_stream

    logging.getLogger("dotenv.main").disabled = True  # it would print what it cannot parse
    try:
        with FILE.open(encoding="utf-8") as stream:
            _notes.extend(
                f"note: {FILE}:{binding.original.line}: not NAME=VALUE; the line is ignored"
                for binding in parse_stream(stream)
                if binding.error
            )
        values = DotEnv(FILE, encoding="utf-8", override=False).dict()
    except UnicodeDecodeError:
        _notes.append(f"note: {FILE}: not text in UTF-8; it is ignored")
        return
    except OSError as error:
        _notes.append(f"note: {FILE}: cannot be read ({error.strerror}); it is ignored")
        return
    names = [name for name, value in values.items() if value is not None and name not in os.environ]
    for name in list(names):
        try:
            os.environ[name] = values[name] or ""
        except ValueError:  # a zero byte, or = in the name
            _notes.append(f"note: {FILE}: {name!r}: no variable can have this name or value; it is ignored")
            names.remove(name)
    if names:
        _notes.insert(0, f"note: {FILE.absolute()} sets {', '.join(names)}")


def notes() -> list[str]:
    """Which variables were set, without their values, and what was ignored."""
    return list(_notes)
