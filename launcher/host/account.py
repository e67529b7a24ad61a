"""The account of a host's cores and memory: what runs of all submissions and users were promised.

Each run in progress has a file in the folder of the GPU locks. The processes that execute the run hold its lock, so the
file of a run that was killed counts for nothing. Whoever starts a run holds `exclusive` from its look at the account
until it has claimed the run's share.

A container holds no lock. Its launcher does, and may die first. Its share then counts as long as its engine says that
it runs, see `Share.engine`.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import pwd
import re
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from launcher.base.errors import RunError
from launcher.base.sizes import show_size
from launcher.base.text import one_line
from launcher.host import gpu_locks
from launcher.host.gpu_locks import GpuLock
from launcher.host.machine import Machine

_NAME = re.compile(r"share-(\d+)-\d+\.lock")
_LONGEST = 8192
"""Bytes of the longest file that is read."""
_SHARES = 4096
"""Shares of one user."""
_OF_READER = ("file", "uid", "locked", "waits")
_NAMED = 3
"""Holders that a message names."""


@dataclass(frozen=True)
class Share:
    """A run's share of the host: cores, and bytes of memory (0: nothing was promised).

    `pool` names the limits that the run's launcher is under, see `pool_of`. `engine` is the engine that knows whether
    the run is in progress if nobody holds the lock; empty: the lock alone says it. A run whose `turn` it is waits for
    so many `gpus` of these `devices` (names of their locks), too.
    """

    directory: str
    cpus: float = 0
    memory: int = 0
    pool: str = ""
    engine: str = ""
    gpus: int = 0
    devices: tuple[str, ...] = ()
    # Filled in by the reader:
    file: str = ""
    uid: int = -1
    """The owner of the file."""
    locked: bool = True
    """Whether a process holds the lock."""
    waits: bool = False
    """Whether the run is in the queue, and its turn has come."""

    @property
    def submission(self) -> str:
        """The directory of its submission."""
        return os.path.dirname(self.directory)  # noqa: PTH120  # text, not a file of this user

    def __str__(self) -> str:
        """For people: `job-20261123-211500/001-resnet34 of anna`."""
        names = "/".join(self.directory.split("/")[-2:])
        return f"{one_line(names, 200)} of {_user(self.uid)}" + (" (it has waited longest)" if self.waits else "")


def share_of(run_dir: Path, cpus: float, memory: int, machine: Machine, engine: str = "") -> Share:
    """The share of a run that is to start on this machine."""
    return Share(str(run_dir.resolve()), cpus, memory, pool_of(machine), engine)


def pool_of(machine: Machine) -> str:
    """A name for the limits of a machine: empty for the whole host.

    A launcher in a control group with a limit, or with a description of a part of the host, shares this part only with
    launchers of the same limits.
    """
    cpus, memory = _host()
    if not machine.declared and machine.cpus >= cpus and machine.memory >= memory:
        return ""
    owner = "described" if machine.declared else str(os.getuid())
    return f"{owner} {machine.cpus:g} {machine.memory}"


def _host() -> tuple[float, int]:
    """Cores and bytes of memory of the whole host, whatever the limits of this process."""
    import psutil

    return float(os.cpu_count() or 1), int(psutil.virtual_memory().total)


def used(shares: Sequence[Share], machine: Machine) -> tuple[float, int]:
    """Cores and bytes that these shares take from the machine, at most all of them.

    The machine may be a part of the host. Shares of its own pool take from this part. All other shares take from it
    only what the rest of the host cannot hold.
    """
    host_cpus, host_memory = _host()
    pool = pool_of(machine)
    mine = [share for share in shares if share.pool == pool]
    rest = max(0.0, host_cpus - machine.cpus), max(0, host_memory - machine.memory)
    cpus = max(sum(share.cpus for share in mine), sum(share.cpus for share in shares) - rest[0])
    memory = max(sum(share.memory for share in mine), sum(share.memory for share in shares) - rest[1])
    return min(machine.cpus, max(0.0, cpus)), min(machine.memory, max(0, memory))


def why_not(
    cpus: float, memory: int, shares: Sequence[Share], machine: Machine, own: tuple[float, int] = (0, 0)
) -> str | None:
    """Which of `shares` leave less than `cpus` and `memory` (bytes) of the machine, or None if they leave enough.
    `own`: cores and bytes that runs of the caller's submission use beside them."""
    taken_cpus, taken_memory = used(shares, machine)
    reasons = []
    if taken_memory and memory > machine.memory - taken_memory - own[1]:
        holders, total = _named(shares, [share.memory for share in shares]), show_size(machine.memory)
        also = f", {show_size(own[1])} by runs of this submission" if own[1] else ""
        amounts = f"{show_size(taken_memory)} of {total} are used by {holders}{also}"
        reasons.append(f"it needs {show_size(memory)} of memory; {amounts}")
    if taken_cpus and cpus > machine.cpus - taken_cpus - own[0] + 1e-9:
        holders = _named(shares, [share.cpus for share in shares])
        also = f", {own[0]:g} by runs of this submission" if own[0] else ""
        amounts = f"{taken_cpus:g} of {machine.cpus:g} are used by {holders}{also}"
        reasons.append(f"it needs {cpus:g} core{'s' * (cpus != 1)}; {amounts}")
    return "; ".join(reasons) or None


