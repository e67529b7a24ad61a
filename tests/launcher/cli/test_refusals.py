"""What a command refuses, or says before anything is made: one clear error each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launcher.record.journal import create_run
from launcher.record.request import RunRequest
from tests.launcher.conftest import Lab, seeds, wait_for
from trainer.base.files import write_json


def test_variables_that_are_not_set_are_named_when_runs_start(lab: Lab) -> None:
    done = lab.launcher("submit", lab.job(seeds(1, "secrets: [NOT_SET_HERE]\n")), lab.machine())
    assert done.returncode == 0 and "note: job.yaml:3: secrets: NOT_SET_HERE is not set; export it" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "empty: the data folder (--data) has neither train.csv nor class folders in train/"),
        (["data.format=csv"], "empty: the data folder (--data) has no train.csv, which data.format=csv needs"),
        (["data.root=table", "data.format=imagefolder"], "table: the data folder (data.root) has no class folders"),
        (["data.root=classes", "data.format=csv"], "classes: the data folder (data.root) has no train.csv"),
        (["data.root=job.yaml"], "job.yaml: the data folder (data.root) is not a folder"),
        (["data.root=classes"], ""),
        (["data.root=table"], ""),
        (["data.root=plain", "data.format=imagefolder"], ""),
    ],
)
def test_a_folder_that_holds_no_training_data_is_refused_before_anything_is_made(
    lab: Lab, words: list[str], said: str
) -> None:
    for folder in ("empty/train/.hidden", "empty/test", "classes/train/a", "table", "plain/a"):
        (lab.root / folder).mkdir(parents=True)
    (lab.root / "table" / "train.csv").touch()
    (lab.root / "table" / "test").mkdir()
    done = lab.launcher("submit", lab.job(seeds(1)), *words, "--data", "empty", lab.machine())
    assert done.returncode == (65 if said else 0) and said in done.stderr, done.stderr
    assert lab.runs.exists() is (not said)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["submit", "job.yaml", "--data", "nowhere"], 65, "nowhere: the data folder (--data) does not exist"),
        (["submit", "job.yaml", "--set", "resources.gpus=3"], 64, "3 GPU requested"),
        (["submit", "job.yaml", "--set", "resources.cpus=4000"], 64, "4000 cores requested"),
        (["submit", "job.yaml", "--set", "resources.memory=9t"], 64, "9216 GiB requested"),
        (["submit", "job.yaml", "modle=resnet34"], 64, "the command line: modle=resnet34: unknown key"),
        (["submit", "job.yaml", "--gpus", "7"], 64, "has no GPU '7'"),
        (["submit", "job.yaml", "--runs", "/proc/runs"], 1, "/proc/runs: cannot be written to"),
        (["submit", "job.yaml", "--enigne", "native"], 64, "--engine"),
        (["submit"], 64, "Missing argument"),
        (["submti"], 64, "No such command 'submti'"),
        (["leaderboard"], 64, "Did you mean 'collect' (Write the leaderboard, keep the best model)?"),
        (["cancel"], 64, "Did you mean 'stop' ("),
        (["submit", "nosuch.yaml"], 64, "nosuch.yaml"),
        (["plan", "nosuch.yaml"], 64, "nosuch.yaml"),
        (["status", "nothing"], 64, "no submission"),
        (["logs", "nothing"], 64, "no submission"),
        (["status", "--runs", "data folder"], 1, "data folder: no submission yet"),  # by class, not by words
    ],
)
def test_a_wrong_call_is_one_clear_error_and_leaves_nothing(lab: Lab, words: list[str], code: int, said: str) -> None:
    lab.job(seeds(2))
    done = lab.launcher(*words)
    assert done.returncode == code, done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr
    assert not lab.runs.exists() or not list(lab.runs.iterdir())


@pytest.mark.parametrize("command", ["status", "logs", "stop", "resume", "collect", "attach", "replay", "exec"])
@pytest.mark.parametrize("name", ["nosuch", "job/nosuch", "nosuch/1"])
def test_a_name_of_nothing_is_one_message_and_a_wrong_call(lab: Lab, command: str, name: str) -> None:
    run_dir = lab.runs / "job-20261130-101500" / "001-seed0"
    create_run(run_dir, RunRequest("001-seed0", 1, "train", ["train"]))
    names: dict[str, Any] = {"engine": "native", "runs": ["001-seed0"], "steps": []}
    write_json(run_dir.parent / "submission.json", names)
    done = lab.launcher(command, name)
    assert done.returncode == 64 and not done.stdout, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: "), done.stderr
    assert "nosuch" in done.stderr


def test_plan_looks_for_the_submission_that_a_job_follows_as_submit_does(lab: Lab) -> None:
    job = lab.job("name: second\nfollows: frist\n" + seeds(1))
    none = lab.launcher("plan", job)
    assert none.returncode == 64 and "job.yaml:2: follows: " in none.stderr and "no submission yet" in none.stderr
    assert lab.launcher("submit", lab.job(seeds(1), "first.yaml"), lab.machine()).returncode == 0
    planned, submitted = lab.launcher("plan", job), lab.launcher("submit", job, lab.machine())
    assert planned.returncode == 64 and "no submission 'frist'; valid: first-" in planned.stderr
    assert planned.stderr == submitted.stderr
    assert lab.launcher("plan", job, "--set", "follows=first").returncode == 0


def test_data_below_a_folder_that_may_not_be_entered_are_said_to_be(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "closed" / "data" / "train" / "a").mkdir(parents=True)
    (tmp_path / "closed").chmod(0o000)
    become = "os.setgid(65534); os.setuid(65534)" if os.getuid() == 0 else "None"
    code = f"""
import os
from types import SimpleNamespace
from launcher.job import data_folder
{become}
run = SimpleNamespace(request=SimpleNamespace(kind="train", config={{"root": None, "format": "auto"}}))
try:
    data_folder.find_data("closed/data", [run])
except data_folder.DataFolderError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    (tmp_path / "closed").chmod(0o700)
    assert "closed/data: the data folder (--data) cannot be read (Permission denied: closed/data); " in done.stdout


def test_a_working_directory_that_was_deleted_takes_nothing_away(lab: Lab) -> None:
    """A long `submit` still ends with its results and its code."""
    gone, gate = lab.root / "gone", lab.root / "gate"
    lab.plan = {"*": {"until": str(gate)}}
    lab.job(seeds(1))
    (lab.root / "machine.yaml").write_text("{gpus: 0, cpus: 16, memory: 64g}")
    for words, code, expected in (
        ("submit ../job.yaml --machine ../machine.yaml --data ../data", 0, f"leaderboard: {lab.runs}/job-"),
        (
            f"submit model=resnet34 --data {lab.root}/data",
            1,
            "error: the working directory was deleted; change to a folder that exists: cd\n",
        ),
    ):
        gone.mkdir()
        arguments = {**lab.arguments(), "cwd": gone, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        waiting = "" if code == 0 else "while [ -d ../gone ]; do sleep 0.02; done; "
        command = [*"sh -c".split(), f"{waiting}exec {sys.executable} -m launcher {words}"]
        process = subprocess.Popen(command, **arguments)
        lab.processes.append(process)
        if code == 0:
            wait_for(lambda: lab.journal("begin"), "a run")
        gone.rmdir()
        gate.touch()
        said = process.communicate(timeout=60)[0]
        assert process.returncode == code and expected in said, said
