"""SHA-256 of image files. Each file is read once for all runs: the digests are kept by name, size and time."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from trainer.base import cores
from trainer.base.files import replacing, sha256

LENGTH = 32
"""Bytes of a digest."""
_known: dict[tuple[str, int, int], bytes] = {}
"""The digests that this process knows, by path, size and modification time."""


def digests(paths: Sequence[Path]) -> list[bytes]:
    """The SHA-256 of each file.

    $CACHE_DIR/digests has a file for each set of files: the runs of a matrix and the processes of a run ask for the
    same set. Raises OSError.
    """
    stats = [path.stat() for path in paths]
    keys = [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in zip(paths, stats, strict=True)]
    missing = [row for row, key in enumerate(keys) if key not in _known]
    if missing:
        place = _place([paths[row] for row in missing], [stats[row] for row in missing])
        found = _stored(place, len(missing))
        if found is None:
            with ThreadPoolExecutor(max_workers=cores.available()) as pool:
                found = list(pool.map(lambda row: bytes.fromhex(sha256(paths[row])), missing))
            _store(place, found)
        _known.update(zip((keys[row] for row in missing), found, strict=True))
    return [_known[key] for key in keys]


def name_of_set(paths: Sequence[Path], stats: Sequence[os.stat_result], *more: object) -> str:
    """A file name for what a cache keeps about a set of files and `more`: another one if a name, size or time differs.
    Names are relative: a container sees the same files under another path."""
    top = os.path.commonpath([path.parent for path in paths]) if paths else ""
    listed = [(os.path.relpath(p, top), s.st_size, s.st_mtime_ns) for p, s in zip(paths, stats, strict=True)]
    return hashlib.sha256(repr((more, listed)).encode(errors="surrogateescape")).hexdigest()


def _place(paths: Sequence[Path], stats: Sequence[os.stat_result]) -> Path | None:
    """The file in the cache for a set of files."""
    cache = os.environ.get("CACHE_DIR")
    return Path(cache) / "digests" / name_of_set(paths, stats) if cache else None


def _stored(place: Path | None, count: int) -> list[bytes] | None:
    if place is None:
        return None
    try:
        content = place.read_bytes()
    except OSError:
        return None
    if len(content) != count * LENGTH:
        return None
    return [content[start : start + LENGTH] for start in range(0, len(content), LENGTH)]


def _store(place: Path | None, found: Sequence[bytes]) -> None:
    if place is not None:
        with contextlib.suppress(OSError), replacing(place) as temporary:  # without the cache it is only slower
            temporary.write_bytes(b"".join(found))
