"""Prepared images on disk that took long to make, once for all runs: the corrupted copies of the validation images.

A cache is a folder `$CACHE_DIR/decoded/<key>-<size>px-prepared-<uid>`, beside those of decoded images (see `cache`),
with the same files `meta.json`, `state`, `claims` and `in_use`, and the same rules of cleaning. Besides:

- `pixels`: blocks of one size, each with an image (S, S, 3) uint8 RGB;
- `places`: 8 bytes per image: its block, and the CPU seconds that it took.

If there is no room for all images, those that took longest stay. So a block may get another image while a process reads
it: each image is copied, and compared with its checksum, each time. Only files of this user or of root are read.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.images import cache_folder
from trainer.images.cache import STATE, claim, new_folder, same_file, state_of, write_all
from trainer.images.read_page import Pixels

PLACE = np.dtype([("block", "<i4"), ("seconds", "<f4")])
STATES = np.dtype([("there", "u1"), ("pad", "u1"), ("made", "<u2"), ("crc", "<u4")])
"""`cache.STATE` as an array."""
LONGER = 1.25
"""An image replaces another one if it took so many times as long: less may be chance."""
FILES = ("in_use", "pixels", "state", "places", "claims")


class Prepared:
    """An open cache. Picklable and safe after a fork: image loading processes share it."""

    def __init__(self, folder: Path, slots: dict[int, int], size: int) -> None:
        self.folder = folder
        self.slots = slots
        """Row → slot."""
        self.size = size
        """Side of the images, pixels."""
        self._open()

    def _open(self) -> None:
        self.writable = all(os.access(self.folder / name, os.W_OK) for name in FILES)
        how = (os.O_RDWR if self.writable else os.O_RDONLY) | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptors: list[int] = []
        try:
            for name in FILES:
                self._descriptors.append(os.open(self.folder / name, how))
                _check_owner(self._descriptors[-1], self.folder / name)
            self._in_use, self._pixels, self._state, self._places, self._claims = self._descriptors
            fcntl.flock(self._in_use, fcntl.LOCK_SH)
            self.blocks = os.fstat(self._pixels).st_size // self._bytes
            sizes = [os.fstat(descriptor).st_size for descriptor in (self._state, self._places)]
            if sizes != [len(self.slots) * STATE.size, len(self.slots) * PLACE.itemsize]:
                raise ValueError("a cache of other images, or damaged")
        except BaseException:
            self.close()
            raise

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "slots": self.slots, "size": self.size}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.folder, self.slots, self.size = state["folder"], state["slots"], state["size"]
        self._open()

    @property
    def _bytes(self) -> int:
        return self.size * self.size * 3

    def get(self, row: int, make: Callable[[], Pixels], may_keep: Callable[[], bool] = lambda: True) -> Pixels:
        """The image of `row`: (S, S, 3) uint8. If it is not in the cache, `make` makes it. The cache keeps it if
        `may_keep()` is then true."""
        slot = self.slots[row]
        cached = self._read(slot)
        if cached is not None or not self.writable:
            return make() if cached is None else cached
        with claim(self._claims, slot) as claimed:
            if claimed:
                cached = self._read(slot)  # another process may have made it
                if cached is not None:
                    return cached
            began = time.thread_time()
            made = make()
            seconds = time.thread_time() - began
            if claimed and may_keep():
                self._keep(slot, made, seconds)
            return made

    def _read(self, slot: int) -> Pixels | None:
        there, _, crc = state_of(self._state, slot)
        if not there:
            return None
        place = np.frombuffer(os.pread(self._places, PLACE.itemsize, slot * PLACE.itemsize), PLACE)
        block = int(place["block"][0]) if len(place) else -1
        if not 0 <= block < self.blocks:
            return None
        pixels = np.empty((self.size, self.size, 3), dtype=np.uint8)
        read = os.preadv(self._pixels, [pixels.reshape(-1).data], block * self._bytes)
        return pixels if read == self._bytes and zlib.crc32(pixels.data) == crc else None

    def _keep(self, slot: int, pixels: Pixels, seconds: float) -> None:
        if pixels.shape != (self.size, self.size, 3) or not self.blocks:
            return
        data = np.ascontiguousarray(pixels)
        # The byte after those of the images: one process at a time chooses a block.
        with claim(self._claims, len(self.slots)) as mine:
            try:
                block = self._block(slot, seconds) if mine else None
                if block is None:
                    return
                # Use write, not a memory map: a full disk is then an error and not a crash.
                write_all(self._pixels, data.reshape(-1).data, block * self._bytes)
                place = np.array([(block, seconds)], dtype=PLACE)
                write_all(self._places, memoryview(place.tobytes()), slot * PLACE.itemsize)
                _, made, _ = state_of(self._state, slot)
                state = STATE.pack(1, min(made + 1, 2**16 - 1), zlib.crc32(data.data))
                write_all(self._state, memoryview(state), slot * STATE.size)
            except OSError as error:
                self.writable = False
                print(f"note: {self.folder}: cannot store more prepared images: {error.strerror}")

    def _block(self, slot: int, seconds: float) -> int | None:
        """A block for an image that took so many seconds: a free one, or that of the image that took least."""
        states, places = self._table(self._state, STATES), self._table(self._places, PLACE)
        there = states["there"].astype(bool) & (places["block"] >= 0) & (places["block"] < self.blocks)
        there[slot] = False  # damaged
        free = np.ones(self.blocks, dtype=bool)
        free[places["block"][there]] = False
        if free.any():
            return int(free.argmax())
        present = np.flatnonzero(there)
        cheapest = int(present[places["seconds"][present].argmin()])
        if not seconds > LONGER * float(places["seconds"][cheapest]):
            return None
        absent = STATE.pack(0, int(states["made"][cheapest]), 0)
        write_all(self._state, memoryview(absent), cheapest * STATE.size)
        return int(places["block"][cheapest])

    def _table(self, descriptor: int, kind: np.dtype[Any]) -> NDArray[Any]:
        return np.frombuffer(os.pread(descriptor, len(self.slots) * kind.itemsize, 0), kind)

    def close(self) -> None:
        """Close the cache. From now on it may be evicted."""
        for descriptor in self._descriptors:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._descriptors = []


def _check_owner(descriptor: int, path: Path) -> None:
    """Raises PermissionError if another user than this one and root may have written the file."""
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
        raise PermissionError(1, "another user may have written it", str(path))


def open_prepared(key: str, size: int, rows: Sequence[int], about: dict[str, Any], limit: int) -> Prepared | None:
    """Open or create the cache of images of `size` pixels a side. `key`: a digest of everything that their pixels
    depend on. `rows`: the caller's rows in the order of their slots, which must be the same for equal keys.

    All caches together may take `limit` bytes. None without $CACHE_DIR, and None with a note if it cannot be used.
    """
    root = cache_folder.root()
    if root is None or limit <= 0 or not rows:
        return None
    folder = root / f"{key[:16]}-{size}px-prepared-{os.geteuid()}"
    slots = {row: slot for slot, row in enumerate(rows)}
    try:
        for _ in range(10):
            if not folder.is_dir():
                _make(folder, size, len(rows), about, limit)
            opened = Prepared(folder, slots, size)
            # It may be evicted before the lock. Then the name belongs to another folder, or to none.
            if same_file(folder / "in_use", opened._in_use):
                with contextlib.suppress(OSError):
                    os.utime(folder / cache_folder.META)
                return opened
            opened.close()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "damaged; remove it: launcher cache prune --all"
        print(f"note: {folder}: cannot store prepared images: {reason}")
    return None


def _make(folder: Path, size: int, count: int, about: dict[str, Any], limit: int) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    cache_folder.sweep(folder.parent)
    one = size * size * 3
    blocks = cache_folder.make_room(folder.parent, count * one, limit) // one
    sizes = {
        "pixels": blocks * one,
        "state": STATE.size * count,
        "places": PLACE.itemsize * count,
        "claims": 0,
        "in_use": 0,
    }
    about = {**about, "size": size, "images": count, "kept": blocks, "bytes": blocks * one}
    with new_folder(folder, sizes, about) as new:
        for name in FILES:
            (new / name).chmod(0o644)  # whatever the umask: a file that others may write is not read
