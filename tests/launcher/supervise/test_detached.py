"""`--detach`: a supervisor of its own."""

from __future__ import annotations

import pytest

from launcher.base.errors import RunError
from launcher.record.find import list_submissions
from launcher.record.locks import is_locked
from launcher.supervise import detached
from tests.launcher.conftest import Lab, wait_for

TWO = "name: two\nmatrix: {seed: [1, 2]}\nresources: {cpus: 0.1}\n"


def test_a_detached_supervisor_drives_on_alone(lab: Lab) -> None:
    job = lab.job("name: x\nmatrix: {seed: [1]}\n")
    lab.plan = {"*": {"until": str(lab.root / "go")}}
    done = lab.launcher("submit", job, "--detach")
    assert done.returncode == 0 and done.stdout.startswith(f"{lab.submission().name}: 1 runs"), done.stderr
    assert is_locked(lab.submission() / "supervisor.lock")
    done = lab.launcher("resume", "--detach")
    assert done.returncode == 1 and "another launcher is running this submission" in done.stderr
    (lab.root / "go").touch()
    wait_for(lambda: set(lab.states().values()) == {"succeeded"}, "the run's end")


def test_what_keeps_a_detached_supervisor_from_starting_is_told(lab: Lab) -> None:
    lab.launcher("submit", lab.job(TWO))
    with pytest.raises(RunError, match=r"nothing was started: --machine nowhere: .*\n.*: launcher resume two-"):
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
