"""Who drives a submission: one launcher, on whatever host.

Within a host `supervisor.lock` is locked (flock): it is free the moment its holder dies. File systems that hosts share
do not all carry such locks, so the holder also writes `supervisor.json`: a lease with a heartbeat and a fencing number
that grows with every holder. Whether a holder on another host lives is judged by watching its heartbeat change, never
by comparing clocks; one that was taken over finds a higher number in the lease and the journals, and writes no more.

No file system compares and writes in one step: a host that is frozen in the moment between its last look and the
renaming of its file may overwrite a newer holder's file. Its number is lower, so the newer holder writes the file
again, and the late one finds that and stops.
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
"""Seconds after which, of two hosts that took a lease at once, the one that stands in the file has it."""


@dataclass(frozen=True)
class Holder:
    """Who drives a submission: the content of supervisor.json. `beat` counts heartbeats; `released`: the
    holder has ended in good order."""

    host: str
    boot: str
    pid: int
    fence: int
    token: str
    beat: int = 0
    released: bool = False


class Lease:
    """Held while a launcher drives a submission."""

    def __init__(self, path: Path, holder: Holder) -> None:
        self.path = path
        self.holder = holder
        self._beaten = time.monotonic()

    @property
    def fence(self) -> int:
        return self.holder.fence

    def check(self) -> None:
        """Renew the lease when that is due, or when an older holder has overwritten the file. Raises LeaseLostError."""
        written = self._look()
        overwritten = written is not None and written.token != self.holder.token
        if overwritten or time.monotonic() - self._beaten >= BEAT:
            self._write(beat=self.holder.beat + 1)

    def release(self) -> None:
        """Say that nobody holds it any more, unless somebody does."""
        with suppress(LeaseLostError):
            self._write(released=True)

    def _look(self) -> Holder | None:
        """The holder that the file names. Raises LeaseLostError where that is a later one, or one that took the lease
        in the same moment."""
        written = read_holder(self.path.parent)
        if written is not None and written.token != self.holder.token and written.fence >= self.holder.fence:
            raise LeaseLostError(
                f"{self.path.parent.name}: the launcher on {written.host} (process {written.pid}) has taken it over"
            )
        return written

    def _write(self, beat: int | None = None, released: bool = False) -> None:
        """Write the file. Raises LeaseLostError, and writes nothing, where a last look just before the file is replaced
        finds another holder."""
        beat = self.holder.beat if beat is None else beat
        self.holder = replace(self.holder, beat=beat, released=released)
        with suppress(OSError), replacing(self.path) as temporary:  # a full disk must not end the drive
            temporary.write_text(json.dumps(asdict(self.holder), indent=2) + "\n", encoding="utf-8")
            self._look()
        self._beaten = time.monotonic()


@contextmanager
def hold(submission: Path, say: Callable[[str], None] = lambda line: None) -> Iterator[Lease]:
    """The lease of the submission. `say` is told of a wait.

    Raises RunError where another launcher drives it.
    """
    with locked(submission / "supervisor.lock") as locked_here:
        if not locked_here:
            raise RunError(
                f"{submission.name}: another launcher drives it{_who(read_holder(submission))}; "
                f"see it: launcher status {submission.name}"
            )
        before = read_holder(submission)
        foreign = before is not None and not _of_this_host(before)
        if before is not None and foreign and not before.released:
            say(f"it was driven from {before.host}; looking for {EXPIRY:g} s whether it still is")
            if _lives(submission, before):
                raise RunError(
                    f"{submission.name}: another launcher drives it{_who(before)}; "
                    f"see it there: launcher status {submission.name}"
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
    """Where the lock is the whole truth. Since its last start, too: hosts may share a name, and none shares this."""
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
    """The holder that the lease names; None where there is no lease, or none that can be understood."""
    try:
        return Holder(**json.loads((submission / "supervisor.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def is_driven(submission: Path) -> bool:
    """Whether a launcher drives the submission, as far as a look can tell: by the lock, or by a fresh heartbeat of
    another host."""
    if is_locked(submission / "supervisor.lock"):
        return True
    holder = read_holder(submission)
    if holder is None or holder.released or _of_this_host(holder):
        return False
    try:
        age = time.time() - (submission / "supervisor.json").stat().st_mtime
    except OSError:
        return False
    return 0 <= age < EXPIRY  # a time to come tells nothing: a clock was put back


def boot_id() -> str:
    """What tells this start of the machine from its other ones; empty where the system does not say."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""
