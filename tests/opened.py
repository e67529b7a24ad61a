"""Which files of a folder any process opens, as Linux reports it (inotify), and how often this one does."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

IN_OPEN = 0x20
_EVENT = struct.Struct("iIII")


class Opened:
    """The folders that are watched."""

    def __init__(self, descriptor: int, folders: dict[int, Path]) -> None:
        self._descriptor, self._folders = descriptor, folders

    def take(self) -> list[str]:
        """The files that were opened since the last call. A folder that was listed is named, too."""
        names = []
        try:
            content = os.read(self._descriptor, 2**20)
        except BlockingIOError:
            return []
        while content:
            watch, _, _, length = _EVENT.unpack_from(content)
            name = content[_EVENT.size : _EVENT.size + length].rstrip(b"\0").decode()
            names.append(str(self._folders[watch] / name))
            content = content[_EVENT.size + length :]
        return names


@contextmanager
def watching(*folders: Path) -> Iterator[Opened]:
    """Watch these folders, without those below them."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "inotify_init1")
    try:
        watches = {libc.inotify_add_watch(descriptor, os.fsencode(folder), IN_OPEN): folder for folder in folders}
        if min(watches) < 0:
            raise OSError(ctypes.get_errno(), "inotify_add_watch")
        yield Opened(descriptor, watches)
    finally:
        os.close(descriptor)


_counters: list[tuple[str, Counter[str]]] = []


def _count(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _counters and isinstance(arguments[0], str | bytes | os.PathLike):
        path = os.path.realpath(os.fsdecode(arguments[0]))
        for folder, counter in _counters:
            if path.startswith(folder):
                counter[path.removeprefix(folder)] += 1


@contextmanager
def counting(folder: Path) -> Iterator[Counter[str]]:
    """How often this process opens each file below the folder (an audit hook of Python)."""
    if not _installed:
        sys.addaudithook(_count)
        _installed.append(True)
    entry = (os.path.realpath(folder) + "/", Counter[str]())
    _counters.append(entry)
    try:
        yield entry[1]
    finally:
        _counters.remove(entry)


_installed: list[bool] = []
"""A hook stays until the process ends."""
