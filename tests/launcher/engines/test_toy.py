"""A new engine is a folder and a line in the registry: `toy/` beside this file has both."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest

from launcher.record.find import list_runs
from launcher.record.journal import read_events
from tests.launcher.conftest import FAKE, REPOSITORY, Lab

TOY = Path(__file__).parent / "toy"
JOB = """\
name: playing
matrix: {seed: [1, 2]}
overrides: {model: resnet34}
toy:
  colour: blue
after:
  - {name: vote, step: ensemble, from: {top: 2}, args: {method: soft_voting}}
"""


@pytest.fixture
def playroom(lab: Lab) -> Lab:
    """A lab whose launcher has the toy engine."""
    lab.environment = {"PYTHONPATH": os.pathsep.join(map(str, (TOY, FAKE, REPOSITORY)))}
    return lab


def test_an_engine_of_a_folder_and_a_line_runs_a_job_to_its_leaderboard(playroom: Lab) -> None:
    playroom.plan = {"seed2": {"f1": 0.9}}
    done = playroom.launcher("submit", playroom.job(JOB), "--engine", "toy", playroom.machine())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 runs as toys, on" in done.stdout
    directory = playroom.submission()
    with (directory / "leaderboard.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted((row["kind"], row["state"]) for row in rows) == [
        ("ensemble", "succeeded"), ("train", "succeeded"), ("train", "succeeded"),
    ]  # fmt: skip
    assert rows[0]["run"] == "002-seed2", "the best is on top"
    assert json.loads((directory / "submission.json").read_text())["toy"] == {"colour": "blue"}
    assert {event["env"]["TOKEN"] for event in playroom.journal("begin")} == {"blue"}, "its section came to the runs"
    for run_dir in list_runs(directory):
        assert {event.get("engine") for event in read_events(run_dir)[1:]} == {"toy"}
    assert "succeeded" in playroom.launcher("status").stdout
    again = playroom.launcher("resume", playroom.machine())
    assert again.returncode == 0 and "all 3 runs are finished" in again.stdout


def test_a_run_that_fails_on_it_fails_the_submission(playroom: Lab) -> None:
    playroom.plan = {"seed1": {"exit": 3}}
    done = playroom.launcher("submit", playroom.job(JOB), "--engine", "toy", playroom.machine())
    assert done.returncode == 1 and playroom.states()["seed1"] == "failed"


def test_a_fault_in_its_section_has_its_place(playroom: Lab) -> None:
    job = playroom.job(JOB.replace("blue", "plaid").replace("seed:", "sead:"))
    wrong = playroom.launcher("submit", job, "--engine", "toy")
    assert wrong.returncode == 64 and not playroom.runs.exists()
    assert "job.yaml:5: toy.colour: nobody sells plaid; say red or blue" in wrong.stderr
    assert "job.yaml:2:" in wrong.stderr, "with all other faults"
    misspelt = playroom.launcher("plan", playroom.job(JOB.replace("colour", "color")))
    assert misspelt.returncode == 64
    assert "job.yaml:5: toy.color: unknown field; did you mean 'colour'?" in misspelt.stderr


def test_a_field_of_its_section_is_an_option_of_submit(playroom: Lab) -> None:
    assert "--colour" in playroom.launcher("submit", "--help").stdout
    refused = playroom.launcher("submit", playroom.job(JOB), "--engine", "native", "--colour", "red")
    assert refused.returncode == 64 and "--colour needs --engine toy" in refused.stderr
    done = playroom.launcher("submit", "seed=1", "--engine", "toy", "--colour", "green", playroom.machine())
    assert done.returncode == 0, done.stderr
    assert [event["env"]["TOKEN"] for event in playroom.journal("begin")] == ["green"]


def test_doctor_has_its_checks(playroom: Lab) -> None:
    found = json.loads(playroom.launcher("doctor", "--json").stdout)
    assert {"what": "toy box", "level": "ok", "said": "is open", "mend": ""} in found


def test_without_the_line_there_is_no_such_engine(lab: Lab) -> None:
    unknown = lab.launcher("submit", lab.job("name: x\n"), "--engine", "toy")
    assert unknown.returncode == 64 and "'toy' is not one of" in unknown.stderr
    section = lab.launcher("plan", lab.job(JOB))
    assert section.returncode == 64 and "job.yaml:4: toy: unknown field" in section.stderr
