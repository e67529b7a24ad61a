"""All errors of one command come in one list, sorted, with their places: from the job file, the engine, files and data."""

from __future__ import annotations

import json

import pytest

from launcher.base.errors import DataFolderError, Errors, JobError, RefusedError, RunError
from launcher.record.find import list_runs
from launcher.record.journal import read_events
from tests.launcher.conftest import Lab, seeds

JOB = """matrix:
  model: [resnet43, resnet34]
overrides:
  model.weights: nope.safetensors
  training.lr: 1000
resources:
  cpus: 4000
retry: {attempts: 0}
after:
  - {name: vote, step: ensemble, from: {submission: nothing, top: 2}}
  - {name: sub, step: predict, needs: [voet]}
"""


def test_independent_errors_of_a_submit_come_at_once_and_sorted(lab: Lab) -> None:
    done = lab.launcher("submit", lab.job(JOB), "seed=-1", "--data", "nowhere", "--engine", "native")
    places = [line.removeprefix("error: ").split("=")[0].split(": must")[0] for line in done.stderr.splitlines()]
    assert done.returncode == 64 and places[:6] == [
        "the command line: seed",
        "job.yaml:2: model",
        "job.yaml:4: model.weights",
        "job.yaml:5: training.lr",
        "job.yaml:7: resources.cpus: " + places[4].partition("cpus: ")[2],
        "job.yaml:8: retry.attempts",
    ], done.stderr
    assert "4000 cores requested" in places[4] and "job.yaml:10: after.0.from: " in places[6]
    assert "job.yaml:11: after.1.needs: no step 'voet'" in places[7] and len(places) == 10, done.stderr
    assert "nowhere: the data folder (--data) does not exist" in done.stderr


def test_every_resource_that_a_machine_lacks_is_named(lab: Lab) -> None:
    job = lab.job("resources:\n  gpus: 2\n  cpus: 400\n  memory: 900g\n" + seeds(1))
    done = lab.launcher("submit", job, lab.machine())
    assert [line.split(": machine: ")[0] for line in done.stderr.splitlines()[:3]] == [
        "error: job.yaml:2: resources.gpus", "job.yaml:3: resources.cpus", "job.yaml:4: resources.memory",
    ]  # fmt: skip
    runs = json.loads(lab.launcher("plan", job, lab.machine(), "--json").stdout)["runs"]
    assert all(what in runs[0]["why_not"] for what in ("2 GPU requested", "400 cores requested", "900 GiB requested"))


def test_data_are_looked_at_beside_errors_of_the_job(lab: Lab) -> None:
    answer = {"errors": ["train.csv:3: train/b.png: the file is missing"], "configurations": [], "test": []}
    lab.environment |= {"FAKE_CHECK": json.dumps(answer), "FAKE_NO_HUB": "the hub is away"}
    job = lab.job(seeds(2, "resources: {cpus: 4000}\nafter:\n  - {name: v, step: ensemble, from: {runs: [x]}}\n"))
    done = lab.launcher("submit", job, "--engine", "native")
    lines = done.stderr.splitlines()
    assert done.returncode == 64 and len(lines) == 5, done.stderr
    assert lines[0].startswith("error: job.yaml:3: resources.cpus: ") and "after.0.from.runs" in lines[1]
    assert "request less" in lines[2] and lines[3] == answer["errors"][0] and "the hub is away" in lines[4]
    planned = lab.launcher("plan", job, "--data", "data")
    assert planned.returncode == 64 and "after.0.from.runs" in planned.stderr and lines[3] in planned.stderr


def test_a_job_without_a_valid_part_is_refused_with_its_data_folder(lab: Lab) -> None:
    done = lab.launcher("submit", lab.job("matrix: 3\n"), "--data", "nowhere")
    first, second = done.stderr.splitlines()
    assert done.returncode == 64 and first.startswith("error: job.yaml:1: matrix") and second.startswith("nowhere: ")


def test_resume_says_the_same_before_it_changes_anything(lab: Lab) -> None:
    lab.plan = {"*": {"bad_attempts": 1}}
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    weights = lab.root / "w.safetensors"
    weights.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    job = lab.job(seeds(2), "job.yaml")
    assert lab.launcher("submit", job, "model.weights=w.safetensors", lab.machine()).returncode == 1
    before = [len(read_events(path)) for path in list_runs(lab.submission())]
    weights.write_bytes(weights.read_bytes()[:-1])
    errors = ["training.batch_size=16: 9 training images are fewer than one batch"]
    answer = {"errors": [], "configurations": [{"errors": errors, "notes": []}], "test": []}
    lab.environment["FAKE_CHECK"] = json.dumps(answer)
    for words in ((), ("--detach",)):
        done = lab.launcher("resume", lab.machine(), *words)
        assert done.returncode == 65 and "model.weights=w.safetensors: is truncated: 65 of 66 bytes" in done.stderr
        assert f"001-seed0: {errors[0]}" in done.stderr and done.stderr.count("is truncated") == 1
    assert [len(read_events(path)) for path in list_runs(lab.submission())] == before
    del lab.environment["FAKE_CHECK"]
    weights.write_bytes(weights.read_bytes() + b"\0")
    assert lab.launcher("resume", lab.machine()).returncode == 0


@pytest.mark.parametrize(
    ("errors", "kind", "code", "lines"),
    [
        ([RunError("a")], RunError, 1, ["a"]),
        ([RunError("a"), DataFolderError("b")], RefusedError, 65, ["a", "b"]),
        (
            [DataFolderError("train.csv:1: x"), JobError("j.yaml:9: y\nj.yaml:2: z"), RunError("the command line: w")],
            JobError,
            64,
            ["the command line: w", "j.yaml:2: z", "j.yaml:9: y", "train.csv:1: x"],
        ),
        ([JobError("j.yaml:2: z"), JobError("j.yaml:2: z\nmore")], JobError, 64, ["j.yaml:2: z", "more"]),
    ],
)
def test_the_gravest_error_gives_the_exit_code(
    errors: list[RunError], kind: type[Exception], code: int, lines: list[str]
) -> None:
    collected = Errors()
    collected.add(*errors)
    with pytest.raises(kind) as raised:
        collected.raise_all()
    assert raised.value.exit_code == code and str(raised.value).splitlines() == lines  # type: ignore[attr-defined]
