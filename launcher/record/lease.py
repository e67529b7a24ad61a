"""The lease of a submission: one launcher at a time may run it, on any host.

Within a host the holder locks `supervisor.lock` (flock), which is free the moment the holder dies. Not every shared
file system has such locks between hosts, so the holder also writes `supervisor.json`: a lease with a heartbeat and a
fencing number that grows with every holder. A thread of its own writes the heartbeat, so that slow work of the holder
does not delay it. A holder on another host is alive if its heartbeat changes; clocks are never compared. A holder that
was taken over finds a higher number in the lease and the journals, and stops writing.

Only a missing file means that nobody holds the lease. A file that cannot be read means that the holder is unknown.

No file system compares and writes in one step. A host that is frozen between its last check and the renaming of its
file may overwrite a newer holder's file. Its number is lower, so the newer holder writes the file again, and the old
holder sees that and stops.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from launcher.base.errors import LeaseLostError, RunError
from launcher.record import folders
from launcher.record.locks import is_locked, locked
from launcher.record.records import Records

BEAT = 5.0
"""Seconds between two heartbeats."""
EXPIRY = 30.0
"""Seconds without a heartbeat after which a holder on another host counts as gone."""
SETTLE = 1.5
"""If two hosts take a lease at the same time, the host named in the file after this many seconds has it."""
LOCK, FILE = "supervisor.lock", "supervisor.json"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Holder:
    """The holder of a lease: the content of supervisor.json. `beat` counts heartbeats. `released`: the holder ended
    normally."""

    host: str
    boot: str
    pid: int
    fence: int
    token: str
    beat: int = 0
    released: bool = False
    machine: str = ""
    """Id of the machine, which stays the same when it boots again; empty if it has none."""


class Lease:
    """A lease that is held while a launcher runs a submission."""

    def __init__(self, path: Path, holder: Holder) -> None:
        self.path = path
        self.holder = holder
        self._guard = threading.RLock()
        self._lost: str | None = None
        self._ended = threading.Event()
        self._beaten = self._proved = _now()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    @property
    def fence(self) -> int:
        """The number for a write. Raises LeaseLostError if the lease is lost."""
        if self._lost is not None or _now() - self._proved >= 2 * BEAT:  # this process may have been suspended
            self.check()
        return self.holder.fence

    def check(self) -> None:
        """Renew the lease when due, or when the file is missing or an older holder has overwritten it. Raises
        LeaseLostError."""
        with self._guard:
            try:
                written = self._look()
            except OSError:  # the volume does not answer, so nothing can be written either
                return
            if written is None or written.token != self.holder.token or _now() - self._beaten >= BEAT:
                self._write(beat=self.holder.beat + 1)

    def start_beating(self) -> None:
        """Write the heartbeat from now on, in a thread."""
        self._thread.start()

    def release(self) -> None:
        """Mark the lease as released, unless another holder has it."""
        self._ended.set()
        with self._guard, suppress(LeaseLostError):
            self._write(released=True)

    def _beat(self) -> None:
        with suppress(LeaseLostError):  # remembered: the next `fence` or `check` of another thread raises it
            while not self._ended.wait(BEAT):
                with self._guard:
                    if not self._ended.is_set():
                        self._write(beat=self.holder.beat + 1)

    def _look(self) -> Holder | None:
        """The holder that the file names. Raises LeaseLostError if that is a later holder, or one that took the lease
        at the same time. Raises OSError if the file cannot be read."""
        if self._lost is not None:
            raise LeaseLostError(self._lost)
        written = read_holder(self.path.parent)
        if written is not None and written.token != self.holder.token and written.fence >= self.holder.fence:
            self._lost = (
                f"{self.path.parent.name}: another launcher has taken over this submission{_who(written)}; "
                "this launcher stops"
            )
            raise LeaseLostError(self._lost)
        self._proved = _now()
        return written

    def _write(self, beat: int | None = None, released: bool = False, blindly: bool = False) -> None:
        """Write the file. If a last check just before the replacement (not `blindly`) finds another holder, raises
        LeaseLostError and writes nothing."""
        beat = self.holder.beat if beat is None else beat
        self.holder = replace(self.holder, beat=beat, released=released)
        content = (json.dumps(asdict(self.holder), indent=2) + "\n").encode()
        with suppress(OSError), folders.opened(self.path.parent) as folder:  # a full disk must not end the supervision
            folders.replace(folder, self.path.name, content, check=(lambda: None) if blindly else self._look)
        self._beaten = _now()


@contextmanager
def hold(submission: Path, say: Say = lambda line: None, take_over: bool = False) -> Iterator[Lease]:
    """Hold the lease of the submission. Calls `say` before a wait. `take_over`: the user says that no other launcher
    is running the submission, so nothing is waited for and its lock is replaced.

    Raises RunError if another launcher is running the submission, or if that cannot be known.
    """
    folders.refuse_foreign(submission)
    with ExitStack() as stack:
        if stack.enter_context(locked(submission / LOCK)) is None:
            if not take_over:
                raise RunError(_refusal(submission, _known(submission)))
            stack.enter_context(_replaced_lock(submission))
        before = _known(submission) if take_over else _await_former(submission, say)
        fence = 1 + max(before.fence if before else 0, highest_fence(submission))
        holder = Holder(
            os.uname().nodename, boot_id(), os.getpid(), fence, uuid.uuid4().hex, machine=machine_id()
        )  # fmt: skip
        lease = Lease(submission / FILE, holder)
        lease._write(blindly=take_over)
        if take_over or (before is not None and not is_over_here(before)) or (before is None and fence > 1):
            time.sleep(SETTLE)
        lease.check()
        lease.start_beating()
        try:
            yield lease
        finally:
            lease.release()


def refuse_if_locked(submission: Path) -> None:
    """Raises RunError if another launcher on this host is running the submission."""
    if is_locked(submission / LOCK):
        raise RunError(_refusal(submission, _known(submission)))


def _await_former(submission: Path, say: Say) -> Holder | None:
    """The last holder, once it is known that it does not run the submission any more. Raises RunError if it does, or
    if that stays unknown."""
    before = _await_readable(submission, say)
    if before is None:
        if not highest_fence(submission):
            return None
        # The file was deleted. A holder on another host writes it again with its next heartbeat.
        say(f"{FILE} is missing; checking for {BEAT + SETTLE:g} s whether a launcher on another host writes it again")
        deadline = time.monotonic() + BEAT + SETTLE
        while before is None and time.monotonic() < deadline:
            time.sleep(min(0.5, EXPIRY / 10))
            before = _await_readable(submission, say)
        if before is not None and not before.released and not is_over_here(before):
            raise RunError(_refusal(submission, before))
        return before
    if before.released or is_over_here(before):
        return before
    say(
        f"{before.host} ran this submission last; checking for {EXPIRY:g} s whether it still does (if you know that it "
        f"does not: launcher resume {_at(submission)} --take-over)"
    )
    deadline = time.monotonic() + EXPIRY
    while time.monotonic() < deadline:
        time.sleep(min(0.5, EXPIRY / 10))
        now = _await_readable(submission, say)
        if now is not None and (now.token, now.beat) != (before.token, before.beat):
            if not now.released:
                raise RunError(_refusal(submission, now))
            return now
    return before


def _await_readable(submission: Path, say: Say) -> Holder | None:
    """`read_holder` of a file system that may not answer."""
    advice = (
        "\nit names the launcher that runs this submission, so nothing was started. If no launcher does: "
        f"launcher resume {_at(submission)} --take-over"
    )
    return await_answer(lambda: read_holder(submission), submission / FILE, EXPIRY, advice, say)


def await_answer(read: Callable[[], Holder | None], path: Path, seconds: float, advice: str, say: Say) -> Holder | None:
    """The result of `read`, which reads `path`, on a file system that may not answer for some time.

    Raises RunError with the reason and `advice` if it does not answer within `seconds`, or immediately if this user may
    not read the file."""
    deadline = time.monotonic() + seconds
    noted = False
    while True:
        try:
            return read()
        except OSError as error:
            reason = f"{path} cannot be read: {error.strerror}"
            if isinstance(error, PermissionError) or time.monotonic() > deadline:
                raise RunError(reason + advice) from None
        if not noted:
            say(f"{reason}; trying again for {seconds:g} s")
            noted = True
        time.sleep(min(0.5, seconds / 10))


def _known(submission: Path) -> Holder | None:
    """The last holder, or None if it is unknown."""
    with suppress(OSError):
        return read_holder(submission)
    return None


def _at(submission: Path) -> str:
    """The words that name this submission on the command line, from any folder."""
    return f"{submission.name} --runs {shlex.quote(str(submission.resolve().parent))}"


def _refusal(submission: Path, holder: Holder | None) -> str:
    return (
        f"{submission.name}: another launcher is running this submission{_who(holder)}; "
        f"see: launcher status {_at(submission)}\n"
        f"if that launcher hangs or its host is down: launcher resume {_at(submission)} --take-over"
    )


@contextmanager
def _replaced_lock(submission: Path) -> Iterator[None]:
    """Hold a new lock file in place of one that another process holds. That process keeps the lock of a file without a
    name, and the fencing number stops it."""
    import tempfile

    descriptor, name = tempfile.mkstemp(prefix=f".{LOCK}.", dir=submission)
    try:
        with suppress(OSError):  # the file system has no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.fchmod(descriptor, 0o644)
        Path(name).replace(submission / LOCK)
        yield
    finally:
        Path(name).unlink(missing_ok=True)
        os.close(descriptor)


def is_over_here(holder: Holder) -> bool:
    """Whether the holder has ended if nobody has the lock: it is of this host's current boot, or of an earlier boot of
    this machine. Names of hosts may be equal and may change, ids of boots are not and do not; copies of a machine may
    share its id."""
    if holder.host != os.uname().nodename:
        return holder.boot != "" and holder.boot == boot_id()
    return holder.boot in ("", boot_id()) or (holder.machine != "" and holder.machine == machine_id())


def _who(holder: Holder | None) -> str:
    return f" (on {holder.host}, process {holder.pid})" if holder is not None else ""


def read_holder(submission: Path) -> Holder | None:
    """The holder that the lease names; None if there is no lease. A file that is damaged gives an unknown holder, whose
    token changes with the file's content. Raises OSError if the file cannot be read."""
    try:
        with folders.opened(submission) as folder:
            return parse_holder(folders.read(folder, FILE))
    except FileNotFoundError:
        return None


