"""List, measure and evict the caches of decoded images under $CACHE_DIR.

Needs only the standard library, because the launcher uses it where nothing else is installed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import stat
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAKING, GOING = ".new-", ".gone-"
STALE = 3600
"""Seconds until an incomplete folder of a killed process is removed."""
META = "meta.json"
LARGEST_META, LARGEST_STATE = 2**20, 2**28
_PLAIN = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
MOST = 64 * 10**9
"""Default limit of all caches together, bytes. The limit is never more than half of the free space."""


@dataclass(frozen=True)
class Cache:
    """One cache: its folder, its description in meta.json, and its size on disk."""

    folder: Path
    about: dict[str, Any]
    size: int
    """Bytes on disk so far."""
    decoded: int
    """Number of images present."""
    decodes: int
    """Number of decodes: equal to the number of images, except after damage."""
    used: float
    """Time of its last opening by a run, seconds since 1970."""
    in_use: bool


def root() -> Path | None:
    """$CACHE_DIR/decoded, or None without $CACHE_DIR."""
    cache = os.environ.get("CACHE_DIR")
    return Path(cache).expanduser() / "decoded" if cache else None


def caches(folder: Path) -> list[Cache]:
    """The caches in `folder`, last used first. An unreadable cache has an entry without facts.

    Runs write into this folder, and the launcher that calls this may be root. So links are not followed."""
    with contextlib.suppress(OSError), _opened(folder) as parent:
        with os.scandir(parent) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        found = [_look(folder / name, parent) for name in sorted(names) if not name.startswith(".")]
        return sorted(found, key=lambda cache: -cache.used)
    return []


@contextlib.contextmanager
def _opened(path: Path | str, parent: int | None = None) -> Iterator[int]:
    """A descriptor of a folder, which is no link."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _look(path: Path, parent: int) -> Cache:
    about, used, states, size, in_use = {}, 0.0, b"", 0, False
    with contextlib.suppress(OSError), _opened(path.name, parent) as folder:
        with contextlib.suppress(OSError, ValueError, RecursionError):
            content, used = _read(folder, META, LARGEST_META)
            about = json.loads(content)
            states, _ = _read(folder, "state", LARGEST_STATE)
        with os.scandir(folder) as entries:
            size = sum(entry.stat(follow_symlinks=False).st_blocks * 512 for entry in entries)
        with _unused(folder) as free:
            in_use = not free
    counts = list(struct.iter_unpack("<BxHI", states[: len(states) // 8 * 8]))
    decoded, decodes = sum(bool(there) for there, _, _ in counts), sum(number for _, number, _ in counts)
    return Cache(path, _typed(about), size, decoded, decodes, used, in_use)


def _read(folder: int, name: str, limit: int) -> tuple[bytes, float]:
    """Content and modification time of a regular file of at most `limit` bytes. Raises OSError."""
    with os.fdopen(os.open(name, os.O_RDONLY | _PLAIN, dir_fd=folder), "rb") as file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > limit:
            raise OSError(errno.EINVAL, "no regular file, or too large", name)
        return file.read(limit), facts.st_mtime


def _typed(about: object) -> dict[str, Any]:
    """The facts of a meta.json that are texts, or integers of a sensible size."""
    facts = about.items() if isinstance(about, dict) else ()
    return {
        name: value
        for name, value in facts
        if (isinstance(value, str) and len(value) <= 4096) or (type(value) is int and 0 <= value < 2**60)
    }


@contextlib.contextmanager
def _unused(folder: int) -> Iterator[bool]:
    """Whether no run reads the cache. Inside the block no run can start to read it."""
    try:
        descriptor = os.open("in_use", os.O_RDONLY | _PLAIN, dir_fd=folder)
    except FileNotFoundError:
        yield True
        return
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def evict(path: Path) -> bool:
    """Remove a cache that no run reads. If a run reads it, return False and do nothing."""
    try:
        with _opened(path.parent) as parent, _opened(path.name, parent) as folder, _unused(folder) as free:
            if not free:
                return False
            gone = f"{GOING}{os.getpid()}-{path.name}"
            os.rename(path.name, gone, src_dir_fd=parent, dst_dir_fd=parent)  # at once: other runs make a new one
            shutil.rmtree(gone, ignore_errors=True, dir_fd=parent)
            return True
    except FileNotFoundError:
        return True
    except OSError:
        return False


def sweep(folder: Path) -> None:
    """Remove incomplete folders of killed processes."""
    with contextlib.suppress(OSError), _opened(folder) as parent:
        with os.scandir(parent) as entries:
            hidden = [entry for entry in entries if entry.name.startswith(".")]
        for entry in hidden:
            with contextlib.suppress(OSError):
                age = time.time() - entry.stat(follow_symlinks=False).st_mtime
                if entry.name.startswith(GOING) or (
                    entry.name.startswith(MAKING) and age > STALE and not _is_made(entry.name, parent)
                ):
                    shutil.rmtree(entry.name, ignore_errors=True, dir_fd=parent)


def _is_made(name: str, parent: int) -> bool:
    """Whether a run is making the incomplete folder: a clock may jump, and so cannot say it alone. Raises OSError."""
    with _opened(name, parent) as folder, _unused(folder) as free:
        return not free


def default_limit(folder: Path) -> int:
    """Default limit, bytes: half of the free space on the disk of `folder`, counting its caches as free. At most
    `MOST`."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    return min(MOST, (shutil.disk_usage(place).free + sum(cache.size for cache in caches(folder))) // 2)


def make_room(folder: Path, wanted: int, limit: int) -> int:
    """Evict unused caches, oldest first, until `wanted` more bytes fit into `limit`. Returns the bytes that fit."""
    there = caches(folder)
    taken = sum(_reserved(cache) for cache in there)
    for cache in reversed(there):
        if taken + wanted <= limit:
            break
        if evict(cache.folder):
            taken -= _reserved(cache)
    return max(0, min(wanted, limit - taken))


def _reserved(cache: Cache) -> int:
    """The size of a full cache, bytes."""
    promised = cache.about.get("bytes")
    return max(cache.size, promised if isinstance(promised, int) else 0)
