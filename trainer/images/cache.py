"""Decoded images on disk, shared by every run that reads the same data at the same size: each is decoded once.

A cache is a folder `$CACHE_DIR/decoded/<data fingerprint>-<size>`:

- `meta.json`: what it holds, for people and `launcher cache ls`;
- `index.npy`: (N, 3) int64, offset in `pixels`, height and width of each image, in the order of their ids; the offset
  is -1 where the image does not fit;
- `pixels`: raw (H, W, 3) uint8 RGB, one image after the other, read through one memory map: runs share its pages;
- `state`: 8 bytes an image: whether its pixels are there, how often it was decoded, their CRC-32;
- `claims`: a byte an image, locked by the process that decodes it; the kernel unlocks it should that process die;
- `in_use`: locked, shared, by every run that reads the cache, so that nothing in use is ever evicted.

The folder appears whole, by a rename. An image's state is written after its pixels, so that a process that is killed
leaves an image absent and never half there; what a crash of the machine or a bad disk did to it, the checksum tells.
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
from trainer.images.reading import Pixels, Shape

VERSION = 1
STATE = struct.Struct("<BxHI")
"""1 where the pixels are there; how often they were decoded; their CRC-32."""
PATIENCE = 20.0
"""Seconds that one process waits for another to decode an image before it does so itself."""


@dataclass(frozen=True)
class Wanted:
    """A cache as it should be."""

    name: str
    """Of its folder: equal for equal pixels."""
    shapes: Sequence[Shape]
    """Height and width of each image, in the order of `order`."""
    order: Sequence[int]
    """Slot by slot, which of the caller's rows it holds."""
    about: dict[str, Any]
    """For meta.json."""