def parse_holder(content: bytes) -> Holder:
    """The holder that a lease file of this content names: see `read_holder`."""
    with suppress(ValueError, TypeError, AttributeError, RecursionError):
        named = {field.name: field for field in fields(Holder)}
        values = {key: value for key, value in json.loads(content).items() if key in named}
        kinds = {"pid": int, "fence": int, "beat": int, "released": bool}
        if all(type(value) is kinds.get(key, str) for key, value in values.items()):
            return Holder(**values)
    import hashlib

    return Holder("an unknown host", "unknown", 0, 0, hashlib.sha256(content).hexdigest())


def highest_fence(submission: Path) -> int:
    """The highest fencing number in the journals of the submission's runs; 0 if they have none. Leaves out a journal
    that cannot be read: nobody can write into it, and a later write compares its own numbers again."""
    highest = 0
    with Records(submission) as records:
        for run_dir in records.run_dirs():
            with suppress(OSError):
                fences = re.findall(rb'"fence": (\d{1,18})\b', records.journal(run_dir.name))
                highest = max(highest, *map(int, fences), 0)
    return highest


def is_driven(submission: Path) -> bool:
    """Whether a launcher seems to be running the submission: by the lock, or by a fresh heartbeat of another host. Also
    True if that cannot be read."""
    try:
        if is_locked(submission / LOCK):
            return True
        holder = read_holder(submission)
        if holder is None or holder.released or is_over_here(holder):
            return False
        return is_recent(submission / FILE, EXPIRY)
    except FileNotFoundError:
        return False
    except OSError:
        return True


