"""The spelling of names: of classes, groups, images and files. Names that look the same are one name."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import PurePath

JOINERS = "\u200c\u200d"
"""Invisible characters that change how a name looks: they join letters, or the parts of an emoji."""
REPAIR = "convmv -r -f cp949 -t utf8 --notest"
"""A command that renames files from CP949 to UTF-8 below a folder (Debian package convmv)."""


def visible(name: str) -> str:
    """The name as a reader sees it: Unicode form NFC, no invisible characters, single spaces, none at the ends.

    >>> visible("\\ufeffo\\u0308l\\u00a0 \\x1b1 ")
    'öl 1'
    """
    if name.isascii() and name.isalnum():
        return name
    hidden = ("Cc", "Cf")  # control and format characters; a terminal would obey the first
    seen = "".join(c for c in name if unicodedata.category(c) not in hidden or c in JOINERS or c.isspace())
    return unicodedata.normalize("NFC", " ".join(seen.split()))


def file_key(name: str) -> str:
    """Files with equal keys have one visible name, apart from the case of its suffix: `A.JPG` and `A.jpg`."""
    seen = visible(name)
    stem, dot, suffix = seen.rpartition(".")
    return f"{stem}.{suffix.lower()}" if dot and stem else seen


def is_text(name: str) -> bool:
    """Whether the bytes of a file name are UTF-8. Python has other bytes as surrogates."""
    return name.isascii() or not any("\ud800" <= c <= "\udfff" for c in name)


def escaped(name: str) -> str:
    r"""The name for a message: bytes that are not UTF-8 as `\xbc`."""
    return name if is_text(name) else os.fsencode(name).decode(errors="backslashreplace")


def not_text(path: PurePath, folder: PurePath) -> str:
    """The message for a path whose name is not UTF-8, and the command that repairs all names below `folder`."""
    try:
        likely = os.fsencode(path.name).decode("cp949")
    except UnicodeDecodeError:
        likely = ""
    what = f"in CP949 it is '{likely}', as in a zip made on Windows in Korea" if likely else "its encoding is unknown"
    return (
        f"{escaped(str(path))}: the name is not UTF-8 ({what}); unpack again with `unzip -O cp949 FILE.zip`, or rename "
        f"with `{REPAIR} {escaped(str(folder))}`"
    )


def is_windows_path(name: str) -> bool:
    """Whether a name has backslashes or a drive letter."""
    return "\\" in name or re.match(r"[A-Za-z]:/", name) is not None


def elided(name: str, longest: int) -> str:
    """The name, or its begin and end with `…` between them if it has more than `longest` characters."""
    if len(name) <= longest:
        return name
    begin = longest // 2
    return f"{name[:begin]}…{name[begin + 1 - longest :]}"
