"""Processes of this host. Each is named by its number and its start, so that no signal reaches another process that has
the same number later."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

LINUX = sys.platform == "linux"
PROC = Path("/proc")
SET_DEATH_SIGNAL, SET_SUBREAPER = 1, 36
"""Options of prctl(2)."""


@dataclass(frozen=True)
class Process:
    """A process. `started` is equal for no other process of this number, also after a reboot."""

    pid: int
    started: str


def place() -> str:
    """A name of this host's boot and, on Linux, of its process numbers: containers may share the one and not the other.
    The host may change its own name."""
    with suppress(OSError):
        return f"{boot() or os.uname().nodename} {(PROC / 'self/ns/pid').readlink()}"
    return boot() or os.uname().nodename


def uptime() -> float:
    """Seconds since this host's boot. No change of the time of day changes them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if LINUX else time.monotonic()


def this() -> Process:
    """This process."""
    return Process(os.getpid(), _started(os.getpid()) or "")


def find(pid: int) -> Process | None:
    """The process that has this number now; None if there is none, or if it has ended and is not reaped yet."""
    started = _started(pid)
    return Process(pid, started) if started is not None else None


def lives(process: Process) -> bool:
    """Whether the process has not ended. True if this user may not see it, but the number is in use."""
    now = find(process.pid)
    return now == process if now is not None else _is_hidden(process.pid)


def _is_hidden(pid: int) -> bool:
    """Whether there is a process of another user that /proc does not show (mount option hidepid)."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return False  # it has ended and is not reaped yet


def send(process: Process, number: signal.Signals) -> bool:
    """Send a signal to the process, and to no other one. Returns False if it has ended, or if this user may not."""
    with suppress(OSError):
        if hasattr(os, "pidfd_open"):
            descriptor = os.pidfd_open(process.pid)
            try:
                # The descriptor means the process that had the number a moment ago, whoever has it now.
                if lives(process):
                    signal.pidfd_send_signal(descriptor, number)
                    return True
            finally:
                os.close(descriptor)
        elif lives(process):
            os.kill(process.pid, number)
            return True
    return False


def describe(process: Process) -> str:
    """`process 123 (python -m trainer train …)`."""
    words = ""
    with suppress(Exception):  # it has ended, or belongs to another user
        if LINUX:
            words = (PROC / str(process.pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        else:
            import psutil

            words = " ".join(psutil.Process(process.pid).cmdline())
    words = " ".join("".join(letter if letter.isprintable() else "?" for letter in words).split())
    return f"process {process.pid}" + (f" ({words if len(words) <= 80 else words[:79] + '…'})" if words else "")


def adopt_orphans() -> None:
    """From now on every descendant of this process whose parent ends becomes its child, also one that has left the
    process group and the session. Linux only: prctl(2), a subreaper."""
    if LINUX:
        ctypes.CDLL(None).prctl(SET_SUBREAPER, 1)


def die_with_parent() -> None:
    """On Linux this process gets SIGTERM when its parent dies: prctl(2). macOS has nothing like it."""
    if LINUX:
        ctypes.CDLL(None).prctl(SET_DEATH_SIGNAL, signal.SIGTERM)


def reap_adopted(child: int) -> None:
    """Remove the entries of adopted processes that have ended from the process table. Leaves `child`, which the caller
    waits for itself."""
    if not LINUX:
        return
    with suppress(ChildProcessError):
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if ended.si_pid == child:
                return
            os.waitpid(ended.si_pid, 0)


def descendants(roots: Iterable[Process], without: Collection[Process] = ()) -> list[Process]:
    """The living descendants of `roots`. Leaves out `without` and their descendants."""
    children: dict[int, list[Process]] = {}
    roots = list(roots)
    if not roots:
        return []
    for process, parent in _all():
        children.setdefault(parent, []).append(process)
    found: list[Process] = []
    known = {*roots, *without}
    waiting = [root for root in roots if lives(root)]
    while waiting:
        for process in children.get(waiting.pop().pid, []):
            if process not in known:
                known.add(process)
                found.append(process)
                waiting.append(process)
    return [process for process in found if lives(process)]


def of_group(group: int) -> list[Process]:
    """The processes of a process group."""
    return [process for process, _ in _all() if _group(process.pid) == group]


def with_variable(name: str, value: str) -> list[Process]:
    """The processes that were started with this environment variable, as far as this user may look. Linux only."""
    word = f"{name}={value}".encode()
    found = []
    for process, _ in _all() if LINUX else ():
        with suppress(OSError):
            if word in (PROC / str(process.pid) / "environ").read_bytes().split(b"\0"):
                found.append(process)
    return found


def holders(path: Path) -> list[Process]:
    """The processes that have the file open, as far as this user may look. Linux only."""
    return [process for process, _ in _open_descriptors(path)]


def lock_holders(path: Path, acquired_by: int) -> list[Process]:
    """The processes of this user that hold the file's lock (flock) because they inherited it from the process
    `acquired_by`, which may have ended. Leaves out those that have only opened the file, and a process that took the
    lock itself. Linux only: fdinfo of proc(5)."""
    found = []
    for process, descriptors in _open_descriptors(path):
        for name in descriptors:
            with suppress(OSError):
                info = (PROC / str(process.pid) / "fdinfo" / name).read_text()
                # In a container's own space of process numbers, one that has ended is 0.
                takers = {int(number) for number in re.findall(r"^lock:.*\bFLOCK\b.* (\d+) \S+:\S+:\d+ ", info, re.M)}
                if takers & {acquired_by, 0} and is_own(process):
                    found.append(process)
                    break
    return found


def is_own(process: Process) -> bool:
    """Whether the process is this user's."""
    with suppress(OSError):
        return (PROC / str(process.pid)).stat().st_uid == os.geteuid()
    return False