def _named(shares: Sequence[Share], sizes: Sequence[float]) -> str:
    """The holders of these sizes, the largest first."""
    pairs = sorted(zip(sizes, map(str, shares), strict=True), key=lambda pair: (-pair[0], pair[1]))
    holders = [holder for size, holder in pairs if size]
    more = f" and {len(holders) - _NAMED} more" if len(holders) > _NAMED else ""
    return ", ".join(holders[:_NAMED]) + more


@contextmanager
def exclusive(patience: float = 0.5) -> Iterator[bool]:
    """Hold the account, so that no other launcher of this host claims a share. Yields False if another one holds it
    for `patience` seconds. Raises OSError if the folder of the locks cannot be used."""
    descriptor = gpu_locks.open_lock("account")
    deadline = time.monotonic() + patience
    try:
        while not (mine := gpu_locks.lock(descriptor, fcntl.LOCK_EX)) and time.monotonic() < deadline:
            time.sleep(0.01)
        yield mine
    finally:
        os.close(descriptor)


def check() -> None:
    """Raise RunError if the folder of the locks cannot be used, so that no run could start."""
    try:
        os.close(gpu_locks.open_file("account"))
        os.close(gpu_locks.open_file(f"share-{os.getuid()}-0", 0o644))
    except gpu_locks.NoLockFileError:
        pass
    except OSError as error:
        raise RunError(str(error)) from None


def shares() -> list[Share]:
    """All shares of this host that somebody holds, and those without a lock of which an engine must be asked. Raises
    OSError if the folder of the locks cannot be used."""
    folder = gpu_locks.open_folder()
    try:
        matches = [match for name in sorted(os.listdir(folder)) if (match := _NAME.fullmatch(name))]  # noqa: PTH208
        found = [_read(folder, match[0], int(match[1])) for match in matches]
    finally:
        os.close(folder)
    return [share for share in found if share is not None and (share.locked or share.engine)]


def claim(share: Share) -> GpuLock:
    """Enter the share into the account. It lasts as long as any copy of the lock's descriptor. Raises OSError."""
    content = _written(share)
    for number in range(_SHARES):
        try:
            descriptor = gpu_locks.open_file(f"share-{os.getuid()}-{number}", 0o644)
        except gpu_locks.NoLockFileError:  # another user put it there
            continue
        mine = os.fstat(descriptor).st_uid == os.getuid()
        if mine and gpu_locks.lock(descriptor, fcntl.LOCK_EX) and _is_free(descriptor, share.directory):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, content, 0)
            return GpuLock("", descriptor)
        os.close(descriptor)
    raise OSError(f"{gpu_locks.LOCKS}: {_SHARES} runs of this user are in progress")


