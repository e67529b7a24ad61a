"""What `prune` offers to free, and what it leaves."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from launcher.engines.docker import leftovers
from launcher.record.journal import append_event, create_run
from launcher.record.request import RunRequest
from tests.launcher.conftest import LABEL, Lab, seeds


def test_what_killed_submits_left_half_made_goes_once_it_is_old(lab: Lab) -> None:
    assert lab.launcher("submit", lab.job(seeds(1)), lab.machine()).returncode == 0
    two_hours_ago = time.time() - 7200
    for name in ("old", "young"):
        (lab.runs / f".new-{name}" / "001-x").mkdir(parents=True)
        (lab.runs / f".new-{name}" / "001-x" / "run.json").write_bytes(b"x" * 1000)
    os.utime(lab.runs / ".new-old", (two_hours_ago, two_hours_ago))
    shown = json.loads(lab.launcher("prune", "--json").stdout)["found"]
    assert shown == [{"what": ".new-old", "bytes": 1000, "why": "its submit was killed"}]
    assert lab.launcher("prune", "--yes").returncode == 0
    assert not (lab.runs / ".new-old").exists() and (lab.runs / ".new-young" / "001-x").is_dir()
    assert lab.states() == {"resnet34": "succeeded"}


def test_prune_goes_on_past_runs_that_it_may_not_look_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And settles none of another user's; a container that runs without its directory is named, not removed."""
    run_dir = tmp_path / "s" / "001-x"
    run_dir.parent.mkdir()
    create_run(run_dir, RunRequest("001-x", 1, "train", command=["train"]))
    append_event(run_dir, "starting", 1)
    where = {"closed": "/" + "x" * 300, "here": str(run_dir), "away": "/gone/001-x", "over": "/gone/002-x"}
    made = [
        SimpleNamespace(
            name=name, id=name, status="exited" if name == "over" else "running",
            labels={LABEL: path, "document-classifier.attempt": "1"},
        )
        for name, path in where.items()
    ]  # fmt: skip
    client = SimpleNamespace(containers=SimpleNamespace(list=lambda **how: made))
    settled: list[Path] = []
    monkeypatch.setattr(leftovers.registry, "settle", settled.append)
    for user, expected in ((run_dir.stat().st_uid + 1, []), (run_dir.stat().st_uid, [run_dir]), (0, [run_dir])):
        settled.clear()
        monkeypatch.setattr(leftovers.os, "getuid", lambda user=user: user)
        remarks: list[str] = []
        assert [waste.what for waste in leftovers.leftovers(client, remarks)] == ["container over"]  # type: ignore[arg-type]
        assert settled == expected
        assert len(remarks) == 2 and "container closed stays" in remarks[0] and "docker rm -f away" in remarks[1]


def test_an_empty_folder_that_a_killed_submit_reserved_goes(lab: Lab) -> None:
    for name in ("job-20261130-101500", "job-20261130-101500-2", "notes", "full-20261130-101500"):
        (lab.runs / name).mkdir(parents=True)
        if name.startswith("full"):
            (lab.runs / name / "mine.txt").write_text("x")
        os.utime(lab.runs / name, (time.time() - 7200,) * 2)
    (lab.runs / "young-20261130-101500").mkdir()
    found = json.loads(lab.launcher("prune", "--json").stdout)["found"]
    assert [item["what"] for item in found] == ["job-20261130-101500", "job-20261130-101500-2"]
    assert lab.launcher("prune", "--yes").returncode == 0
    assert sorted(path.name for path in lab.runs.glob("[!.]*")) == [
        "full-20261130-101500",
        "notes",
        "young-20261130-101500",
    ]
