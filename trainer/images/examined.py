"""What is known of image files: SHA-256, height and width, whether they can be read. Each is read once for all runs.

A folder `$CACHE_DIR/examined` keeps it. It has a file for each set of files that was asked for: the runs of a matrix
and the processes of a run ask for the same set. Its name is a digest of the names, sizes, times and inodes, and of the
versions of the decoders. If some files of a set are new, the others are found in the files of earlier sets.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import struct
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from trainer.base import cores
from trainer.base.activity import counting
from trainer.base.files import replacing
from trainer.images.read_page import Shape, TooLargeError, has_several_pages, page_shape, read_page
from trainer.images.reading import DECODERS

HASHED, READABLE, SEVERAL_PAGES = range(3)
"""What is known of a file: only its digest; also that it can be decoded; also that it has several pages."""
RECORD = struct.Struct("<16s32sIIB7x")
"""Of a file: a digest of its name, size, times and inode; SHA-256; height; width; what is known."""
Record = tuple[bytes, bytes, int, int, int]
EARLIER = 20
"""Number of earlier sets in which files are looked for, the latest first."""
OLD = 90 * 86400
"""Seconds after which a set that was not asked for is removed."""
PATIENCE = 1800.0
"""Seconds that a process waits while another one reads the same files. Then it reads them itself."""
IN_MEMORY = 64 * 2**20
"""Largest file, in bytes, that is in memory as a whole while it is examined."""
NAMED = 3
"""Files that a note names."""

folder: Path | None = None
"""Where to keep what is known without $CACHE_DIR. A run on several devices sets it, for its other processes."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a file with these `_facts`."""

    facts: tuple[int, int, int, int]
    digest: bytes
    height: int = 0
    width: int = 0
    state: int = HASHED


_known: dict[str, Known] = {}
"""What this process knows, by path."""


def digests(paths: Sequence[Path]) -> list[bytes]:
    """The SHA-256 of each file. Raises OSError."""
    _learn(paths, HASHED)
    return [_known[str(path)].digest for path in paths]


def shape(path: Path) -> Shape:
    """Height and width of the upright page. Reads the header if they are not known. Raises the errors of
    `read_page`."""
    known = _current(path, path.stat(), READABLE)
    return (known.height, known.width) if known is not None else page_shape(path)


def stamp(path: Path) -> tuple[int, int, int, int] | None:
    """What tells the file whose digest is known from any other: see `is_same`."""
    known = _known.get(str(path))
    return known.facts if known is not None else None


def is_same(path: Path, stamp: tuple[int, int, int, int] | None) -> bool:
    """Whether the file is still the one with this stamp; also if it has none. Raises OSError."""
    return stamp is None or stamp == _facts(path.stat())


def unreadable(paths: Sequence[Path]) -> Iterator[tuple[int, str]]:
    """Row and reason for every image that cannot be decoded completely. Prints a note if files have several pages."""
    reasons = _learn(paths, READABLE)
    yield from sorted(reasons.items())
    top = _top(paths)
    several = [path for row, path in enumerate(paths) if row not in reasons and _is_long(path)]
    if several:
        named = ", ".join(os.path.relpath(path, Path(top).parent) for path in several[:NAMED])
        have = "1 file has" if len(several) == 1 else f"{len(several)} files have"
        more = ", …" if len(several) > NAMED else ""
        print(f"note: {have} several pages or frames; only the first of each is read: {named}{more}")


def _is_long(path: Path) -> bool:
    return _known[str(path)].state == SEVERAL_PAGES


def _current(path: Path, stat: os.stat_result, state: int) -> Known | None:
    """What is known of the file as it is now, if it is at least `state`."""
    known = _known.get(str(path))
    if known is None or known.facts != _facts(stat) or known.state < state:
        return None
    return known


