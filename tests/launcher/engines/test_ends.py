"""Every process of a native run ends with it, and no other process does. Requests to stop work in every state."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from launcher.engines import orphans, outcome
from launcher.engines.native.engine import NativeEngine
from launcher.engines.process import _wait
from launcher.host import gpu_locks, processes
from launcher.record import folders
from launcher.record.find import find_run, list_runs
from launcher.record.journal import append_event, read_events, read_status
from launcher.record.locks import is_run_locked, locked, run_locked
from tests.launcher.conftest import Lab, seeds, wait_for

linux = pytest.mark.skipif(sys.platform != "linux", reason="macOS has no subreaper: docs/running.md says so")
KINDS = ["deaf", "deaf setsid", "deaf setsid double", "deaf setsid double closed", "setsid double bare"]


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if processes.find(pid) is not None]


def run_dir(lab: Lab) -> Path:
    return find_run(lab.runs, "1")


@pytest.fixture
def bystander(lab: Lab) -> Iterator[subprocess.Popen[bytes]]:
    """Somebody's process that resembles one of the run: its name, its folder, its variables."""
    settings = {**os.environ, "RUN_DIR": str(lab.root), "LAUNCHER_ATTEMPT": "another"}
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], env=settings, cwd=lab.root)
    yield process
    assert process.poll() is None, "it was ended with a run that it does not belong to"
    process.kill()
    process.wait()


@linux
def test_all_that_a_trainer_leaves_ends_with_it(lab: Lab, bystander: subprocess.Popen[bytes]) -> None:
    lab.plan = {
        "*": {"children": KINDS},
        "seed1": {"children": KINDS, "signal": int(signal.SIGKILL)},
        "seed2": {"children": ["deaf"], "exit": 3, "print": "a last word"},
        "seed3": {"children": ["deaf", "deaf setsid double"], "bad_attempts": 1, "bad_exit": 75},
    }
    done = lab.launcher("submit", lab.job(seeds(4, "resources: {gpus: 1, cpus: 1}\n")), lab.machine(gpus=4))
    assert done.returncode == 1, done.stdout
    assert lab.states() == {"seed0": "succeeded", "seed1": "lost", "seed2": "failed", "seed3": "succeeded"}
    assert len(lab.left()) == 2 * len(KINDS) + 3 and not alive(lab.left())
    assert not any(is_run_locked(path) for path in list_runs(lab.submission())) and gpu_locks.holder("gpu0") is None
    assert "--- ended with the trainer: process " in (run_dir(lab) / "log.txt").read_text()
    assert lab.status("seed2").reason == "exit code 3: a last word"
    states = [event["state"] for event in read_events(find_run(lab.runs, "seed3"))]
    assert states[3:] == ["out_of_device_memory", "queued", "starting", "running", "succeeded"], "it cost no attempt"


@linux
@pytest.mark.parametrize("end", ["stop", "second Ctrl-C"])
def test_all_that_a_trainer_leaves_ends_whatever_ends_it(lab: Lab, end: str) -> None:
    lab.plan = {"*": {"children": KINDS, "seconds": 300, "saving": 1, "stubborn": end == "second Ctrl-C"}}
    process = lab.start("submit", lab.job(seeds(1)), lab.machine())
    wait_for(lambda: lab.journal("all left") and lab.status("1").state == "running", "a run")
    if end == "stop":
        assert lab.launcher("stop").returncode == 0
    else:
        process.send_signal(signal.SIGINT)
        time.sleep(0.6)
        process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130 and lab.status("1").state == "cancelled"
    if end == "stop":  # the command and the supervisor both ask the run to end: that is one request
        assert lab.status("1").reason == "stopped on request; last.ckpt is kept"
    assert not alive(lab.left()) and not is_run_locked(run_dir(lab))


# -- `launcher exec` was killed


