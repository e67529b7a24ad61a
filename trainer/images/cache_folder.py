"""List, measure and evict the caches of decoded images under $CACHE_DIR.

Needs only the standard library, because the launcher uses it where nothing else is installed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAKING, GOING = ".new-", ".gone-"
STALE = 3600
"""Seconds until an incomplete folder of a killed process is removed."""
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
    """The caches in `folder`, last used first. An unreadable cache has an entry without facts."""
    folders = [path for path in sorted(folder.glob("*")) if path.is_dir() and not path.name.startswith(".")]
    return sorted(map(_look, folders), key=lambda cache: -cache.used)


def _look(path: Path) -> Cache:
    about, used, states = {}, 0.0, b""
    with contextlib.suppress(OSError, ValueError):
        about = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        used = (path / "meta.json").stat().st_mtime
        states = (path / "state").read_bytes()
    entries = list(struct.iter_unpack("<BxHI", states[: len(states) // 8 * 8]))
    with _unused(path) as free:
        in_use = not free
    return Cache(
        path,
        about if isinstance(about, dict) else {},
        sum(_on_disk(file) for file in path.glob("*")),
        sum(bool(there) for there, _, _ in entries),
        sum(decodes for _, decodes, _ in entries),
        used,
        in_use,
    )


def _on_disk(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_blocks * 512
    return 0


@contextlib.contextmanager
def _unused(path: Path) -> Iterator[bool]:
    """Whether no run reads the cache. Inside the block no run can start to read it."""
    try:
        descriptor = os.open(path / "in_use", os.O_RDONLY)
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
    with _unused(path) as free:
        if not free:
            return False
        gone = path.with_name(f"{GOING}{os.getpid()}-{path.name}")
        try:
            path.rename(gone)  # at once: from now on other runs make a new one
        except FileNotFoundError:
            return True
        shutil.rmtree(gone, ignore_errors=True)
        return True


def sweep(folder: Path) -> None:
    """Remove incomplete folders of killed processes."""
    for path in folder.glob(".*"):
        with contextlib.suppress(OSError):
            if path.name.startswith(GOING) or (
                path.name.startswith(MAKING) and time.time() - path.stat().st_mtime > STALE
            ):
                shutil.rmtree(path, ignore_errors=True)


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
