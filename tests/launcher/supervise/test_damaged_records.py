"""Runs whose records are damaged, missing or unreadable while others are worked on: by the commands themselves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.launcher.conftest import Lab, pipe, seeds, wait_for


def test_a_live_run_is_shown_and_stopped_without_its_directory(lab: Lab) -> None:
    lab.plan = {"*": {"seconds": 300}}
    process = lab.start("submit", lab.job(seeds(2)), lab.machine())
    wait_for(lambda: len(lab.journal("begin")) == 2 and set(lab.states().values()) == {"running"}, "both runs")
    shutil.rmtree(lab.submission() / "001-seed0")
    seen = json.loads(lab.launcher("status", "--json").stdout)
    assert [row["state"] for row in seen["runs"]] == ["running"] * 2
    assert "directory is gone" in seen["runs"][0]["reason"]
    process.kill()
    process.wait()
    assert json.loads(lab.launcher("status", "--json").stdout)["state"] == "unattended"
    stopped = lab.launcher("stop", "--now")
    assert stopped.returncode == 0 and "stopped: 001-seed0, 002-seed1" in stopped.stdout, stopped.stderr
    assert lab.launcher("attach").returncode == 130, "it was stopped; in no case 0"


def test_a_resume_works_on_the_others(lab: Lab) -> None:
    lab.plan = {"*": {"bad_attempts": 1, "bad_exit": 3}, "vote": {"bad_attempts": 0}}
    more = "after: [{name: vote, step: ensemble, from: {top: 3}}]\n"
    assert lab.launcher("submit", lab.job(seeds(4, more)), lab.machine()).returncode == 1
    submission = lab.submission()
    pipe(submission / ".state" / "001-seed0" / "events.jsonl")
    request = submission / ".state" / "002-seed1" / "run.json"
    request.write_text(request.read_text().replace('"needs": []', '"needs": 7'))
    with (submission / ".state" / "003-seed2" / "events.jsonl").open("a") as journal:
        journal.write('{"state": "queued", "attempt": 2, "time": 1, "devices": 7}\n')
    done = lab.launcher("resume", lab.machine())
    assert done.returncode == 1 and "Traceback" not in done.stderr and "error" not in done.stderr, done.stderr
    assert list(lab.states().values()) == ["unknown", "failed", "unknown", "succeeded", "succeeded"], done.stdout
    for name, file in (("001-seed0", "events.jsonl"), ("002-seed1", "run.json"), ("003-seed2", "events.jsonl: line 5")):
        said = [line for line in done.stdout.splitlines() if f"{name}/{file}" in line and line[2:3] == ":"]
        assert len(said) == 1, done.stdout
    assert lab.launcher("resume", "001-seed0", lab.machine()).returncode == 1


def test_a_queued_run_whose_request_cannot_be_used_has_failed(lab: Lab) -> None:
    lab.plan = {"*": {"until": str(lab.root / "gate")}}
    process = lab.start("submit", lab.job(seeds(2, "max_parallel: 1\n")), lab.machine())
    wait_for(lambda: lab.journal("begin"), "the first run")
    process.kill()
    process.wait()
    (lab.submission() / ".state" / "002-seed1" / "run.json").write_text("[]")
    assert json.loads(lab.launcher("status", "--json").stdout)["runs"][1]["state"] == "unknown"
    (lab.root / "gate").touch()
    done = lab.launcher("resume", lab.machine())
    assert done.returncode == 1 and lab.states() == {"seed0": "succeeded", "seed1": "failed"}, done.stdout + done.stderr
    assert "002-seed1/run.json: not a request of this launcher: it is no mapping" in lab.status("2").reason


def test_a_run_of_unknown_state_that_lives_is_stopped(lab: Lab) -> None:
    lab.plan = {"*": {"seconds": 300}}
    process = lab.start("submit", lab.job(seeds(1)), lab.machine())
    wait_for(lambda: lab.journal("begin") and lab.status("1").state == "running", "a run")
    process.kill()
    process.wait()
    pipe(lab.submission() / ".state" / "001-resnet34" / "events.jsonl")
    done = lab.launcher("stop", "--now")
    assert done.returncode == 0 and "stopped: 001-resnet34" in done.stdout, done.stdout + done.stderr
    assert lab.journal("stopped") or not Path(f"/proc/{lab.journal('begin')[0]['pid']}").exists()


@pytest.mark.parametrize("what", ["its directory and records", "the whole submission"])
def test_the_end_of_submit_survives_what_is_removed_meanwhile(lab: Lab, what: str) -> None:
    lab.plan = {"*": {"until": str(lab.root / "gate")}}
    process = lab.start("submit", lab.job(seeds(1)), lab.machine())
    wait_for(lambda: lab.journal("begin") and lab.status("1").state == "running", "a run")
    submission = lab.submission()
    removed = [submission] if what == "the whole submission" else [submission / "001-resnet34", submission / ".state"]
    for path in removed:  # at once: its launcher writes into it
        shutil.rmtree(path.rename(lab.root / "removed"))
    (lab.root / "gate").touch()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in output and "unexpected" not in output, output
    assert "not succeeded: 001-resnet34" in output or what == "the whole submission", output