class Decoded:
    """An open cache. Picklable, and safe to use after a fork: processes that load images share it."""

    def __init__(self, folder: Path, slots: dict[int, int]) -> None:
        self.folder = folder
        self.slots = slots
        """Row → slot."""
        self._open()

    def _open(self) -> None:
        self._in_use = os.open(self.folder / "in_use", os.O_RDONLY)
        fcntl.flock(self._in_use, fcntl.LOCK_SH)
        self.index: NDArray[np.int64] = np.load(self.folder / "index.npy", allow_pickle=False)
        self.writable = all(os.access(self.folder / name, os.W_OK) for name in ("pixels", "state", "claims"))
        how = os.O_RDWR if self.writable else os.O_RDONLY
        self._pixels, self._state, self._claims = (os.open(self.folder / n, how) for n in ("pixels", "state", "claims"))
        size = os.fstat(self._pixels).st_size
        self._map = mmap.mmap(self._pixels, size, access=mmap.ACCESS_READ) if size else mmap.mmap(-1, 1)
        self._view: Pixels = np.frombuffer(self._map, dtype=np.uint8)
        # Anonymous and shared: what one of a run's processes has checked, the others need not check again.
        self._checked = mmap.mmap(-1, max(1, len(self.index)))

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "slots": self.slots}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.folder, self.slots = state["folder"], state["slots"]
        self._open()

    def get(self, row: int, decode: Callable[[], Pixels]) -> Pixels:
        """The image of `row`: (H, W, 3) uint8, read-only where it comes from the cache. `decode` makes it where it is
        not there yet, and where the cache does not hold it."""
        slot = self.slots[row]
        if self.index[slot, 0] < 0:
            return decode()
        found = self._read(slot)
        if found is not None:
            return found
        with self._claim(slot) as claimed:
            if claimed:
                found = self._read(slot)  # another may have decoded it meanwhile
                if found is not None:
                    return found
            made = decode()
            if claimed:
                self._write(slot, made)
            return made

    def _place(self, slot: int) -> tuple[int, int, int]:
        offset, height, width = (int(v) for v in self.index[slot])
        return offset, height, width

    def _read(self, slot: int) -> Pixels | None:
        offset, height, width = self._place(slot)
        there, _, crc = self._state_of(slot)
        if not there:
            return None
        pixels = self._view[offset : offset + height * width * 3]
        if not self._checked[slot]:
            if zlib.crc32(pixels.data) != crc:
                return None
            self._checked[slot] = 1
        return pixels.reshape(height, width, 3)

    def _state_of(self, slot: int) -> tuple[int, int, int]:
        there, decodes, crc = STATE.unpack(
            os.pread(self._state, STATE.size, slot * STATE.size).ljust(STATE.size, b"\0")
        )
        return there, decodes, crc

    def _write(self, slot: int, made: Pixels) -> None:
        offset, height, width = self._place(slot)
        if not self.writable or made.shape != (height, width, 3):
            return  # the file has changed since its header was read
        data = np.ascontiguousarray(made)
        _, decodes, _ = self._state_of(slot)
        try:
            # Written, not stored through a memory map: a full disk is an error here, and a crash there.
            _write_all(self._pixels, data.reshape(-1).data, offset)
            state = STATE.pack(1, min(decodes + 1, 2**16 - 1), zlib.crc32(data.data))
            _write_all(self._state, memoryview(state), slot * STATE.size)
            self._checked[slot] = 1  # what this run has written it need not read to know
        except OSError as error:
            self.writable = False
            print(f"note: {self.folder}: decoded images are no longer kept: {error.strerror}")

    @contextlib.contextmanager
    def _claim(self, slot: int) -> Iterator[bool]:
        """Whether this process alone decodes the image now. False after `PATIENCE`, or where files cannot be locked."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.lockf(self._claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, slot)
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
            fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, slot)

    def close(self) -> None:
        """Let go of the cache: it may be evicted from now on."""
        for descriptor in (self._in_use, self._pixels, self._state, self._claims):
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def open_cache(wanted: Wanted, limit: int) -> Decoded | None:
    """The cache, made where there is none; `limit` bytes may all caches take together. None, with a note, where it
    cannot be had: without $CACHE_DIR, or where that cannot be written."""
    root = cache_folder.root()
    if root is None or limit <= 0 or not wanted.shapes:
        return None
    slots = {row: slot for slot, row in enumerate(wanted.order)}
    folder = root / wanted.name
    try:
        for _ in range(10):
            if not folder.is_dir():
                _make(folder, wanted, limit)
            opened = Decoded(folder, slots)
            # Evicted between its being found and its being locked? Then the folder of that name is another, or none.
            if _same(folder / "in_use", opened._in_use) and len(opened.index) == len(wanted.shapes):
                with contextlib.suppress(OSError):
                    os.utime(folder / "meta.json")
                return opened
            opened.close()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "damaged: remove it by `launcher cache prune --all`"
        print(f"note: {folder}: decoded images are not kept: {reason}")
    return None


def _same(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _make(folder: Path, wanted: Wanted, limit: int) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    sizes = [height * width * 3 for height, width in wanted.shapes]
    cache_folder.sweep(folder.parent)
    room = cache_folder.make_room(folder.parent, sum(sizes), limit)
    index = np.full((len(sizes), 3), -1, dtype=np.int64)
    end = kept = 0
    for slot in _fixed_order(wanted):
        index[slot, 1:] = wanted.shapes[slot]
        if end + sizes[slot] <= room:
            index[slot, 0] = end
            end, kept = end + sizes[slot], kept + 1
    temporary = Path(tempfile.mkdtemp(prefix=cache_folder.MAKING, dir=folder.parent))
    try:
        np.save(temporary / "index.npy", index, allow_pickle=False)
        for name, size in (("pixels", end), ("state", STATE.size * len(sizes)), ("claims", 0), ("in_use", 0)):
            with (temporary / name).open("wb") as file:
                file.truncate(size)
        about = {"version": VERSION, **wanted.about, "images": len(sizes), "kept": kept, "bytes": end}
        write_json(temporary / "meta.json", about)
        temporary.chmod(0o777 & ~UMASK)  # mkdtemp's are private
        with contextlib.suppress(OSError):  # another run was first: its cache serves
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _fixed_order(wanted: Wanted) -> list[int]:
    """Slots in an order that is the same for every run and has nothing to do with their ids: what fits is kept."""
    return sorted(range(len(wanted.shapes)), key=lambda slot: zlib.crc32(f"{wanted.name}/{slot}".encode()))