def is_recent(path: Path, seconds: float) -> bool:
    """Whether the file was written in the last `seconds`, by the clock of its file system: that of this host may differ
    from that of the server, or of the host that writes it. Raises OSError."""
    written = path.stat()
    # Far in the future means that a clock was set back.
    return abs(_time_at(path.parent, written.st_dev) - written.st_mtime) < seconds


_AGAIN = 60.0
"""Seconds after which a file system is asked for its time again."""
_times: dict[int, tuple[float, float]] = {}
"""File system → a moment by `_now`, and the file system's time then."""


def _time_at(folder: Path, device: int) -> float:
    """The time of the folder's file system; that of this host if this user may not write there."""
    moment, there = _times.get(device, (-_AGAIN, 0.0))
    if _now() - moment >= _AGAIN:
        name = f".time.{uuid.uuid4().hex}"
        try:
            with folders.opened(folder) as place:
                descriptor = os.open(
                    name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, dir_fd=place.descriptor
                )
                try:
                    os.unlink(name, dir_fd=place.descriptor)
                    os.write(descriptor, b"0")
                    os.fsync(descriptor)
                    moment, there = _now(), os.fstat(descriptor).st_mtime
                finally:
                    os.close(descriptor)
        except OSError:
            return time.time()
        _times[device] = moment, there
    return there + _now() - moment


def boot_id() -> str:
    """An id of this boot of the machine; empty if the system has none."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def machine_id() -> str:
    """An id of this machine's installation; empty if the system has none."""
    with suppress(OSError, ValueError):
        found = Path("/etc/machine-id").read_text().strip()
        return found if found != "uninitialized" else ""
    return ""


def _now() -> float:
    """Seconds of a clock that also counts while the machine is suspended, where there is one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else time.monotonic()
