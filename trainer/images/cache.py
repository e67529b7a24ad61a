"""A cache of decoded images on disk. Runs with the same data and size share it and decode each image once.

A cache is a folder `$CACHE_DIR/decoded/<data fingerprint>-<size>`:

- `meta.json`: a description, for people and `launcher cache ls`;
- `index.npy`: (N, 3) int64, offset in `pixels`, height and width of each image, in the order of their IDs; the offset
  is -1 if there is no room for the image;
- `pixels`: raw (H, W, 3) uint8 RGB, one image after the other, read through one memory map, so runs share its pages;
- `state`: 8 bytes per image: whether its pixels are present, how often it was decoded, their CRC-32;
- `claims`: one byte per image; the process that decodes the image locks it, and the kernel unlocks it if it dies;
- `in_use`: every run that reads the cache has a shared lock on it, so that nobody evicts a cache in use.

A rename creates the complete folder. A process writes the state of an image after its pixels, so a killed process never
leaves half an image. The checksum finds damage after a crash of the machine or from a bad disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import shutil
import struct
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.base.files import UMASK, write_json
from trainer.images import cache_folder
from trainer.images.read_page import Pixels, Shape

VERSION = 2
STATE = struct.Struct("<BxHI")
"""1 if the pixels are present; how often they were decoded; their CRC-32."""
PATIENCE = 20.0
"""Seconds that a process waits for another process to decode an image. Then it decodes the image itself."""


@dataclass(frozen=True)
class Wanted:
    """The layout of a cache."""

    name: str
    """Name of its folder. Equal pixels have equal names."""
    shapes: Callable[[], Sequence[Shape]]
    """Returns height and width of each image, in the order of `order`. Called only for a new cache."""
    order: Sequence[int]
    """The caller's row in each slot."""
    about: dict[str, Any]
    """Description for meta.json."""


class Decoded:
    """An open cache. Picklable and safe after a fork: image loading processes share it."""

    def __init__(self, folder: Path, slots: dict[int, int]) -> None:
        self.folder = folder
        self.slots = slots
        """Row → slot."""
        self._open()

    def _open(self) -> None:
        self._in_use = os.open(self.folder / "in_use", os.O_RDONLY)
        fcntl.flock(self._in_use, fcntl.LOCK_SH)
        self.index: NDArray[np.int64] = np.load(self.folder / "index.npy", allow_pickle=False)
        if self.index.ndim != 2 or self.index.shape[1] != 3 or self.index.dtype != np.int64:
            raise ValueError("damaged")
        self.writable = all(os.access(self.folder / name, os.W_OK) for name in ("pixels", "state", "claims"))
        how = os.O_RDWR if self.writable else os.O_RDONLY
        self._pixels, self._state, self._claims = (os.open(self.folder / n, how) for n in ("pixels", "state", "claims"))
        size = os.fstat(self._pixels).st_size
        self._map = mmap.mmap(self._pixels, size, access=mmap.ACCESS_READ) if size else mmap.mmap(-1, 1)
        self._view: Pixels = np.frombuffer(self._map, dtype=np.uint8)
        # Anonymous and shared: the processes of a run check each image only once.
        self._checked = mmap.mmap(-1, max(1, len(self.index)))

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "slots": self.slots}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.folder, self.slots = state["folder"], state["slots"]
        self._open()

    def get(self, row: int, decode: Callable[[], Pixels], may_keep: Callable[[], bool] = lambda: True) -> Pixels:
        """The image of `row`: (H, W, 3) uint8, read-only if from the cache. If it is not in the cache, `decode` makes
        it. The cache keeps it if `may_keep()` is then true."""
        slot = self.slots[row]
        if self.index[slot, 0] < 0:
            return decode()
        cached = self._read(slot)
        if cached is not None:
            return cached
        with claim(self._claims, slot) as claimed:
            if claimed:
                cached = self._read(slot)  # another process may have decoded it
                if cached is not None:
                    return cached
            decoded = decode()
            if claimed and may_keep():
                self._write(slot, decoded)
            return decoded

    def _place(self, slot: int) -> tuple[int, int, int]:
        offset, height, width = (int(v) for v in self.index[slot])
        return offset, height, width

    def _read(self, slot: int) -> Pixels | None:
        offset, height, width = self._place(slot)
        there, _, crc = state_of(self._state, slot)
        if not there:
            return None
        pixels = self._view[offset : offset + height * width * 3]
        if len(pixels) != height * width * 3:  # the file was cut short, or written beyond its size when it was mapped
            return None
        if not self._checked[slot]:
            if zlib.crc32(pixels.data) != crc:
                return None
            self._checked[slot] = 1
        return pixels.reshape(height, width, 3)

    def _write(self, slot: int, pixels: Pixels) -> None:
        offset, height, width = self._place(slot)
        if not self.writable or pixels.shape != (height, width, 3):
            return  # the file has changed after its header was read
        data = np.ascontiguousarray(pixels)
        _, decodes, _ = state_of(self._state, slot)
        try:
            # Use write, not the memory map: a full disk is then an error and not a crash.
            write_all(self._pixels, data.reshape(-1).data, offset)
            state = STATE.pack(1, min(decodes + 1, 2**16 - 1), zlib.crc32(data.data))
            write_all(self._state, memoryview(state), slot * STATE.size)
            self._checked[slot] = 1  # no need to check pixels that this run has written
        except OSError as error:
            self.writable = False
            print(f"note: {self.folder}: cannot store more decoded images: {error.strerror}")

    def close(self) -> None:
        """Close the cache. From now on it may be evicted."""
        for descriptor in (self._in_use, self._pixels, self._state, self._claims):
            with contextlib.suppress(OSError):
                os.close(descriptor)