def names_of_holders(path: Path) -> str:
    """The other processes that have the file open, for people; empty if unknown."""
    return ", ".join(describe(process) for process in holders(path)[:3] if process.pid != os.getpid())


def _open_descriptors(path: Path) -> Iterator[tuple[Process, list[str]]]:
    """The processes that have the file open, each with its descriptors of the file."""
    try:
        real, status = os.path.realpath(path), path.stat()
    except OSError:
        return
    wanted = (status.st_dev, status.st_ino)
    for process, _ in _all() if LINUX else ():
        if descriptors := _descriptors(process.pid, real, wanted):
            yield process, descriptors


def _descriptors(pid: int, real: str, wanted: tuple[int, int]) -> list[str]:
    folder, found = PROC / str(pid) / "fd", []
    with suppress(OSError):
        for name in os.listdir(folder):  # noqa: PTH208  # thousands of names
            with suppress(OSError):
                if str((folder / name).readlink()) == real:  # first the text: a file on a dead server is not touched
                    status = (folder / name).stat()
                    if (status.st_dev, status.st_ino) == wanted:
                        found.append(name)
    return found


def _group(pid: int) -> int | None:
    with suppress(OSError):
        return os.getpgid(pid)
    return None


def _all() -> Iterator[tuple[Process, int]]:
    """Every living process with its parent's number."""
    if LINUX:
        with suppress(FileNotFoundError):  # /proc is not mounted
            for name in os.listdir(PROC):  # noqa: PTH208
                if name.isdigit() and (entry := _entry(int(name))) is not None:
                    yield Process(int(name), entry[0]), entry[1]
        return
    import psutil

    for each in psutil.process_iter():
        with suppress(psutil.Error):
            started = _started(each.pid)
            if started is not None:
                yield Process(each.pid, started), each.ppid()


def _started(pid: int) -> str | None:
    if LINUX:
        entry = _entry(pid)
        return None if entry is None else entry[0]
    import psutil

    with suppress(psutil.Error):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            return f"{process.create_time():.6f}"
    return None


def _entry(pid: int) -> tuple[str, int] | None:
    """Start and parent of a living process by /proc/PID/stat, proc(5): fields 22 and 4."""
    try:
        words = (PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
        over = words[0] in (b"Z", b"X") and len(os.listdir(PROC / str(pid) / "task")) <= 1  # noqa: PTH208
    except (OSError, IndexError):
        return None
    return None if over else (f"{boot()}/{int(words[19])}", int(words[1]))


@cache
def boot() -> str:
    """An id of this boot of the host; empty if the system has none."""
    with suppress(OSError):
        return (PROC / "sys/kernel/random/boot_id").read_text().strip()
    return ""