def orphan(lab: Lab, *leave: str) -> subprocess.Popen[str]:
    """Start a run that is deaf to SIGTERM, and kill its `launcher exec`. Returns the supervisor."""
    lab.plan = {"*": {"children": list(leave), "seconds": 300, "stubborn": True}}
    process = lab.start("submit", lab.job(seeds(1)), lab.machine())
    wait_for(lambda: lab.journal("all left") if leave else lab.journal("begin"), "a run")
    wait_for(lambda: lab.status("1").state == "running", "word of it")
    executor = orphans.executor_of(run_dir(lab))
    assert executor is not None and executor.process.pid == lab.status("1").figures["exec_pid"]
    assert executor.trainer == processes.Process(lab.status("1").figures["pid"], lab.status("1").figures["pid_started"])
    os.kill(executor.process.pid, signal.SIGKILL)
    wait_for(lambda: not processes.lives(executor.process), "its end")
    return process


def trainers(lab: Lab) -> list[int]:
    return [*(event["pid"] for event in lab.journal("begin")), *lab.left()]


@linux
def test_a_supervisor_ends_what_a_killed_exec_has_left(lab: Lab, bystander: subprocess.Popen[bytes]) -> None:
    lab.environment = {"FAKE_GRACE": "0.5"}
    output, _ = orphan(lab, *KINDS[:4]).communicate(timeout=60)
    assert lab.status("1").state == "lost" and not alive(trainers(lab)), output
    assert "was killed; ended what was left of it: process " in lab.status("1").reason
    assert "001-resnet34: its launcher exec (process " in output and "ending what is left of it" in output


@linux
def test_stop_ends_an_orphan(lab: Lab, bystander: subprocess.Popen[bytes]) -> None:
    process = orphan(lab, "deaf setsid double closed")
    process.kill()
    process.wait()
    shown = json.loads(lab.launcher("status", "--json").stdout)
    (run,) = shown["runs"]
    assert run["state"] == "running" and "was killed, but processes of it go on" in run["reason"]
    done = lab.launcher("stop", "--now")
    assert done.returncode == 0 and "stopped: 001-resnet34" in done.stdout
    assert lab.status("1").state == "cancelled" and not alive(trainers(lab))
    assert lab.status("1").reason.startswith("stopped on request; its launcher exec (process ")


@linux
def test_resume_ends_an_orphan_says_so_and_continues(lab: Lab) -> None:
    process = orphan(lab, "deaf setsid double closed")
    process.kill()
    process.wait()
    before = trainers(lab)
    lab.plan, lab.environment = {}, {"FAKE_GRACE": "0.5"}
    done = lab.launcher("resume", lab.machine())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "001-resnet34: its launcher exec (process " in done.stdout and "1 run queued again" in done.stdout
    assert not alive(before)
    assert [event["state"] for event in read_events(run_dir(lab))][3:] == [
        "lost", "queued", "starting", "running", "succeeded"
    ]  # fmt: skip


@linux
def test_what_a_killed_exec_has_left_without_the_lock_ends_at_the_next_attempt(lab: Lab) -> None:
    lab.plan = {"*": {"children": ["deaf setsid double closed"], "seconds": 300}}
    process = lab.start("submit", lab.job(seeds(1, "retry: {on: [lost], backoff: 0s}\n")), lab.machine())
    wait_for(lambda: lab.journal("all left") and lab.status("1").state == "running", "a run")
    os.kill(lab.status("1").figures["exec_pid"], signal.SIGKILL)
    (left,) = lab.left()
    wait_for(lambda: len(lab.journal("begin")) == 2, "the second attempt")
    assert not alive([left])
    assert "ending what an earlier attempt has left: process" in (run_dir(lab) / "log.txt").read_text()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130


