"""The lease of a run that Slurm may have started twice: a node without network continues a run that Slurm has started
again on another node.

The journal decides: the process of the latest attempt has the run. The process of the earlier attempt sees that, ends
its trainer immediately, and records this in `exec.json`, which also has its heartbeat. The later process starts after
that record, or after a long enough time without a heartbeat. Clocks of two hosts are never compared, and locks of other
hosts are not trusted.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from launcher.record import folders, lease
from launcher.record.folders import TASK
from launcher.record.journal import read_events, status_of
from launcher.record.lease import Holder
from launcher.record.locks import is_run_locked

LOOK = 2.0
"""Seconds between two checks of the journal."""
BEAT = 5.0
"""Seconds between two heartbeats."""
EXPIRY = 20.0
"""A process on another host without a heartbeat for this many seconds counts as gone."""


class TaskLease:
    """A lease that is held while `launcher exec` executes an attempt of a run in a job of Slurm."""

    def __init__(self, run_dir: Path, attempt: int) -> None:
        self.run_dir = run_dir
        self.attempt = attempt
        self.holder = Holder(os.uname().nodename, lease.boot_id(), os.getpid(), attempt, uuid.uuid4().hex)
        self._looked = self._beaten = -BEAT

    def lost(self, look: bool = False) -> bool:
        """Whether another attempt has the run, or the run was recorded as ended. Also renews the heartbeat when due.
        `look`: check even if the last check was a moment ago."""
        now = time.monotonic()
        if not look and now - self._looked < LOOK:
            return False
        self._looked = now
        try:
            events = read_events(self.run_dir)
        except OSError:
            events = []
        if not events:  # the volume does not answer or is not mounted: nothing is known
            return False
        status = status_of(events[-1])
        if (status.attempt, status.state) not in ((self.attempt, "starting"), (self.attempt, "running")):
            return True
        if now - self._beaten >= BEAT:
            self._beaten = now
            self._write(beat=self.holder.beat + 1)
        return False

    def release(self) -> None:
        """Record that no process of this attempt lives any more."""
        holder = read_holder(self.run_dir)
        if holder is None or holder.fence <= self.attempt:
            self._write(released=True)

    def _write(self, beat: int | None = None, released: bool = False) -> None:
        self.holder = replace(self.holder, beat=self.holder.beat if beat is None else beat, released=released)
        with suppress(OSError), folders.own_state(self.run_dir) as folder:  # a full disk must not end the run
            folders.replace(folder, TASK, (json.dumps(asdict(self.holder), indent=2) + "\n").encode())


def await_former(run_dir: Path, say: Callable[[str], None] = print) -> None:
    """Wait until no earlier attempt is executed any more; the journal has told it to end. On this host its lock
    decides, on another host its heartbeat."""
    former = read_holder(run_dir)
    if former is None or former.released:
        return
    if (former.host, former.boot) == (os.uname().nodename, lease.boot_id()):
        if is_run_locked(run_dir):
            say(f"waiting until process {former.pid} on this host ends the run")
        while is_run_locked(run_dir):
            time.sleep(0.1)
        return
    say(f"checking for {EXPIRY:g} s whether {former.host} has ended the run")
    deadline = time.monotonic() + EXPIRY
    while time.monotonic() < deadline:
        time.sleep(min(0.5, EXPIRY / 10))
        now = read_holder(run_dir)
        if now is None or now.released:
            return
        if (now.token, now.beat) != (former.token, former.beat):
            former, deadline = now, time.monotonic() + EXPIRY


def is_fresh(run_dir: Path) -> bool:
    """Whether a process seems to execute the run."""
    if is_run_locked(run_dir):
        return True
    holder = read_holder(run_dir)
    if holder is None or holder.released or (holder.host, holder.boot) == (os.uname().nodename, lease.boot_id()):
        return False
    with suppress(OSError):
        return abs(time.time() - (folders.state_folder(run_dir) / TASK).stat().st_mtime) < EXPIRY
    return False


def read_holder(run_dir: Path) -> Holder | None:
    """The content of exec.json; None if it is missing or not readable."""
    try:
        with folders.state(run_dir) as folder:
            return Holder(**json.loads(folders.read(folder, TASK)))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
