"""A file system that fails for a moment delays what a supervisor does, and takes nothing away."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest

from launcher.engines import registry
from launcher.engines.base import SupervisedEngine
from launcher.host.machine import Machine
from launcher.record import lease
from launcher.record.find import list_runs
from launcher.record.journal import append_event, create_run, read_status
from launcher.record.request import Retry, RunRequest
from launcher.supervise import stopping, supervisor
from trainer.base.files import write_json

Append = Callable[..., Any]


class Instant:
    """Runs that end the moment they are started, in `failed` for the first `failures` attempts."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.stopped: list[str] = []

    def start(self, run_dir: Path, attempt: int, *_: object) -> None:
        append_event(run_dir, "running", attempt)
        append_event(run_dir, "failed" if attempt <= self.failures else "succeeded", attempt, exit_code=1)

    def stop(self, run_dir: Path) -> None:
        self.stopped.append(run_dir.name)
        append_event(run_dir, "cancelled", reason="stopped on request")


def engine(monkeypatch: pytest.MonkeyPatch, runs: Instant) -> SupervisedEngine:
    chosen = registry.supervised("native")
    for name in ("start", "stop"):
        monkeypatch.setattr(chosen, name, getattr(runs, name))
    monkeypatch.setattr(chosen, "poll", lambda run_dir: True)
    return chosen


@pytest.fixture
def submission(locks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(supervisor, "POLL", 0.01)
    path = tmp_path / "runs" / "job-20261130-101500"
    retry = Retry(attempts=2, on=("failed",), backoff=0)
    for index in (1, 2):
        create_run(path / f"00{index}-run", RunRequest(f"00{index}-run", index, "train", ["train"], retry=retry))
    write_json(path / "submission.json", {"engine": "native", "runs": ["001-run", "002-run"], "steps": []})
    return path


def fails(module: Any, monkeypatch: pytest.MonkeyPatch, run: str, states: Collection[str], times: int) -> None:
    """The next `times` events of these states of the run cannot be written."""
    before: Append = module.append_event
    left = iter(range(times))

    def append(run_dir: Path, state: str, *words: Any, **more: Any) -> Any:
        if run_dir.name == run and state in states and next(left, None) is not None:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(run_dir / "events.jsonl"))
        return before(run_dir, state, *words, **more)

    monkeypatch.setattr(module, "append_event", append)


def driven(submission: Path, runs: SupervisedEngine, passes: int = 500, asked: int = 0) -> tuple[int | None, list[str]]:
    """The exit code of a supervision, None if it had not ended after so many looks; and what it said."""
    said: list[str] = []
    with lease.hold(submission) as held:
        supervision = supervisor.Supervision(
            held, submission, Machine("m", 4, 2**34, declared=True), runs, supervisor.Rules(max_parallel=1),
            lambda name, status: said.append(f"{name}: {status.reason}"),
        )  # fmt: skip
        for number in range(passes):
            if asked and number == asked:
                supervision.asked = 1
            try:
                code = supervision._pass()
            except OSError as error:
                assert error.errno == errno.EDQUOT
                continue
            if code is not None:
                return code, said
            runs.wait(0.01)
    return None, said


def test_a_start_that_could_not_be_recorded_is_tried_again(submission: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(supervisor, monkeypatch, "001-run", ("starting", "failed"), 4)
    code, said = driven(submission, engine(monkeypatch, Instant()))
    assert code == 0, said
    assert [read_status(path).state for path in list_runs(submission)] == ["succeeded"] * 2


def test_a_retry_that_could_not_be_recorded_is_not_forgotten(submission: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(supervisor, monkeypatch, "001-run", ("queued",), 2)
    code, said = driven(submission, engine(monkeypatch, Instant(failures=1)))
    assert code == 0, said
    assert [read_status(path).attempt for path in list_runs(submission)] == [2, 2]


def test_ctrl_c_reaches_the_runs_also_if_a_queued_one_cannot_be_cancelled(
    submission: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Instant()
    monkeypatch.setattr(runs, "start", lambda run_dir, attempt, *_: append_event(run_dir, "running", attempt))
    fails(supervisor, monkeypatch, "002-run", ("cancelled",), 10**6)
    code, said = driven(submission, engine(monkeypatch, runs), 60, asked=5)
    assert code == 130 and runs.stopped == ["001-run"], said
    assert any(line.startswith("002-run: stays queued, since it cannot be cancelled now: ") for line in said), said


@pytest.mark.parametrize("flush", ["supervisor", "stop"])
def test_what_cannot_be_flushed_does_not_keep_runs_from_their_stop(
    submission: Path, monkeypatch: pytest.MonkeyPatch, flush: str
) -> None:
    runs = Instant()
    monkeypatch.setattr(runs, "start", lambda run_dir, attempt, *_: append_event(run_dir, "running", attempt))
    chosen = engine(monkeypatch, runs)

    def fail(folder: Path) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(folder))

    if flush == "supervisor":
        monkeypatch.setattr(supervisor.folders, "flush", fail)
        code, said = driven(submission, chosen, 60, asked=5)
        assert code == 130 and runs.stopped == ["001-run"], said
        return
    append_event(submission / "001-run", "starting")
    append_event(submission / "001-run", "running")
    monkeypatch.setattr(chosen, "settle", lambda run_dir: False)
    monkeypatch.setattr(stopping.folders, "flush", fail)
    touched, problems = stopping.stop(submission, list_runs(submission), 5)
    assert touched == ["001-run", "002-run"] and not problems and runs.stopped == ["001-run"]
