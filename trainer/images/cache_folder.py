"""The decoded images under $CACHE_DIR, from outside: which caches there are, who uses them, and evicting them.

Needs nothing but the standard library, for the launcher lists and prunes them where nothing else may be installed.
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
"""Seconds after which a folder that a killed process left half made is swept away."""
MOST = 64 * 10**9
"""Bytes that all caches take together at most, where nothing is said, and never more than half of what is free."""


@dataclass(frozen=True)
class Cache:
    """One cache: its folder, what meta.json says, and what it takes on disk."""

    folder: Path
    about: dict[str, Any]
    size: int
    """Bytes on disk so far."""
    decoded: int
    """Images that are there."""
    decodes: int
    """How often images were decoded for it: as often as there are images, but for damage."""
    used: float
    """When a run last opened it, seconds since 1970."""
    in_use: bool


def root() -> Path | None:
    """$CACHE_DIR/decoded, or None without $CACHE_DIR."""
    cache = os.environ.get("CACHE_DIR")
    return Path(cache).expanduser() / "decoded" if cache else None


def caches(folder: Path) -> list[Cache]:
    """What lies in `folder`, the latest used first. What cannot be read is listed with nothing known of it."""
    found = [_look(path) for path in sorted(folder.glob("*")) if path.is_dir() and not path.name.startswith(".")]
    return sorted(found, key=lambda cache: -cache.used)


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
    """Whether no run reads the cache; while the block lasts none can begin to."""
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
    """Remove a cache that no run reads. False, and nothing done, where one does."""
    with _unused(path) as free:
        if not free:
            return False
        gone = path.with_name(f"{GOING}{os.getpid()}-{path.name}")
        try:
            path.rename(gone)  # at once: whoever looks for it now makes another
        except FileNotFoundError:
            return True
        shutil.rmtree(gone, ignore_errors=True)
        return True


def sweep(folder: Path) -> None:
    """Remove what killed processes left half made or half removed."""
    for path in folder.glob(".*"):
        with contextlib.suppress(OSError):
            if path.name.startswith(GOING) or (
                path.name.startswith(MAKING) and time.time() - path.stat().st_mtime > STALE
            ):
                shutil.rmtree(path, ignore_errors=True)


def default_limit(folder: Path) -> int:
    """Bytes: half of what is free where `folder` is or will be, with what caches take there already; at most `MOST`."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    return min(MOST, (shutil.disk_usage(place).free + sum(cache.size for cache in caches(folder))) // 2)


def make_room(folder: Path, wanted: int, limit: int) -> int:
    """Evict what is not in use, the longest unused first, until `wanted` more bytes fit into `limit`; the bytes that
    there is room for."""
    there = caches(folder)
    taken = sum(_reserved(cache) for cache in there)
    for cache in reversed(there):
        if taken + wanted <= limit:
            break
        if evict(cache.folder):
            taken -= _reserved(cache)
    return max(0, min(wanted, limit - taken))


def _reserved(cache: Cache) -> int:
    """What a cache will take once it is full."""
    promised = cache.about.get("bytes")
    return max(cache.size, promised if isinstance(promised, int) else 0)
