"""Runs that were started on another host, and on this one when it had another name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launcher.engines import orphans, registry
from launcher.engines.native.engine import NativeEngine
from launcher.host import processes
from launcher.record import lease
from launcher.record.journal import Status, append_event, create_run, mark_lost, read_status
from launcher.record.lease import Holder
from launcher.record.request import RunRequest
from launcher.supervise import stopping
from trainer.base.files import write_json

NAME = "001-run"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    submission = tmp_path / "runs" / "job-20261130-101500"
    create_run(submission / NAME, RunRequest(NAME, 1, "train", ["train"]))
    write_json(submission / "submission.json", {"engine": "native", "runs": [NAME], "steps": []})
    return submission / NAME


@pytest.mark.skipif(not processes.boot(), reason="the system has no id of its boot")
def test_a_host_that_changes_its_name_knows_its_runs(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append_event(run_dir, "starting", host="former", boot=processes.boot(), engine="native")
    me = orphans.new_executor()
    with (run_dir.parent / ".state" / NAME / "exec.lock").open("wb") as lock:
        orphans.sign(lock.fileno(), me)
    holder = Holder(os.uname().nodename, lease.boot_id(), 1, 1, "token")
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "latter", "", "", "")))
    assert orphans.executor_of(run_dir) == me and lease.is_over_here(holder)
    assert mark_lost(run_dir) and read_status(run_dir).state == "lost"


def test_the_begin_of_its_process_says_it_too() -> None:
    here = {"host": "former", "pid_started": processes.this().started}
    assert stopping.is_here(Status("running", figures=here)) == bool(processes.boot())
    assert not stopping.is_here(Status("running", figures={"host": "former", "boot": "another", "pid_started": "x/1"}))


def test_a_run_of_another_host_says_so_and_can_be_given_up(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append_event(run_dir, "starting", host="far", boot="another", engine="native")
    append_event(run_dir, "running", host="far", engine="native")
    why = registry.settle(run_dir)
    assert (
        why is not None
        and "it was started on far" in why
        and f"launcher stop --now {run_dir.parent.name}/{NAME}" in why
    )
    engine = NativeEngine()  # others' tests leave runs in the registry's
    engine.settle(run_dir)
    assert engine.poll(run_dir) and engine.trouble == f"{NAME}: {why}"
    for name, seconds in (("DYING", 0.1), ("UNSEEN", 0.3)):
        monkeypatch.setattr(stopping, name, seconds)
    said: list[str] = []
    touched, problems = stopping.stop(run_dir.parent, [run_dir], 0.1, said.append)
    assert read_status(run_dir).state == "running", "it may save its checkpoint"
    touched, problems = stopping.stop(run_dir.parent, [run_dir], 0, said.append)
    assert touched == [NAME] and not problems and "1 run on another host: lost if it does not answer in 0.3 s" in said
    status = read_status(run_dir)
    assert status.state == "lost" and "its host, far, has not answered" in status.reason
    assert engine.poll(run_dir) is False and engine.trouble is None