def bare_orphan(lab: Lab, alone: bool = False) -> tuple[subprocess.Popen[str], int]:
    """A run whose `launcher exec` is killed and whose trainer ends; a child with no variable and with init for a parent
    goes on with the run's lock. `alone`: the supervisor is killed before. Returns the supervisor and the child."""
    lab.plan = {"*": {"children": ["bare"], "seconds": 300}}
    process = lab.start("submit", lab.job(seeds(1)), lab.machine())
    wait_for(lambda: lab.journal("all left") and lab.status("1").state == "running", "a run")
    if alone:
        process.kill()
        process.wait()
    (left,), executor = lab.left(), orphans.executor_of(run_dir(lab))
    assert executor is not None and executor.trainer is not None
    os.kill(executor.process.pid, signal.SIGKILL)
    wait_for(lambda: not processes.lives(executor.process) and not processes.lives(executor.trainer), "their ends")
    return process, left


@linux
def test_stop_names_and_ends_what_holds_the_lock_and_has_no_variable(lab: Lab) -> None:
    _, left = bare_orphan(lab, alone=True)
    assert alive([left]) and is_run_locked(run_dir(lab))
    with (run_dir(lab).parent / ".state" / run_dir(lab).name / "exec.lock").open():  # a reader is no holder
        (run,) = json.loads(lab.launcher("status", "--json").stdout)["runs"]
        assert run["state"] == "running" and f"processes of it go on: process {left} (" in run["reason"]
        done = lab.launcher("stop", "--now")
    assert done.returncode == 0 and not alive([left]), done.stdout + done.stderr
    assert f"ended what was left of it: process {left} (" in lab.status("1").reason


@linux
def test_a_supervisor_names_and_ends_what_holds_the_lock_and_has_no_variable(lab: Lab) -> None:
    lab.environment = {"FAKE_GRACE": "0.5"}
    process, left = bare_orphan(lab)
    output, _ = process.communicate(timeout=60)
    assert lab.status("1").state == "lost" and not alive([left]), output
    said = rf"ending what is left of it \(at the latest in 0\.5 s\): .*process {left} \("
    assert re.search(said, output), output  # beside the trainer if that has not ended yet


@linux
def test_a_reader_and_another_users_holder_of_the_lock_are_named_and_not_signalled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "job" / "001-a"
    folders.create_state(place)
    lock = folders.state_folder(place) / "exec.lock"
    code = "import fcntl, os, sys, time; file = open(sys.argv[1], 'a+'); {}; print(flush=True); time.sleep(300)"
    taken = "fcntl.flock(file, fcntl.LOCK_EX); os.fork() and os._exit(0)"
    started = [
        subprocess.Popen([sys.executable, "-c", code.format(what), str(lock)], stdout=subprocess.PIPE)
        for what in ("None", taken)
    ]
    for each in started:
        assert each.stdout is not None and each.stdout.readline() == b"\n"
    taker = started[1].pid
    started[1].wait()
    found = processes.holders(lock)
    (reader,) = [process for process in found if process.pid == started[0].pid]
    (holder,) = [process for process in found if process.pid not in (reader.pid, taker)]
    try:
        assert processes.lock_holders(lock, taker) == [holder]
        assert processes.lock_holders(lock, taker + 1) == [], "another launcher exec that has taken the lock itself"
        named = orphans.unfamiliar(place, [holder])
        assert named.startswith(f"process {reader.pid} (") and str(holder.pid) not in named
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        assert processes.lock_holders(lock, taker) == [], "only processes of this user are ended"
    finally:
        for pid in (reader.pid, holder.pid):
            os.kill(pid, signal.SIGKILL)
        started[0].wait()


def test_an_exec_that_is_suspended_can_be_stopped(lab: Lab) -> None:
    lab.plan = {"*": {"seconds": 300}}
    process = lab.start("submit", lab.job(seeds(1)), lab.machine())
    wait_for(lambda: lab.journal("begin") and lab.status("1").state == "running", "a run")
    os.kill(lab.status("1").figures["exec_pid"], signal.SIGSTOP)
    os.kill(lab.status("1").figures["pid"], signal.SIGSTOP)
    assert lab.launcher("stop").returncode == 0
    assert process.wait(60) == 130 and lab.journal("stopped")


