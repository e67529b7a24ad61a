"""The outcome of an attempt: an exit code alone is not believed."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.engines.outcome import RESULTS, verdict
from launcher.record.find import list_runs
from launcher.record.request import Kind, RunRequest
from tests.launcher.conftest import Lab

GOOD = {"metrics.json": '{"val_f1": 0.5}'}


def judged(run_dir: Path, kind: Kind = "train", asked: bool = False, timed_out: bool = False) -> tuple[str, str]:
    return verdict(0, asked, timed_out, RunRequest("001-a", 1, kind, [], timeout=5.0), "", run_dir)


@pytest.mark.parametrize("kind", ["train", "ensemble", "predict", "analyze"])
def test_a_run_has_succeeded_only_with_every_result_of_its_kind(tmp_path: Path, kind: Kind) -> None:
    for name in RESULTS[kind]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(GOOD.get(name, "content"))
    assert judged(tmp_path, kind) == ("succeeded", "")
    for name in RESULTS[kind]:
        path = tmp_path / name
        whole = path.read_text()
        path.unlink()
        for make in (lambda: None, path.touch, lambda: path.symlink_to("/etc/passwd"), path.mkdir):  # noqa: B023
            make()
            assert judged(tmp_path, kind) == ("failed", f"ended with exit code 0, but left no {name}")
            path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        path.write_text(whole)
    assert judged(tmp_path, kind) == ("succeeded", "")


@pytest.mark.parametrize("text", ["{", "[]", "null", "{}", '{"val_f1": "high"}', '{"val_f1": NaN}', "\x00"])
def test_broken_metrics_are_no_result(tmp_path: Path, text: str) -> None:
    (tmp_path / "best.ckpt").write_text("weights")
    (tmp_path / "metrics.json").write_text(text)
    state, reason = judged(tmp_path)
    assert state == "failed" and "metrics.json" in reason


def test_a_run_that_was_told_to_end_and_left_nothing_has_not_failed(tmp_path: Path) -> None:
    assert judged(tmp_path, asked=True)[0] == "cancelled" and judged(tmp_path, timed_out=True)[0] == "timed_out"


def test_a_native_run_that_did_nothing_has_failed(lab: Lab) -> None:
    lab.plan = {
        "seed0": {"leaves": {"metrics.json": None, "best.ckpt": None}},
        "vote": {"leaves": {"ensemble.json": ""}},
    }
    text = (
        "matrix: {seed: [0, 1]}\noverrides: {model: resnet34}\nafter: [{name: vote, step: ensemble, from: {top: 1}}]\n"
    )
    done = lab.launcher("submit", lab.job(text), "--engine", "native", lab.machine())
    assert done.returncode == 1 and lab.states() == {"seed0": "failed", "seed1": "succeeded", "vote": "failed"}
    assert lab.status("1").reason.startswith("ended with exit code 0, but left no metrics.json and no best.ckpt")
    assert "left no ensemble.json" in lab.status("3").reason and "not succeeded: 001-seed0, 003-vote" in done.stdout


def test_the_result_of_an_earlier_attempt_is_none_of_a_later_one(lab: Lab) -> None:
    lab.plan = {"*": {"exit": 1}}
    job = lab.job("matrix: {seed: [0]}\noverrides: {model: resnet34}\n")
    done = lab.launcher("submit", job, "--engine", "native", lab.machine())
    assert done.returncode == 1, done.stderr
    run_dir = list_runs(lab.submission())[0]
    (run_dir / "metrics.json").write_text('{"val_f1": 0.9}')
    (run_dir / "best.ckpt").write_text("of the first attempt")
    lab.plan = {"*": {"idle": True}}
    assert lab.launcher("resume", lab.machine()).returncode == 1
    assert lab.status("1").reason.startswith("ended with exit code 0, but left no metrics.json")
    assert (run_dir / "best.ckpt").exists()
