"""Submissions of the version before, which kept the launcher's own files in the run directory. The one in `old_layout`
was recorded by that version (commit 6ff777f) with the fake trainer: a run succeeded, one failed, one was stopped."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import shutil
from pathlib import Path

import pytest

from launcher.base.errors import RunError
from launcher.record import lease, reuse
from launcher.record.folders import state_folder
from launcher.record.journal import append_event, create_run, read_events, read_status, replay
from launcher.record.request import read_request, write_request
from tests.launcher.conftest import Lab

NAME = "old-20261130-171119"
RECORDED = Path(__file__).with_name("old_layout")


@pytest.fixture
def old(lab: Lab) -> Path:
    """The submission in a lab."""
    lab.runs.mkdir()
    (lab.root / "data" / "train" / "a" / "1.jpg").write_bytes(b"x")
    here = {"@LAB@": str(lab.root), "@HOST@": os.uname().nodename, "@BOOT@": lease.boot_id()}
    for name in (NAME, "champion"):
        shutil.copytree(RECORDED / name, lab.runs / name)
    for path in lab.runs.rglob("*.json*"):
        text = path.read_text()
        for word, value in here.items():
            text = text.replace(word, value)
        path.write_text(text)
    return lab.runs / NAME


def test_they_are_listed_resumed_and_collected(lab: Lab, old: Path) -> None:
    listed = json.loads(lab.launcher("status", "--json").stdout)
    assert [run["state"] for run in listed["runs"]] == ["succeeded", "failed", "cancelled"]
    assert not (old / ".state").exists(), "reading changes nothing"
    assert lab.launcher("logs", "1").stdout.endswith("working\n")
    lab.plan = {"seed1": {"f1": 0.9}}
    done = lab.launcher("resume", lab.machine())
    assert done.returncode == 0, done.stdout + done.stderr
    assert lab.states() == {f"seed{number}": "succeeded" for number in range(3)}
    for name in ("002-seed1", "003-seed2"):
        events = read_events(old / name)
        assert replay(events).attempt == 2 and len(events) == 8, "the journal goes on"
        assert state_folder(old / name) == old / ".state" / name
        assert json.loads((old / name / "status.json").read_text())["state"] == "succeeded"
        assert not [left for left in ("events.jsonl", "exec.lock") if (old / name / left).exists()]
    assert state_folder(old / "001-seed0") == old / "001-seed0", "it has not changed"
    assert f"champion: {NAME}/002-seed1 (val_f1 0.9000)" in done.stdout
    (best, *_) = csv.DictReader((old / "leaderboard.csv").open())
    assert best["run"] == "002-seed1" and (lab.runs / "champion" / "best_model.ckpt").read_bytes().endswith(
        b"002-seed1"
    )


def test_they_are_reused(old: Path) -> None:
    request = read_request(old / "001-seed0")
    assert reuse.equal_runs([request], old.parent)["001-seed0"].source == old / "001-seed0"
    run_dir = old.parent / "new" / "001-seed0"
    create_run(run_dir, request)
    reuse.link(old / "001-seed0", run_dir)
    assert read_status(run_dir).state == "reused" and (run_dir / "best.ckpt").read_text() == "001-seed0"
    assert not (old / ".state").exists()


@pytest.mark.parametrize("kind", ["pipe", "link", "folder"])
def test_one_that_cannot_be_read_serves_nobody_and_stops_nobody(old: Path, kind: str) -> None:
    request = read_request(old / "001-seed0")
    whole = old / "001-seed0" / "run.json"
    whole.unlink()
    {"pipe": os.mkfifo, "link": lambda path: path.symlink_to("/etc/passwd"), "folder": Path.mkdir}[kind](whole)
    assert reuse.equal_runs([request], old.parent) == {}


@pytest.mark.parametrize(
    "line", ['{"state": []}', '{"state": "succeeded", "attempt": "x"}', '{"state": "lost", "time": {}}', "[1]"]
)
def test_an_event_of_wrong_types_makes_the_run_unknown(old: Path, line: str) -> None:
    run_dir = old / "002-seed1"
    with (run_dir / "events.jsonl").open("a") as journal:
        journal.write(f"{line}\n")
    status = read_status(run_dir)
    assert status.state == "unknown" and f"{run_dir}/events.jsonl: line 5 is no event of this launcher" in status.reason
    with pytest.raises(RunError, match="line 5 is no event"):
        read_events(run_dir)


def test_a_change_moves_the_files_as_a_whole(old: Path) -> None:
    run_dir = old / "003-seed2"
    before = read_events(run_dir)
    with (run_dir / "exec.lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="003-seed2: an older launcher is executing this run"):
            append_event(run_dir, "queued", 2)
    write_request(run_dir, read_request(run_dir))
    assert read_events(run_dir) == before and state_folder(run_dir) == old / ".state" / "003-seed2"
    (run_dir / "events.jsonl").write_text('{"state": "lost"}\n')  # nobody reads it any more
    append_event(run_dir, "queued", 2)
    assert read_events(run_dir)[:-1] == before and read_status(run_dir).attempt == 2
    assert sorted(path.name for path in (old / ".state").iterdir()) == ["003-seed2"]