def test_a_trainer_that_ends_just_before_it_is_killed_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process group is gone when the signal is sent."""
    child = subprocess.Popen([sys.executable, "-c", ""], process_group=0)
    child.wait()
    waits = iter([subprocess.TimeoutExpired("trainer", 0.1), None])
    asked: list[int] = []

    class Trainer:
        pid = child.pid

        def wait(self, timeout: float) -> None:
            if (error := next(waits)) is not None:
                raise error

        def terminate(self) -> None:
            asked.append(1)

        def send_signal(self, number: int) -> None:
            asked.append(number)

    class Overseer(outcome.Overseer):
        def asked(self, signals: int) -> int:
            return 2  # at once

    signals = types.SimpleNamespace(times=2)
    result = _wait(cast(Any, Trainer()), cast(Any, signals), None, Overseer({}))
    assert result == (False, True) and asked == [1, signal.SIGCONT]


# -- the run's lock


def test_a_lock_that_stays_is_named_and_costs_no_attempt(lab: Lab) -> None:
    lab.plan = {"*": {"bad_attempts": 1, "bad_exit": 3}}
    assert lab.launcher("submit", lab.job(seeds(1)), lab.machine()).returncode == 1
    with run_locked(run_dir(lab)) as mine:
        assert mine is not None
        refused = lab.launcher("exec", str(run_dir(lab)))
        assert refused.returncode == 1 and f"is being executed already by process {os.getpid()} (" in refused.stderr
        lab.environment = {"FAKE_PATIENCE": "0.5"}
        process = lab.start("resume", lab.machine())
        events = wait_for(lambda: len(found := read_events(run_dir(lab))) > 6 and found, "another start")[4:]
        assert [event["state"] for event in events][:3] == ["queued", "starting", "queued"]
        assert f"waits for the run's lock, which process {os.getpid()} (" in events[2]["reason"]
        assert {event["attempt"] for event in events} == {2}
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130 and lab.status("1").state == "cancelled"


def test_a_run_that_waits_for_its_lock_can_be_stopped(lab: Lab) -> None:
    lab.plan = {"*": {"bad_attempts": 1, "bad_exit": 3}}
    assert lab.launcher("submit", lab.job(seeds(1)), lab.machine()).returncode == 1
    with run_locked(run_dir(lab)):
        process = lab.start("resume", lab.machine())
        log = run_dir(lab) / "log.txt"
        waits = f"--- waiting for the run's lock, which process {os.getpid()} ("
        wait_for(lambda: waits in log.read_text(), "a word")
        assert lab.launcher("stop").returncode == 0
        assert process.wait(60) == 130
        assert lab.status("1").state == "cancelled" and lab.status("1").reason == "stopped before it started"
    assert len(lab.journal("begin")) == 1


@pytest.mark.parametrize("stopped", [True, False])
def test_an_exec_that_is_killed_before_it_has_the_lock_has_ended_whoever_holds_it(lab: Lab, stopped: bool) -> None:
    lab.plan = {"*": {"bad_attempts": 1, "bad_exit": 3}}
    assert lab.launcher("submit", lab.job(seeds(1)), lab.machine()).returncode == 1
    place, native = run_dir(lab), NativeEngine()
    append_event(place, "queued", attempt=2)
    append_event(place, "starting", host=os.uname().nodename, engine="native")
    with run_locked(place) as mine:
        assert mine is not None
        native.start(place, 2, [], [])
        os.kill(native._children[place].pid, signal.SIGSTOP)  # before it can do anything
        if stopped:
            native._asked.add(place)
        native._children[place].kill()
        native._children[place].wait()
        assert not native.poll(place)
    status = read_status(place)
    how = "stopped while it started" if stopped else "its launcher exec was killed while it started"
    assert (status.state, status.attempt) == ("cancelled" if stopped else "lost", 2)
    assert status.reason.startswith(how) and status.reason.endswith(" holds the run's lock")


# -- without a lock file or a subreaper


def test_an_old_or_broken_lock_file_names_nobody(tmp_path: Path) -> None:
    place = tmp_path / "job" / "001-a"
    folders.create_state(place)
    for text in (
        "",
        "{",
        "[]",
        '{"process": 1}',
        '{"process": {"pid": 1, "started": "x"}, "host": "elsewhere", "token": "", "trainer": null}',
    ):
        with run_locked(place) as lock:
            assert lock is not None
            os.ftruncate(lock, 0)
            os.pwrite(lock, text.encode(), 0)
            assert orphans.executor_of(place) is None and orphans.orphaned(place) is None


def test_without_a_subreaper_the_process_group_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS: nobody adopts orphans, and processes are listed by psutil."""
    script = "(trap '' TERM; sleep 300) & echo $!; (setsid sleep 300 & echo $!)"
    monkeypatch.setattr(processes, "LINUX", False)
    before = processes.descendants([processes.this()])  # else the warm processes of all tests would be ended, too
    trainer = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True, process_group=0)
    assert trainer.stdout is not None
    in_group, left_group = (int(trainer.stdout.readline()) for _ in range(2))
    trainer.wait()
    monkeypatch.setattr(orphans, "LINGER", 0.1)
    monkeypatch.setattr(orphans, "TERM", 0.1)
    try:
        ended, still = orphans.end_descendants(before, trainer.pid, lambda: False)
        assert any(name.startswith(f"process {in_group} (") for name in ended) and not still
        assert alive([in_group, left_group]) == [left_group]
    finally:
        os.kill(left_group, signal.SIGKILL)


