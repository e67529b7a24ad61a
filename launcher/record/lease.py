"""The lease of a submission: one launcher at a time may run it, on any host.

Within a host the holder locks `supervisor.lock` (flock), which is free the moment the holder dies. Not every shared
file system has such locks between hosts, so the holder also writes `supervisor.json`: a lease with a heartbeat and a
fencing number that grows with every holder. A holder on another host is alive if its heartbeat changes; clocks are
never compared. A holder that was taken over finds a higher number in the lease and the journals, and stops writing.

No file system compares and writes in one step. A host that is frozen between its last check and the renaming of its
file may overwrite a newer holder's file. Its number is lower, so the newer holder writes the file again, and the old
holder sees that and stops.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from launcher.base.errors import LeaseLostError, RunError
from launcher.record.locks import is_locked, locked
from trainer.base.files import replacing

BEAT = 5.0
"""Seconds between two heartbeats."""
EXPIRY = 30.0
"""Seconds without a heartbeat after which a holder on another host counts as gone."""
SETTLE = 1.5
"""If two hosts take a lease at the same time, the host named in the file after this many seconds has it."""


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


class Lease:
    """A lease that is held while a launcher runs a submission."""

    def __init__(self, path: Path, holder: Holder) -> None:
        self.path = path
        self.holder = holder
        self._beaten = time.monotonic()

    @property
    def fence(self) -> int:
        return self.holder.fence

    def check(self) -> None:
        """Renew the lease when due, or when an older holder has overwritten it. Raises LeaseLostError."""
        written = self._look()
        overwritten = written is not None and written.token != self.holder.token
        if overwritten or time.monotonic() - self._beaten >= BEAT:
            self._write(beat=self.holder.beat + 1)

    def release(self) -> None:
        """Mark the lease as released, unless another holder has it."""
        with suppress(LeaseLostError):
            self._write(released=True)

    def _look(self) -> Holder | None:
        """The holder that the file names. Raises LeaseLostError if that is a later holder, or one that took the lease
        at the same time."""
        written = read_holder(self.path.parent)
        if written is not None and written.token != self.holder.token and written.fence >= self.holder.fence:
            raise LeaseLostError(
                f"{self.path.parent.name}: the launcher on {written.host} (process {written.pid}) has taken over"
            )
        return written

    def _write(self, beat: int | None = None, released: bool = False) -> None:
        """Write the file. If a last check just before the replacement finds another holder, raises LeaseLostError and
        writes nothing."""
        beat = self.holder.beat if beat is None else beat
        self.holder = replace(self.holder, beat=beat, released=released)
        with suppress(OSError), replacing(self.path) as temporary:  # a full disk must not end the supervision
            temporary.write_text(json.dumps(asdict(self.holder), indent=2) + "\n", encoding="utf-8")
            self._look()
        self._beaten = time.monotonic()


@contextmanager
def hold(submission: Path, say: Callable[[str], None] = lambda line: None) -> Iterator[Lease]:
    """Hold the lease of the submission. Calls `say` before a wait.

    Raises RunError if another launcher is running the submission.
    """
    with locked(submission / "supervisor.lock") as locked_here:
        if not locked_here:
            raise RunError(
                f"{submission.name}: another launcher is running this submission{_who(read_holder(submission))}; "
                f"see: launcher status {submission.name}"
            )
        before = read_holder(submission)
        foreign = before is not None and not _of_this_host(before)
        if before is not None and foreign and not before.released:
            say(f"{before.host} ran this submission last; checking for {EXPIRY:g} s whether it still does")
            if _lives(submission, before):
                raise RunError(
                    f"{submission.name}: another launcher is running this submission{_who(before)}; "
                    f"on that host see: launcher status {submission.name}"
                )
        holder = Holder(
            os.uname().nodename, boot_id(), os.getpid(), (before.fence if before else 0) + 1, uuid.uuid4().hex
        )
        lease = Lease(submission / "supervisor.json", holder)
        lease._write()
        if foreign:
            time.sleep(SETTLE)
        lease.check()
        try:
            yield lease
        finally:
            lease.release()


def _of_this_host(holder: Holder) -> bool:
    """Whether the holder is on this host and of its current boot, so that the lock decides. Names of hosts may be
    equal, boot ids are not."""
    return holder.host == os.uname().nodename and holder.boot in ("", boot_id())


def _lives(submission: Path, before: Holder) -> bool:
    deadline = time.monotonic() + EXPIRY
    while time.monotonic() < deadline:
        time.sleep(min(0.5, EXPIRY / 10))
        now = read_holder(submission)
        if now is not None and (now.token, now.beat) != (before.token, before.beat):
            return not now.released
    return False


def _who(holder: Holder | None) -> str:
    return f" (on {holder.host}, process {holder.pid})" if holder is not None else ""


def read_holder(submission: Path) -> Holder | None:
    """The holder that the lease names; None if the lease is missing or not readable."""
    try:
        return Holder(**json.loads((submission / "supervisor.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def is_driven(submission: Path) -> bool:
    """Whether a launcher seems to be running the submission: by the lock, or by a fresh heartbeat of another host."""
    if is_locked(submission / "supervisor.lock"):
        return True
    holder = read_holder(submission)
    if holder is None or holder.released or _of_this_host(holder):
        return False
    try:
        age = time.time() - (submission / "supervisor.json").stat().st_mtime
    except OSError:
        return False
    return 0 <= age < EXPIRY  # a time in the future means nothing: a clock was set back


def boot_id() -> str:
    """An id of this boot of the machine; empty if the system has none."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""
