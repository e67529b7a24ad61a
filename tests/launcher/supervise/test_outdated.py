"""Steps that were made without a run say so, and are made again when that run has succeeded later."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace

from launcher.engines.slurm.advance import _Advance
from launcher.job import steps
from launcher.record.find import find_run
from launcher.record.journal import append_event, create_run, read_events, read_status
from launcher.record.request import RunRequest, read_request
from tests.launcher.conftest import Lab, seeds

STEPS = """after:
  - {name: vote, step: ensemble, from: {top: 2}}
  - {name: sub, step: predict, needs: [vote]}
"""
SAID = "votes with 1 of 2: 002-seed1 failed"


def votes(lab: Lab) -> list[list[str]]:
    """The members of each ensemble that was made."""
    return [
        [Path(word).parent.name for word in event["argv"] if word.endswith("best.ckpt")]
        for event in lab.journal("begin")
        if event["argv"][0] == "ensemble"
    ]


def test_an_ensemble_with_fewer_members_says_so_and_is_made_again_with_all(lab: Lab) -> None:
    lab.plan = {"seed1": {"bad_attempts": 1}}
    done = lab.launcher("submit", lab.job(seeds(2, STEPS)), lab.machine())
    assert done.returncode == 1 and SAID in done.stdout and votes(lab) == [["001-seed0"]]
    vote = find_run(lab.runs, "vote")
    assert read_status(vote).reason == SAID == read_request(vote).remark
    assert f"--- note: {SAID}" in (vote / "log.txt").read_text()
    rows = list(csv.DictReader((lab.submission() / "leaderboard.csv").open()))
    assert [row["reason"] for row in rows if row["kind"] == "ensemble"] == [SAID]
    assert SAID in lab.launcher("status").stdout

    again = lab.launcher("resume", lab.machine())
    assert again.returncode == 0, again.stdout
    assert "003-vote" in again.stdout and "again: 002-seed1 has succeeded since" in again.stdout
    assert votes(lab)[1:] == [["001-seed0", "002-seed1"]]
    assert [event["run"] for event in lab.journal("begin")][-2:] == ["003-vote", "004-sub"], "in their order"
    assert set(lab.states().values()) == {"succeeded"} and read_status(vote).reason == ""
    assert "votes with" not in lab.launcher("status").stdout
    assert lab.launcher("replay").returncode == 0
    assert "all 4 runs are finished" in lab.launcher("resume", lab.machine()).stdout


def test_a_step_that_is_out_of_date_is_shown_and_made_by_the_next_resume(lab: Lab) -> None:
    lab.plan = {"seed1": {"bad_attempts": 1}}
    lab.launcher("submit", lab.job(seeds(2, STEPS)), lab.machine())
    assert lab.launcher("resume", f"{lab.submission().name}/002-seed1", lab.machine()).returncode == 0
    assert len(votes(lab)) == 1
    seen = lab.launcher("status", "--json").stdout
    assert f"out of date: 002-seed1 has succeeded since; launcher resume {lab.submission().name}" in seen
    assert "out of date: 003-vote is made again" in seen
    done = lab.launcher("resume", lab.machine())
    assert done.returncode == 0 and "2 runs queued again: 003-vote, 004-sub" in done.stdout
    assert votes(lab)[1:] == [["001-seed0", "002-seed1"]]


def test_a_late_run_that_is_no_member_changes_no_step(lab: Lab) -> None:
    lab.plan = {"seed0": {"f1": 0.9}, "seed1": {"bad_attempts": 1, "f1": 0.1}}
    more = "after: [{name: best, step: predict, from: {top: 1}}]\n"
    lab.launcher("submit", lab.job(seeds(2, more)), lab.machine())
    assert lab.status("best").reason == "takes the best of 1 of 2 runs: 002-seed1 failed"
    assert lab.launcher("resume", lab.machine()).returncode == 0
    assert len([event for event in lab.journal("begin") if event["argv"][0] == "predict"]) == 1


def submission_of(root: Path, late: str) -> Path:
    """A submission whose ensemble was made without run `b`, which is now in the state `late`."""
    submission = root / "runs" / "job-1"
    for index, name in enumerate(("a", "b", "vote"), start=1):
        kind = "ensemble" if name == "vote" else "train"
        more = {"needs": ["001-a", "002-b"], "select": {"top": 2}} if name == "vote" else {}
        create_run(submission / f"{index:03d}-{name}", RunRequest(f"{index:03d}-{name}", index, kind, [], **more))  # type: ignore[arg-type]
    for name, end in (("001-a", "succeeded"), ("002-b", "failed")):
        for state in ("starting", "running", end):
            append_event(submission / name, state)  # type: ignore[arg-type]
    from launcher.record.request import write_request

    write_request(submission / "003-vote", steps.with_members(read_request(submission / "003-vote"), submission))
    for state in ("starting", "running", "succeeded"):
        append_event(submission / "003-vote", state)  # type: ignore[arg-type]
    if late != "failed":
        append_event(submission / "002-b", "queued", 2)
        for state in ("starting", "running", late)[: 1 if late == "running" else 3]:
            append_event(submission / "002-b", state)  # type: ignore[arg-type]
    return submission


def test_slurm_queues_an_outdated_step_again(tmp_path: Path) -> None:
    for late, queued in (("failed", False), ("running", False), ("succeeded", True)):
        submission = submission_of(tmp_path / late, late)
        paths = sorted(path for path in submission.glob("0*"))
        look = SimpleNamespace(
            directory=submission,
            requests={path.name: read_request(path) for path in paths},
            states={path.name: read_status(path) for path in paths},
            lease=SimpleNamespace(fence=1),
            say=lambda line: None,
        )
        look._append = lambda *words, look=look, **more: _Advance._append(look, *words, **more)
        _Advance.redo_outdated(look)  # type: ignore[arg-type]
        events = read_events(submission / "003-vote")
        assert (events[-1]["state"] == "queued") is queued, late
        assert not queued or events[-1]["reason"] == "again: 002-b has succeeded since"
