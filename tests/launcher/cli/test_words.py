"""What a new user reads: plurals, errors in our words, what is waited for, and what to type next."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from launcher.base.text import wrapped
from launcher.engines import choice, registry
from launcher.engines.base import UnofferedError, Want
from launcher.host.machine import Machine
from launcher.job import remarks, spec
from launcher.results import collect
from tests.launcher.conftest import Lab, seeds, wait_for
from tests.launcher.job.test_spec import expand, faults
from trainer.base.files import write_json
from trainer.base.plural import counted


def test_one_thing_is_not_several() -> None:
    words = [
        counted(*each) for each in ((1, "run"), (0, "run"), (2, "class"), (1.0, "core"), (1.5, "core"), (3, "entry"))
    ]
    assert words == ["1 run", "0 runs", "2 classes", "1 core", "1.5 cores", "3 entries"]
    assert Machine("here", 1, 2**30).describe() == "here: no GPU, 1 core, 1.0 GiB"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("retry: {attempts: 0}\n", "retry.attempts: must be at least 1, not 0"),
        ("retry: {attempts: many}\n", "retry.attempts: must be a whole number, not 'many'"),
        ("retry: 3\n", "retry: must be a mapping, not 3"),
        ("env: WANDB_MODE\n", "env: must be a list, not 'WANDB_MODE'"),
        ("resources: {share_gpu: 2}\n", "resources.share_gpu: must be true or false, not 2"),
        ("resources: {cpus: 5000}\n", "resources.cpus: must be at most 4096, or auto, not 5000"),
        ("follows: [a]\n", "follows: must be a text, not ['a']"),
        ("overrides: {training.lr: fast}\n", "training.lr=fast: must be a number"),
        ("overrides: {training.epochs: 1.5}\n", "training.epochs=1.5: must be a whole number"),
        ("overrides: {model.pretrained: maybe}\n", "model.pretrained=maybe: must be true or false"),
        ("overrides: {data.folds: x}\n", "data.folds=x: must be a whole number, or null"),
    ],
)
def test_errors_of_types_are_in_our_words(text: str, said: str) -> None:
    assert faults(text) == [f"job.yaml:1: {said}"]


def test_words_of_hydras_grammar_are_ours() -> None:
    assert faults("name: x\n", "data.root=a=b") == [
        "the command line: data.root=a=b: cannot be parsed: this value needs quotation marks, and the shell takes away the outer ones: \"data.root='a=b'\""
    ]
    assert expand("name: x\n", "data.root='a=b'")[0].request.config["root"] == "a=b"
    assert "a bracket, a comma or a quotation mark" in faults("name: x\n", "training.teachers=[a,,b]")[0]


def test_errors_of_one_configuration_come_at_once() -> None:
    text = (
        "overrides:\n  modle: x\n  training.epochs: many\n  training.lr: 1000\n  training.batch_size: 16\n  seed: -1\n"
    )
    assert [line.split("=")[0] for line in faults(text)] == [
        "job.yaml:2: modle", "job.yaml:3: training.epochs", "job.yaml:4: training.lr", "job.yaml:6: seed",
    ]  # fmt: skip
    (line,) = faults("overrides: {training.batch_size: many, training.micro_batch: 5}\n")
    assert "training.batch_size=many" in line, "micro_batch may fit"


def test_an_engine_that_was_just_refused_is_not_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(want: Want) -> None:
        raise UnofferedError("no Docker engine answers")

    monkeypatch.setattr(registry.engine("docker"), "offer", away)
    job = spec.Job(spec._validate(document := spec.parse_bytes(b"name: x\n", "job.yaml")), document)
    chosen = choice.choose("auto", Want(job))
    assert chosen.refused == ("no Docker engine answers",) and "no Docker engine answers" in chosen.said
    monkeypatch.setattr(remarks.os, "geteuid", lambda: 0)
    (advised,), (plain,) = remarks.as_root(False, bool(chosen.refused)), remarks.as_root(False)
    assert "--engine docker" not in advised and "launcher doctor" in advised and "--engine docker" in plain
    assert remarks.as_root(True) == []


def test_a_submission_in_the_background_says_how_to_follow_it(lab: Lab) -> None:
    done = lab.launcher("submit", lab.job(seeds(1)), lab.machine(), "--detach")
    name = lab.submission().name
    assert done.returncode == 0 and f"follow it: launcher attach {name} --runs runs" in done.stdout
    assert f"see its state: launcher status {name} --runs runs" in done.stdout and f"{name}: 1 run as" in done.stdout
    wait_for(lambda: lab.states() == {"resnet34": "succeeded"}, "the end")


def test_ctrl_c_says_at_once_what_it_waits_for_and_what_is_known(lab: Lab) -> None:
    lab.plan = {"*": {"seconds": 60, "saving": 1}}
    process = lab.start("submit", lab.job(seeds(1)), lab.machine())
    wait_for(lambda: lab.journal("begin") and lab.states() == {"resnet34": "running"}, "a run")
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    said = ""
    while "kills" not in said and (line := process.stdout.readline()):
        said += line
    assert "stopping 1 run: each saves its checkpoint first, for at most 30 s; Ctrl-C again kills them" in said
    assert lab.states() == {"resnet34": "running"}, "before it has ended"
    assert process.wait(60) == 130 and "no training run of this submission has succeeded" in process.stdout.read()


def test_no_line_is_wider_than_a_window(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "note: nothing runs, whatever may be said; continue with: launcher resume job; see: launcher status job"
    assert wrapped(text, "  ", 45).splitlines() == [
        "note: nothing runs, whatever may be said;",
        "  continue with: launcher resume job;",
        "  see: launcher status job",
    ]
    assert wrapped(text) == text and wrapped("x" * 200) == "x" * 200
    more = "resources: {shm: 1g, memory: 1g}\nsecrets: [WANDB_API_KEY, NOT_SET_HERE_AND_LONG]\n"
    job = lab.job("name: a-submission-of-a-long-name\n" + seeds(2, more), "a-job-file-of-a-long-name.yaml")
    said = lab.launcher("plan", job, lab.machine()).stdout.splitlines()[3:]
    said += lab.launcher("submit", job, lab.machine()).stdout.partition("rank")[0].splitlines()
    said += lab.launcher("submit", job, lab.machine(), "--fresh", "--detach").stdout.splitlines()
    said += lab.launcher("doctor").stdout.splitlines()
    wide = [line for line in said if len(line) > 120 and str(lab.root) not in line]
    assert not wide and len(said) > 20, wide


def test_stop_says_what_it_waits_for(lab: Lab) -> None:
    lab.plan = {"*": {"seconds": 60}}
    lab.launcher("submit", lab.job(seeds(1)), lab.machine(), "--detach")
    wait_for(lambda: lab.journal("begin") and lab.states() == {"resnet34": "running"}, "a run")
    done = lab.launcher("stop")
    assert done.stdout.startswith("stopping 1 run: each saves its checkpoint first, for at most 32 s\n"), done.stdout


def test_the_figure_of_a_stopped_run_is_the_one_that_status_shows(tmp_path: Path) -> None:
    run_dir = tmp_path / "job-1" / "001-a"
    run_dir.mkdir(parents=True)
    write_json(run_dir / "progress.json", {"epoch": 2, "epochs": 5, "step": 1, "steps": 9, "best_f1": 0.4006})
    row = {"run": "001-a", "kind": "train", "state": "cancelled"}
    assert collect._best_so_far(tmp_path / "job-1", [row]) == " (so far 001-a, cancelled, has val_f1 0.4006)"
    assert collect._best_so_far(tmp_path / "job-1", [{**row, "state": "succeeded"}]) == ""


def test_an_ensemble_that_asks_for_more_than_the_job_trains_is_noted() -> None:
    text = "matrix:\n  seed: [1, 2]\nafter:\n  - {name: vote, step: ensemble, from: {top: TOP}}\n"
    for top, said in ((2, False), (3, True)):
        document = spec.parse_bytes(text.replace("TOP", str(top)).encode(), "job.yaml")
        job = spec.Job(spec._validate(document), document)
        notes = remarks.before_start(job, expand(text.replace("TOP", str(top))), Machine("here", 4, 2**34))
        note = "note: job.yaml:4: after.0.from.top: 3, but the job trains 2 members"
        assert (note in notes) is said, notes
