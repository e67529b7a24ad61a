"""Leaderboard and champion."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from launcher.record.journal import append_event, create_run
from launcher.record.request import RunRequest
from launcher.record.states import State
from launcher.results import collect
from trainer.base.files import write_json


def submission(root: Path, name: str, results: dict[str, float | State], fingerprint: str = "s") -> Path:
    """A submission whose runs have ended: a figure is the F1 of one that succeeded, a word the state of another."""
    for index, (run, result) in enumerate(results.items(), start=1):
        run_dir = root / name / f"{index:03d}-{run}"
        kind = "ensemble" if run == "vote" else "train"
        create_run(run_dir, RunRequest(run_dir.name, index, kind, [kind], config={"model": run, "img_size": 64}))  # type: ignore[arg-type]
        append_event(run_dir, "starting")
        append_event(run_dir, "running")
        append_event(run_dir, "succeeded" if isinstance(result, float) else result)
        if isinstance(result, float):
            (run_dir / "best.ckpt").write_text(f"{name}/{run}")
            figures = {
                "val_f1": result,
                "val_accuracy": result,
                "seconds": 60,
                "split_fingerprint": fingerprint,
                "epochs": 3,
            }
            members = (
                {"members": [{"checkpoint": "../001-a/best.ckpt"}], "method": "soft_voting"}
                if kind == "ensemble"
                else {}
            )
            write_json(run_dir / "metrics.json", {**figures, **members})
    write_json(root / name / "submission.json", {"name": name})
    return root / name


def test_the_best_stands_on_top_and_what_failed_at_the_end(tmp_path: Path) -> None:
    directory = submission(tmp_path, "one", {"a": 0.5, "b": "failed", "c": 0.9, "vote": 0.95})
    rows, _ = collect.collect(directory)
    assert [(row["rank"], row["run"]) for row in rows] == [(1, "004-vote"), (2, "003-c"), (3, "001-a"), ("", "002-b")]
    header, *lines = (directory / "leaderboard.csv").read_text().splitlines()
    assert header.split(",") == list(collect.columns()) and len(lines) == 4
    assert (
        (rows[0]["members"], rows[0]["voters"]) == ("001-a", 1)
        and rows[1]["checkpoint"] == "003-c/best.ckpt"
        and rows[1]["minutes"] == 1
    )


def champion(root: Path) -> tuple[str, float]:
    info = json.loads((root / "champion" / "champion_info.json").read_text())
    assert (root / "champion" / "best_model.ckpt").read_text() == info["run"].replace("001-", "").replace("002-", "")
    return info["run"], info["val_f1"]


def test_the_champion_is_the_best_single_model_on_the_same_split(tmp_path: Path) -> None:
    _, line = collect.collect(submission(tmp_path, "one", {"a": 0.5, "vote": 0.99}))
    assert champion(tmp_path) == ("one/001-a", 0.5) and line.startswith("champion: one/001-a")
    _, line = collect.collect(submission(tmp_path, "worse", {"a": 0.4}))
    assert champion(tmp_path) == ("one/001-a", 0.5) and "stays one/001-a" in line
    collect.collect(submission(tmp_path, "better", {"a": 0.6}))
    assert champion(tmp_path) == ("better/001-a", 0.6)
    other = submission(tmp_path, "other", {"a": 0.9}, fingerprint="t")
    _, line = collect.collect(other)
    assert champion(tmp_path) == ("better/001-a", 0.6) and "another split" in line and "--replace" in line
    collect.collect(other, replace=True)
    assert champion(tmp_path) == ("other/001-a", 0.9)


def test_what_an_analysis_left_is_its_report(tmp_path: Path) -> None:
    directory = tmp_path / "one"
    run_dir = directory / "001-look"
    create_run(run_dir, RunRequest(run_dir.name, 1, "analyze", ["analyze"]))
    for state in ("starting", "running", "succeeded"):
        append_event(run_dir, state)
    (run_dir / "analysis_results").mkdir()
    (run_dir / "analysis_results" / "report.html").write_text("")
    places = dict(collect.places(directory)[0])
    assert places["analyze"].endswith("one/001-look/analysis_results/report.html")


def test_without_a_success_there_is_no_champion(tmp_path: Path) -> None:
    rows, line = collect.collect(submission(tmp_path, "one", {"a": "lost"}))
    assert line.startswith(
        "no training run of this submission has succeeded. No champion yet. The best single training run"
    )
    assert line.endswith("(or run: launcher collect).")
    assert rows[0]["state"] == "lost" and not (tmp_path / "champion").exists()


def test_a_submission_without_a_success_leaves_the_champion_and_says_which(tmp_path: Path) -> None:
    collect.collect(submission(tmp_path, "one", {"a": 0.5}))
    _, line = collect.collect(submission(tmp_path, "two", {"a": "failed"}))
    assert line == ("no training run of this submission has succeeded; the champion stays one/001-a (val_f1 0.5000)")
    assert champion(tmp_path) == ("one/001-a", 0.5)


def test_a_submission_that_trains_nothing_has_not_failed(tmp_path: Path) -> None:
    run_dir = tmp_path / "one" / "001-vote"
    create_run(run_dir, RunRequest(run_dir.name, 1, "ensemble", ["ensemble"]))
    for state in ("starting", "running", "succeeded"):
        append_event(run_dir, state)
    _, line = collect.collect(run_dir.parent)
    assert line.startswith("the champion is one training run, and this submission has none. No champion yet")


def test_collects_at_the_same_time_leave_the_best(tmp_path: Path) -> None:
    directories = [submission(tmp_path, f"s{n}", {"a": 0.1 * n}) for n in range(1, 9)]
    threads = [threading.Thread(target=collect.collect, args=(directory,)) for directory in directories]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert champion(tmp_path) == ("s8/001-a", pytest.approx(0.8))


def test_figures_that_are_no_finite_numbers_count_for_nothing(tmp_path: Path) -> None:
    """An image may hold any trainer."""
    directory = submission(tmp_path, "first", {"a": 0.8, "b": 0.9})
    for run, more in (
        ("001-a", {"val_loss": float("inf"), "val_accuracy": "0.9", "monitor": {}}),
        ("002-b", {"val_f1": float("nan"), "val_f1_mean": [1], "monitor": 5}),
    ):
        path = directory / run / "metrics.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | more))
    rows, line = collect.collect(directory)
    assert [(row["run"], row["rank"], row["val_accuracy"]) for row in rows] == [("001-a", 1, ""), ("002-b", "", 0.9)]
    assert line.startswith("champion: first/001-a (val_f1 0.8000)"), line


def step(directory: Path, name: str, kind: str, *needs: str, end: str = "succeeded") -> None:
    run_dir = directory / name
    create_run(run_dir, RunRequest(name, int(name[:3]), kind, [kind], needs=list(needs)))
    for state in ("starting", "running", end):
        append_event(run_dir, state)
    if end == "succeeded":
        (run_dir / "submission.csv").write_text("ID,target\n")


def test_one_submission_csv_is_meant_for_upload(tmp_path: Path) -> None:
    """A vote writes one, too, without the arguments of the step that predicts with it: that one is not named."""
    directory = tmp_path / "one"
    step(directory, "001-vote", "ensemble")
    files, upload = collect.places(directory)
    assert upload is not None and upload.endswith("one/001-vote/submission.csv")
    assert not [path for _, path in files if path.endswith("submission.csv")]

    step(directory, "002-other", "predict")
    step(directory, "003-submission", "predict", "001-vote")
    files, upload = collect.places(directory)
    assert upload is not None and upload.endswith("one/003-submission/submission.csv")
    assert [Path(path).parent.name for _, path in files if path.endswith("submission.csv")] == ["002-other"]

    step(directory, "004-failed", "predict", end="failed")
    files, upload = collect.places(directory)
    assert upload is None, "the one that is meant may be missing"
    assert sum(path.endswith("submission.csv") for _, path in files) == 3