def _learn(paths: Sequence[Path], state: int) -> dict[int, str]:
    """Know at least `state` of each file. Returns the reasons why files are unreadable, by row. Raises OSError."""
    stats = [path.stat() for path in paths]

    def missing() -> list[int]:
        return [row for row, path in enumerate(paths) if _current(path, stats[row], state) is None]

    if not missing():
        return {}
    place = _place(paths, stats)
    _load(place, paths, stats)
    if not missing():
        return {}
    reasons = {}
    with _turn(place) as waited:
        if waited:  # another process has read them
            _load(place, paths, stats)
        rest = missing()
        with ThreadPoolExecutor(max_workers=cores.available()) as pool:
            examine = _checked if state == READABLE else _hashed
            found = pool.map(examine, [(paths[r], stats[r]) for r in rest])
            for row, (known, reason) in zip(rest, counting(found, "checking the images", len(rest)), strict=True):
                if known is not None:
                    _known[str(paths[row])] = known
                if reason:
                    reasons[row] = reason
        if rest:
            _store(place, paths, stats)
    return reasons


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, bytes]]:
    """The file, and its digest. Its bytes are read from the disk once."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size <= IN_MEMORY:
            content = file.read()
            yield io.BytesIO(content), hashlib.sha256(content).digest()
        else:
            digest = hashlib.file_digest(file, "sha256").digest()
            file.seek(0)
            yield file, digest


def _hashed(of: tuple[Path, os.stat_result]) -> tuple[Known, None]:
    path, stat = of
    with opened(path) as (_, digest):
        return Known(_facts(stat), digest), None


def _checked(of: tuple[Path, os.stat_result]) -> tuple[Known | None, str | None]:
    """What is known after decoding the image, and the reason why it cannot be read."""
    path, stat = of
    if stat.st_size == 0:
        return None, "the file is empty (0 bytes)"
    known = None
    try:
        with opened(path) as (file, digest):
            known = Known(_facts(stat), digest)
            height, width = page_shape(file)
            file.seek(0)
            read_page(file, longest=1)  # a JPEG at 1/8 size still decodes all its bits, in much less time
            file.seek(0)
            state = SEVERAL_PAGES if has_several_pages(file) else READABLE
        return Known(_facts(stat), digest, height, width, state), None
    except TooLargeError as error:
        return known, str(error)
    except PermissionError as error:
        return known, f"the file cannot be read: {error.strerror}"
    except Exception as error:  # Pillow's decoders raise any error for a broken file
        return known, f"not a readable image: {' '.join(str(error).split()).replace(str(path), path.name)}"


def _top(paths: Sequence[Path]) -> str:
    return os.path.commonpath([path.parent for path in paths]) if paths else ""


def _place(paths: Sequence[Path], stats: Sequence[os.stat_result]) -> Path | None:
    """The file for a set of files. Names are relative: a container sees the files under another path."""
    cache = os.environ.get("CACHE_DIR")
    root = Path(cache).expanduser() / "examined" if cache else folder
    if root is None:
        return None
    top = _top(paths)
    listed = [(str(path).removeprefix(top), *_facts(stat)) for path, stat in zip(paths, stats, strict=True)]
    return root / hashlib.sha256(repr((RECORD.format, DECODERS, listed)).encode(errors="surrogateescape")).hexdigest()


def _key(path: Path, stat: os.stat_result) -> bytes:
    """Whatever else it is compared with, no other file has this key, and the file itself has another after a change."""
    facts = (path.name, *_facts(stat), DECODERS)
    return hashlib.blake2b(repr(facts).encode(errors="surrogateescape"), digest_size=16).digest()


def _facts(stat: os.stat_result) -> tuple[int, int, int, int]:
    """What tells a file from others of its name. Size and modification time are not enough: images without compression
    have equal sizes, unpacked archives equal times, and a program can restore the time of a file that it has changed.
    The time of the last change of the inode cannot be set."""
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def _records(place: Path) -> list[Record]:
    """The records of a set. Empty if there are none."""
    try:
        content = place.read_bytes()
        return list(RECORD.iter_unpack(content))
    except (OSError, struct.error):
        return []


def _load(place: Path | None, paths: Sequence[Path], stats: Sequence[os.stat_result]) -> None:
    """Know what is stored of the files."""
    if place is None:
        return
    records = _records(place)
    if len(records) == len(paths):
        with contextlib.suppress(OSError):
            os.utime(place)
        for path, stat, record in zip(paths, stats, records, strict=True):
            _take(path, stat, record)
        return
    wanted = {_key(path, stat): row for row, (path, stat) in enumerate(zip(paths, stats, strict=True))}
    for earlier in _newest_first(place.parent)[:EARLIER]:
        for record in _records(earlier):
            row = wanted.get(record[0])
            if row is not None:
                _take(paths[row], stats[row], record)


def _take(path: Path, stat: os.stat_result, record: Record) -> None:
    """Know what a record says, unless more is known."""
    _, digest, height, width, state = record
    if digest != bytes(len(digest)) and _current(path, stat, state) is None:
        _known[str(path)] = Known(_facts(stat), digest, height, width, state)


def _newest_first(root: Path) -> list[Path]:
    with contextlib.suppress(OSError), os.scandir(root) as entries:
        found = [(entry.stat().st_mtime, entry.path) for entry in entries if not entry.name.startswith(".")]
        return [Path(path) for _, path in sorted(found, reverse=True)]
    return []


def _store(place: Path | None, paths: Sequence[Path], stats: Sequence[os.stat_result]) -> None:
    """Store what is known of the files. Zeros: nothing, because it cannot be opened."""
    if place is None:
        return
    records = []
    for path, stat in zip(paths, stats, strict=True):
        known = _current(path, stat, HASHED) or Known(_facts(stat), bytes(32))
        records.append(RECORD.pack(_key(path, stat), known.digest, known.height, known.width, known.state))
    with contextlib.suppress(OSError), replacing(place) as temporary:  # without the cache it is only slower
        temporary.write_bytes(b"".join(records))
    for old in _newest_first(place.parent):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > OLD:
                old.unlink()


@contextlib.contextmanager
def _turn(place: Path | None) -> Iterator[bool]:
    """One process at a time reads the files of a set. Yields whether it had to wait for another one."""
    try:
        if place is None:
            raise FileNotFoundError
        place.parent.mkdir(parents=True, exist_ok=True)
        # One of 16 locks, so that they do not accumulate.
        lock = os.open(place.with_name(f".lock-{place.name[0]}"), os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError:  # without the cache it is only slower
        yield False
        return
    try:
        until, waited = time.monotonic() + PATIENCE, False
        while time.monotonic() < until:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waited = True
                time.sleep(0.1)
            except OSError:
                break
        yield waited
    finally:
        os.close(lock)