# -- Ctrl-C and SIGTERM in every state


def test_ctrl_c_while_the_results_are_collected_ends_at_once(lab: Lab) -> None:
    (lab.runs / "champion").mkdir(parents=True)
    with locked(lab.runs / "champion" / ".lock") as mine:
        assert mine is not None
        process = lab.start("submit", lab.job(seeds(1)), lab.machine())
        assert process.stdout is not None
        line = next(line for line in process.stdout if "waiting up to 60 s" in line)
        assert f"for process {os.getpid()} (" in line
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 130, output
    assert f"later: launcher collect {lab.submission().name} --runs runs" in output and "Traceback" not in output
    assert lab.states() == {"resnet34": "succeeded"}


def test_sigterm_while_a_submission_is_prepared_ends_it_like_ctrl_c(lab: Lab) -> None:
    """The job file is a pipe: reading it is the first thing that `submit` does."""
    os.mkfifo(lab.root / "job.yaml")
    for number in (signal.SIGINT, signal.SIGTERM):
        process = lab.start("submit", "job.yaml", lab.machine())
        with (lab.root / "job.yaml").open("w"):  # opens when the other side does
            process.send_signal(number)
            output, _ = process.communicate(timeout=30)
        assert (process.returncode, output.strip()) == (130, "stopped")
    assert not lab.runs.exists()


def test_a_run_that_waits_for_a_gpu_or_its_next_attempt_can_be_stopped(lab: Lab) -> None:
    held = gpu_locks.acquire("gpu0", "somebody")
    assert held is not None
    job, gpu = lab.job(seeds(1, "resources: {gpus: 1, cpus: 1}\n")), lab.machine(gpus=1)
    for stop in (lambda process: process.send_signal(signal.SIGINT), lambda process: lab.launcher("stop")):
        process = lab.start("submit", job, gpu, "--fresh")
        assert process.stdout is not None
        next(line for line in process.stdout if "waiting" in line)
        stop(process)
        assert process.wait(30) == 130 and lab.states() == {"resnet34": "cancelled"}
    held.close()
    lab.plan = {"*": {"exit": 3}}
    process = lab.start("submit", lab.job(seeds(1, "retry: {on: [failed], backoff: 1h, attempts: 2}\n")), lab.machine())
    wait_for(lambda: lab.runs.exists() and lab.status("1").attempt == 2, "its next attempt")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 130 and lab.states() == {"resnet34": "cancelled"}
