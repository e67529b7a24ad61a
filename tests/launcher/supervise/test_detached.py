"""`--detach`: a supervisor of its own."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from launcher.base.errors import RefusedError
from launcher.record import lease
from launcher.record.find import list_runs, list_submissions
from launcher.record.journal import append_event
from launcher.record.locks import is_locked
from launcher.supervise import detached, stop_request, stopping, submission
from tests.launcher.conftest import Lab, wait_for

TWO = "name: two\nmatrix: {seed: [1, 2]}\nresources: {cpus: 0.1}\n"


def test_a_detached_supervisor_drives_on_alone(lab: Lab) -> None:
    job = lab.job("name: x\nmatrix: {seed: [1]}\n")
    lab.plan = {"*": {"until": str(lab.root / "go")}}
    done = lab.launcher("submit", job, "--detach")
    assert done.returncode == 0 and done.stdout.startswith(f"{lab.submission().name}: 1 run as"), done.stderr
    assert is_locked(lab.submission() / "supervisor.lock")
    done = lab.launcher("resume", "--detach")
    assert done.returncode == 1 and "another launcher is running this submission" in done.stderr
    (lab.root / "go").touch()
    wait_for(lambda: set(lab.states().values()) == {"succeeded"}, "the run's end")


def test_what_keeps_a_detached_supervisor_from_starting_is_told(lab: Lab) -> None:
    lab.launcher("submit", lab.job(TWO))
    with pytest.raises(RefusedError, match=r"nothing was started: --machine nowhere: .*\n.*: launcher resume two-"):
        detached.detach(lab.submission(), machine="nowhere")


def test_a_detached_submission_that_is_over_at_once_is_no_failure(lab: Lab) -> None:
    lab.plan = {"*": {"exit": 64, "seconds": 0}}
    job = lab.job(TWO)
    for _ in range(3):
        done = lab.launcher("submit", job, "--detach")
        assert done.returncode == 0, done.stderr
    wait_for(
        lambda: all(set(lab.states(each).values()) == {"failed"} for each in list_submissions(lab.runs)),
        "the ends",
    )


def test_a_resume_in_the_background_shows_its_own_lines_and_returns_when_it_drives(lab: Lab) -> None:
    lab.plan = {"*": {"bad_attempts": 1}}
    lab.launcher("submit", lab.job(TWO))
    name = lab.submission().name
    ended = threading.Event()

    def former_supervisor() -> None:
        """It has released the lease, but still collects."""
        while not ended.wait(0.001):
            with (lab.submission() / detached.LOG).open("a") as log:
                log.write("a line of the former supervisor\n")

    writer = threading.Thread(target=former_supervisor)
    writer.start()
    lab.plan = {"*": {"until": str(lab.root / "go")}}
    try:
        done = lab.launcher("resume", "--detach")
    finally:
        ended.set()
        writer.join()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{name}: continuing; 2 runs queued again: 001-seed1, 002-seed2",
        f"it runs in the background; follow it: launcher attach {name} --runs runs;",
        f"  see its state: launcher status {name} --runs runs",
    ]
    assert not set(lab.states().values()) & {"failed"}, "all runs are queued by now"
    stopped = lab.launcher("stop")
    assert stopped.returncode == 0 and "001-seed1, 002-seed2" in stopped.stdout
    assert set(lab.states().values()) == {"cancelled"}
    assert done.stdout.splitlines()[0] in (lab.submission() / detached.LOG).read_text().splitlines()


def test_a_stop_while_runs_are_queued_again_stops_all_of_them(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.plan = {"*": {"bad_attempts": 9}}
    lab.launcher("submit", lab.job(TWO))
    appended: list[str] = []

    def append(run_dir: Path, *words: Any, **more: Any) -> Any:
        appended.append(run_dir.name)
        status = append_event(run_dir, *words, **more)
        if len(appended) == 1:  # the second run has ended still, so `stop` finds nothing to do there
            assert stopping.stop(lab.submission(), list_runs(lab.submission()), 0) == ([run_dir.name], {})
        return status

    monkeypatch.setattr(submission, "append_event", append)
    monkeypatch.setattr(stopping, "PARTING", 0)
    with lease.hold(lab.submission()) as mine:
        assert submission.requeue(lab.submission(), mine) == []
    assert set(lab.states().values()) == {"cancelled"}
    assert stop_request.everything(lab.submission())
    done = lab.launcher("resume", lab.machine())
    assert "2 runs queued again" in done.stdout and set(lab.states().values()) == {"failed"}, "continued on purpose"


def test_a_run_that_fails_at_the_moment_of_a_stop_is_not_repeated(lab: Lab) -> None:
    lab.plan = {"*": {"until": str(lab.root / "go"), "exit": 3}}
    job = lab.job("name: x\nmatrix: {seed: [1]}\nretry: {on: [failed], attempts: 9, backoff: 0s}\n")
    process = lab.start("submit", job, lab.machine())
    wait_for(lambda: lab.journal("begin"), "a run")
    stop_request.ask(lab.submission())
    wait_for(lambda: process.poll() is not None, "its end")
    assert process.returncode == 130 and len(lab.journal("begin")) == 1


def test_what_was_stopped_can_be_continued_at_once(lab: Lab) -> None:
    lab.plan = {"*": {"until": str(lab.root / "go")}}
    lab.launcher("submit", lab.job(TWO), "--detach", lab.machine())
    assert lab.launcher("stop").returncode == 0
    (lab.root / "go").touch()
    done = lab.launcher("resume", lab.machine())
    assert done.returncode == 0 and set(lab.states().values()) == {"succeeded"}, done.stdout + done.stderr


def test_a_launcher_that_hangs_is_taken_over_on_a_persons_word(lab: Lab) -> None:
    lab.plan = {"*": {"until": str(lab.root / "go")}}
    hanging = lab.start("submit", lab.job(TWO), lab.machine())
    wait_for(lambda: len(lab.journal("begin")) == 2, "two runs")
    hanging.send_signal(signal.SIGSTOP)
    refused = lab.launcher("resume", lab.machine())
    assert refused.returncode == 1 and "--take-over" in refused.stderr
    assert lab.launcher("resume", lab.machine(), "--take-over", "--detach").returncode == 0
    hanging.send_signal(signal.SIGCONT)
    assert (
        hanging.stdout is not None
        and hanging.wait(30) == 1
        and "another launcher has taken over" in hanging.stdout.read()
    )
    (lab.root / "go").touch()
    wait_for(lambda: set(lab.states().values()) == {"succeeded"}, "the end")
    assert len(lab.journal("begin")) == 2, "nothing ran twice"
