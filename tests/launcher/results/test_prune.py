"""What `prune` offers to free, and what it leaves."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from launcher.base.errors import RunError
from launcher.engines import registry
from launcher.engines.base import Choice
from launcher.engines.docker import leftovers
from launcher.host.machine import Machine
from launcher.job import expansion, spec
from launcher.record.find import list_runs
from launcher.record.journal import append_event, create_run
from launcher.record.request import RunRequest
from launcher.results import prune
from launcher.supervise import submission
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


def test_a_jump_of_the_clock_takes_no_submission_away_that_is_being_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, flush = time.time, submission.folders.flush
    seen: list[tuple[list[str], list[str]]] = []

    def prune_now(folder: Path) -> None:
        monkeypatch.setattr(prune.time, "time", lambda: now() + 7200)
        remarks: list[str] = []
        waste = prune._half_made(tmp_path, remarks)
        seen.append(([each.what for each in waste], prune.free_all(waste) + remarks))
        flush(folder)

    monkeypatch.setattr(submission.folders, "flush", prune_now)
    machine = Machine("host", 4, 2**33)
    requests = [each.request for each in expansion.expand(spec.from_overrides(["seed=1,2"]), machine)]
    chosen = Choice(registry.engine("native"), machine, "")
    created = submission.create(spec.from_overrides(["seed=1,2"]), requests, {}, tmp_path, None, chosen)
    assert len(list_runs(created)) == 2 and (created / "submission.json").is_file()
    assert seen == [([], ["a submission is being created: what a killed submit has left is not looked for now"])]
    (tmp_path / ".new-killed").mkdir()
    assert [each.what for each in prune._half_made(tmp_path, [])] == [".new-killed"], "nobody creates one now"


def test_prune_says_whose_records_it_may_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_run(tmp_path / "job" / "001-x", RunRequest("001-x", 1, "train", ["train"]))
    (tmp_path / "job" / "submission.json").write_text("{}")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != ".state")
    remarks: list[str] = []
    assert prune._checkpoints(tmp_path, remarks) == []
    assert len(remarks) == 1 and remarks[0].startswith("job was not checked completely: job: you (")


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


@pytest.mark.parametrize("failing", ["_reserve", "find_submission"])
def test_a_submission_that_cannot_be_created_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def fail(*given: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "x"))

    job = spec.from_overrides(["seed=1"], ["follows=other"])
    monkeypatch.setattr(submission, "find_submission", lambda *given: tmp_path / "other")
    monkeypatch.setattr(submission, failing, fail)
    chosen = Choice(registry.engine("native"), Machine("host", 4, 2**33), "")
    with pytest.raises(RunError, match="the submission cannot be written: No space left on device"):
        submission.create(job, [], {}, tmp_path, None, chosen)
    assert [path.name for path in tmp_path.iterdir()] == [".state"]


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