def _written(share: Share, *more: str) -> bytes:
    fields = {key: value for key, value in asdict(share).items() if key not in _OF_READER or key in more}
    return json.dumps(fields).encode()


def _is_free(descriptor: int, directory: str) -> bool:
    """Whether the file that this process has locked is of no other run of an engine, which may still be in progress."""
    share = _parsed(os.pread(descriptor, _LONGEST, 0))
    return share is None or not share.engine or share.directory == directory


def forget(lock: GpuLock) -> None:
    """Remove a run of an engine that has ended from the account. The caller closes the lock."""
    if not lock.gpu:
        with suppress(OSError):
            os.ftruncate(lock.descriptor, 0)


def drop(share: Share) -> None:
    """Remove a share of this user whose run has ended, and whose lock nobody holds."""
    if share.uid != os.getuid():
        return
    with suppress(OSError):
        descriptor = gpu_locks.open_file(share.file.removesuffix(".lock"), 0o644)
        try:
            if gpu_locks.lock(descriptor, fcntl.LOCK_EX):
                content = _parsed(os.pread(descriptor, _LONGEST, 0))
                if content is not None and content.directory == share.directory:
                    os.ftruncate(descriptor, 0)
        finally:
            os.close(descriptor)


def reclaim(run_dir: Path, engine: str, cpus: float, memory: int) -> GpuLock:
    """The share of a run that another launcher has started, and that has outlived it. Raises OSError."""
    directory = str(run_dir.resolve())
    pool = next((share.pool for share in shares() if share.directory == directory), "")
    return claim(Share(directory, cpus, memory, pool, engine))


def take_turn(share: Share) -> GpuLock | None:
    """Announce that it is the turn of a run in the queue: other launchers start nothing that leaves less than its
    share.

    One run of the host has the turn at a time, until the lock is closed or its process ends. Returns None if another
    run has it. Raises OSError.
    """
    descriptor = gpu_locks.open_file("turn")
    with suppress(OSError):  # another user's file that cannot be written
        if gpu_locks.lock(descriptor, fcntl.LOCK_EX):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, _written(replace(share, uid=os.getuid()), "uid"), 0)
            return GpuLock("", descriptor)
    os.close(descriptor)
    return None


def turn() -> Share | None:
    """The share of the run whose turn it is. Raises OSError."""
    descriptor = gpu_locks.open_file("turn")
    try:
        if gpu_locks.lock(descriptor, fcntl.LOCK_SH):
            return None
        share = _parsed(os.pread(descriptor, _LONGEST, 0))
        return share and replace(share, waits=True)
    finally:
        os.close(descriptor)


def _read(folder: int, name: str, uid: int) -> Share | None:
    """The share in a file, which another user may have written. None if it is no share of the user `uid`."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != uid:
            return None
        share = _parsed(os.pread(descriptor, _LONGEST, 0))
        # A shared lock, so that two readers do not take each other for the holder.
        return share and replace(share, file=name, uid=uid, locked=not gpu_locks.lock(descriptor, fcntl.LOCK_SH))
    finally:
        os.close(descriptor)


def _parsed(content: bytes) -> Share | None:
    try:
        fields: dict[str, Any] = json.loads(content)
        cpus, memory, gpus = float(fields["cpus"]), int(fields["memory"]), int(fields["gpus"])
        texts = [str(fields[key]) for key in ("directory", "pool", "engine")]
        devices, uid = tuple(map(str, fields["devices"])), int(fields.get("uid", -1))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    if not (math.isfinite(cpus) and cpus >= 0 and memory >= 0 and gpus >= 0):
        return None
    return Share(texts[0], cpus, memory, texts[1], texts[2], gpus, devices, uid=uid)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
