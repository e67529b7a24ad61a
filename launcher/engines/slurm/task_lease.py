"""The lease of a run that Slurm may have started twice: a node without network continues a run that Slurm has started
again on another node.

The journal decides: the process of the latest attempt has the run. The process of the earlier attempt sees that, ends
its trainer immediately, and records this in `exec.json`, which also has its heartbeat, written by a thread of its own.
The later process starts after that record, or after a long enough time without a heartbeat. Clocks of two hosts are
never compared, and locks of other hosts are not trusted. Only a missing file means that there was no former process.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from launcher.base.errors import RunError
from launcher.engines import orphans
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
        self.holder = Holder(
            os.uname().nodename, lease.boot_id(), os.getpid(), attempt, uuid.uuid4().hex, machine=lease.machine_id()
        )
        self._looked = -LOOK
        self._guard = threading.RLock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="task lease", daemon=True)

    def start_beating(self) -> None:
        """Write the first heartbeat now, and the others in a thread."""
        if not self._is_taken():
            self._write(beat=1)
        self._thread.start()

    def lost(self, look: bool = False) -> bool:
        """Whether another attempt has the run, or the run was recorded as ended. `look`: check even if the last check
        was a moment ago."""
        now = time.monotonic()
        if not look and now - self._looked < LOOK:
            return False
        self._looked = now
        return self._is_taken()

    def _is_taken(self) -> bool:
        try:
            events = read_events(self.run_dir)
        except (OSError, RunError):
            events = []
        if not events:  # the volume does not answer or is not mounted: nothing is known
            return False
        status = status_of(events[-1])
        return (status.attempt, status.state) not in ((self.attempt, "starting"), (self.attempt, "running"))

    def release(self) -> None:
        """Record that no process of this attempt lives any more."""
        self._ended.set()
        with self._guard, suppress(OSError):
            holder = read_holder(self.run_dir)
            if holder is None or holder.fence <= self.attempt:
                self._write(released=True)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with self._guard:
                if not self._ended.is_set() and not self._is_taken():
                    self._write(beat=self.holder.beat + 1)

    def _write(self, beat: int | None = None, released: bool = False) -> None:
        self.holder = replace(self.holder, beat=self.holder.beat if beat is None else beat, released=released)
        with suppress(OSError, RunError), folders.own_state(self.run_dir) as folder:  # a full disk must not end the run
            folders.replace(folder, TASK, (json.dumps(asdict(self.holder), indent=2) + "\n").encode())


def await_former(run_dir: Path, say: Callable[[str], None] = print) -> None:
    """Wait until no earlier attempt is executed any more; the journal has told it to end. On this host its lock
    decides, on another host its heartbeat. Raises RunError if the file system does not answer for `EXPIRY` seconds."""
    former = _await_readable(run_dir, say)
    if former is None or former.released:
        return
    if lease.is_over_here(former):
        if is_run_locked(run_dir):
            say(f"waiting until process {former.pid} on this host ends the run")
        while is_run_locked(run_dir) and not orphans.orphaned(run_dir):  # `orphans.executed` ends what is left
            time.sleep(0.1)
        return
    say(f"checking for {EXPIRY:g} s whether {former.host} has ended the run")
    deadline = time.monotonic() + EXPIRY
    while time.monotonic() < deadline:
        time.sleep(min(0.5, EXPIRY / 10))
        now = _await_readable(run_dir, say)
        if now is None:
            continue
        if now.released:
            return
        if (now.token, now.beat) != (former.token, former.beat):
            former, deadline = now, time.monotonic() + EXPIRY


def _await_readable(run_dir: Path, say: Callable[[str], None]) -> Holder | None:
    """`read_holder` of a file system that may not answer."""
    advice = "; an earlier attempt may still execute the run"
    path = folders.state_folder(run_dir) / TASK
    return lease.await_answer(lambda: read_holder(run_dir), path, EXPIRY, advice, say)


def is_fresh(run_dir: Path) -> bool:
    """Whether a process seems to execute the run. Also True if that cannot be read."""
    try:
        if is_run_locked(run_dir):
            return True
        holder = read_holder(run_dir)
        if holder is None or holder.released or lease.is_over_here(holder):
            return False
        return lease.is_recent(folders.state_folder(run_dir) / TASK, EXPIRY)
    except FileNotFoundError:
        return False
    except OSError:
        return True


def read_holder(run_dir: Path) -> Holder | None:
    """The content of exec.json; None if there is none. Raises OSError if it cannot be read."""
    try:
        with folders.state(run_dir) as folder:
            content = folders.read(folder, TASK)
    except FileNotFoundError:
        return None
    return lease.parse_holder(content)