def state_of(descriptor: int, slot: int) -> tuple[int, int, int]:
    """The entry of an image in the file `state`."""
    there, decodes, crc = STATE.unpack(os.pread(descriptor, STATE.size, slot * STATE.size).ljust(STATE.size, b"\0"))
    return there, decodes, crc


@contextlib.contextmanager
def claim(descriptor: int, slot: int) -> Iterator[bool]:
    """Whether this process has the claim on the image. False after `PATIENCE`, or without file locks."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, slot)
            break
        except (BlockingIOError, PermissionError):
            if time.monotonic() > until:
                yield False
                return
            time.sleep(0.002)
        except OSError:
            yield False
            return
    try:
        yield True
    finally:
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, slot)


def write_all(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at `offset`. Raises OSError, also if the disk is full."""
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def open_cache(wanted: Wanted, limit: int) -> Decoded | None:
    """Open or create the cache. All caches together may take `limit` bytes. None without $CACHE_DIR, and None with a
    note if it is not writable."""
    root = cache_folder.root()
    if root is None or limit <= 0 or not wanted.order:
        return None
    slots = {row: slot for slot, row in enumerate(wanted.order)}
    folder = root / wanted.name
    try:
        for _ in range(10):
            if not folder.is_dir():
                _make(folder, wanted, limit)
            opened = Decoded(folder, slots)
            # It may be evicted before the lock. Then the name belongs to another folder, or to none.
            if same_file(folder / "in_use", opened._in_use) and len(opened.index) == len(wanted.order):
                with contextlib.suppress(OSError):
                    os.utime(folder / "meta.json")
                return opened
            opened.close()
    except (OSError, ValueError, EOFError) as error:  # NumPy raises EOFError for an empty file
        reason = error.strerror if isinstance(error, OSError) else "damaged; remove it: launcher cache prune --all"
        print(f"note: {folder}: cannot store decoded images: {reason}")
    return None


def same_file(path: Path, descriptor: int) -> bool:
    """Whether the name still belongs to the open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _make(folder: Path, wanted: Wanted, limit: int) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    shapes = wanted.shapes()
    sizes = [height * width * 3 for height, width in shapes]
    cache_folder.sweep(folder.parent)
    room = cache_folder.make_room(folder.parent, sum(sizes), limit)
    index = np.full((len(sizes), 3), -1, dtype=np.int64)
    end = count = 0
    for slot in _fixed_order(wanted):
        index[slot, 1:] = shapes[slot]
        if end + sizes[slot] <= room:
            index[slot, 0] = end
            end, count = end + sizes[slot], count + 1
    sizes_of = {"pixels": end, "state": STATE.size * len(sizes), "claims": 0, "in_use": 0}
    about = {"version": VERSION, **wanted.about, "images": len(sizes), "kept": count, "bytes": end}
    with new_folder(folder, sizes_of, about) as temporary:
        np.save(temporary / "index.npy", index, allow_pickle=False)


@contextlib.contextmanager
def new_folder(folder: Path, sizes: dict[str, int], about: dict[str, Any]) -> Iterator[Path]:
    """A temporary folder with empty files of these sizes and `about` in meta.json. After the block it becomes `folder`,
    unless another run was first."""
    temporary = Path(tempfile.mkdtemp(prefix=cache_folder.MAKING, dir=folder.parent))
    lock = None
    try:
        for name, size in sizes.items():
            with (temporary / name).open("wb") as file:
                file.truncate(size)
        lock = os.open(temporary / "in_use", os.O_RDONLY | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # others do not sweep it away
        write_json(temporary / cache_folder.META, about)
        yield temporary
        temporary.chmod(0o777 & ~UMASK)  # mkdtemp makes private folders
        with contextlib.suppress(OSError):  # another run was first: use its cache
            temporary.rename(folder)
    finally:
        if lock is not None:
            os.close(lock)
        shutil.rmtree(temporary, ignore_errors=True)


def _fixed_order(wanted: Wanted) -> list[int]:
    """Slots in a pseudo-random order that is the same for every run. The cache has room for the first of them."""
    return sorted(range(len(wanted.order)), key=lambda slot: zlib.crc32(f"{wanted.name}/{slot}".encode()))
