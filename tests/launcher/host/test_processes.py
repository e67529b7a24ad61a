"""Processes of this host: a signal reaches the one that was meant."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from launcher.host import processes
from tests.launcher.conftest import wait_for


def test_a_signal_reaches_the_process_that_was_meant_and_no_other() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    meant = processes.find(child.pid)
    assert meant is not None and processes.lives(meant)
    assert not processes.send(processes.Process(child.pid, meant.started + "0"), signal.SIGKILL)
    time.sleep(0.1)
    assert child.poll() is None
    assert processes.send(meant, signal.SIGKILL)
    wait_for(lambda: not processes.lives(meant), "its end")  # a zombie has ended
    child.wait()
    assert not processes.send(meant, signal.SIGKILL) and processes.find(child.pid) is None


def test_a_process_that_one_may_not_see_counts_as_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user who looks at a run must not say that its `launcher exec` was killed."""
    seen = processes.Process(4194000, "x")
    assert not processes.lives(seen)

    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert processes.lives(seen)


def test_descendants_leave_out_what_was_there_before() -> None:
    code = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)']); time.sleep(300)"
    first = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    me = processes.this()
    before = wait_for(lambda: len(found := processes.descendants([me])) >= 2 and found, "both")
    second = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    wait_for(lambda: len(processes.descendants([me], before)) == 2, "the others")
    assert second.pid in [process.pid for process in processes.descendants([me], before)]
    for process in (first, second):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
