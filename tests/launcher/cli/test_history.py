"""`launcher list`, `why` and `diff` look back at a runs folder, whatever has happened to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from launcher.cli.history import listing
from launcher.cli.main import cli
from launcher.record.journal import append_event, create_run
from launcher.record.request import RunRequest
from launcher.results import collect
from tests.launcher.boards import add_run, scored_run
from tests.launcher.conftest import REPOSITORY, Lab
from trainer.base.files import write_json


def call(runs: Path, *words: str) -> Result:
    return CliRunner().invoke(cli, [*words, "--runs", str(runs)], catch_exceptions=False)


def told(runs: Path, *words: str) -> Any:
    answer = call(runs, *words, "--json")
    assert answer.exit_code == 0, answer.output
    return json.loads(answer.stdout)


def complete(submission: Path, at: float = 0.0, **more: Any) -> Path:
    """submission.json over the runs that are there, written at this time."""
    names = sorted(path.name for path in submission.iterdir() if path.is_dir() and not path.name.startswith("."))
    write_json(submission / "submission.json", {"engine": "native", "runs": names, "steps": [], **more})
    os.utime(submission / "submission.json", (at or time.time(),) * 2)
    return submission


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    first, second = root / "first-20261101-101500", root / "second-20261102-101500"
    scored_run(first, "001-resnet34", 6)
    scored_run(first, "002-resnet50", 3, offset=20)
    add_run(first, "003-swin", "failed")
    complete(first, time.time() - 7200)
    collect.collect(first)
    scored_run(second, "001-resnet34", 2)
    create_run(second / "002-resnet50", RunRequest("002-resnet50", 2, "train", ["train"]))
    complete(second, time.time() - 3600)
    return root


# -- list


def test_list_says_of_each_submission_what_came_of_it(runs: Path) -> None:
    second, first = told(runs, "list")["submissions"]
    assert (first["name"], second["name"]) == ("first-20261101-101500", "second-20261102-101500")
    assert first["state"] == "failed" and first["runs"] == {"succeeded": 2, "failed": 1}
    assert second["state"] == "unattended" and second["runs"] == {"succeeded": 1, "queued": 1}
    assert first["best_run"] == "002-resnet50" and first["figure"] == "val_f1" and 0.9 < first["best"] < 1
    assert second["best_run"] == "001-resnet34", "without a leaderboard, the runs say it"
    assert first["started"] < second["started"] < time.time() and first["size_bytes"] > 1000


def test_list_fits_80_columns(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = runs / f"{'a-very-long-name' * 3}-20261103-101500"
    for number, state in enumerate(("succeeded", "failed", "cancelled"), start=1):
        add_run(long, f"00{number}-resnet34", state)  # type: ignore[arg-type]
    create_run(long / "004-x", RunRequest("004-x", 4, "train", ["train"]))
    complete(long)
    monkeypatch.setattr(listing, "_width", lambda: 80)
    lines = call(runs, "list").output.splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) == 4
    assert lines[1].startswith("a-very-long") and "…" in lines[1] and "unattended ✓1 ·1 –1 ✗1" in lines[1]
    assert "first-20261101-101500" in lines[3] and "failed ✓2 ✗1" in lines[3]


def test_names_of_any_bytes_take_their_columns() -> None:
    assert listing.elided("영수증영수증영수증", 9) == "영수…수증"
    assert listing.elided("short", 9) == "short"


def test_list_of_a_folder_without_submissions_says_what_to_type(tmp_path: Path) -> None:
    answer = CliRunner().invoke(cli, ["list", "--runs", str(tmp_path / "none")])
    assert "no submission yet" in str(answer.exception)
    assert told(tmp_path / "none", "list")["submissions"] == []


def test_damaged_and_hostile_folders_are_named_and_not_fatal(runs: Path) -> None:
    for name, content in (("torn", "{"), ("other", "[1]"), ("number", '{"runs": 7}'), ("\x1b[31m영수증\n", "{")):
        (runs / name).mkdir()
        (runs / name / "submission.json").write_text(content)
    raw = os.fsdecode(os.fsencode(runs) + b"/\xff\xfe")
    Path(raw).mkdir()
    (Path(raw) / "submission.json").write_text("{")
    (runs / "folder" / "submission.json").mkdir(parents=True)
    (runs / "pipe").mkdir()
    os.mkfifo(runs / "pipe" / "submission.json")
    (runs / "file").write_text("")
    (runs / "linked").symlink_to(runs / "first-20261101-101500")
    board = runs / "first-20261101-101500" / "leaderboard.csv"
    board.unlink()
    os.mkfifo(board)
    broken = runs / "second-20261102-101500" / ".state" / "001-resnet34" / "events.jsonl"
    broken.write_text("{}\n")
    rows = {each["name"]: each for each in told(runs, "list")["submissions"]}
    assert {"torn", "other", "number", "folder", "pipe", "first-20261101-101500"} <= rows.keys()
    for name in ("torn", "other", "number", "folder", "pipe"):
        assert rows[name]["state"] == "unknown" and "submission.json" in rows[name]["reason"], name
    assert rows["first-20261101-101500"]["best_run"] == "002-resnet50"
    assert rows["second-20261102-101500"]["runs"] == {"unknown": 1, "queued": 1}
    command = [sys.executable, "-m", "launcher", "list", "--runs", str(runs)]
    shown = subprocess.run(command, cwd=REPOSITORY, capture_output=True)
    assert shown.returncode == 0 and b"\x1b" not in shown.stdout and "영수증".encode() in shown.stdout
    assert b"\xff\xfe" in shown.stdout, "in a pipe, the bytes of the name"


def test_a_leaderboard_that_somebody_wrote_is_not_believed(runs: Path) -> None:
    board = runs / "first-20261101-101500" / "leaderboard.csv"
    for content in (
        b"",
        b"\0\xff\xfe,\n1,2",
        b"score,monitor\nnan,val_f1\n",
        b"score,monitor\n1e999,val_f1\n",
        b"score,monitor\n0.9,$(rm)\n",
    ):
        board.write_bytes(content)
        first = told(runs, "list")["submissions"][1]
        assert (first["best_run"], first["figure"]) == ("002-resnet50", "val_f1"), content


def test_what_a_run_wrote_is_measured_without_following_links(tmp_path: Path) -> None:
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "a" / "deep" / "file").write_bytes(b"x" * 10_000)
    whole, _ = listing.disk_use(tmp_path / "a")
    os.link(tmp_path / "a" / "deep" / "file", tmp_path / "a" / "again")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert 10_000 <= whole <= listing.disk_use(tmp_path / "a")[0] <= whole + 8192
    assert listing.disk_use(tmp_path / "none") == (0, True)


def test_a_folder_of_any_number_of_files_takes_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MOST_FILES", 10)
    for number in range(20):
        (tmp_path / f"{number}").write_bytes(b"x" * 5000)
    size, whole = listing.disk_use(tmp_path)
    assert 0 < size < 20 * 8192 and not whole


def test_a_thousand_submissions_are_listed_quickly(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    for number in range(1000):
        submission = root / f"job-{number:04d}"
        run_dir = add_run(submission, "001-resnet34")
        write_json(run_dir / "metrics.json", {"val_f1": 0.5, "monitor": "val_f1"})
        complete(submission)
    begin = time.process_time()
    assert len(told(root, "list")["submissions"]) == 1000
    took = time.process_time() - begin
    print(f"1,000 submissions: {took:.2f} s")
    assert took < 5
    assert len(call(root, "list").output.splitlines()) == listing.SHOWN + 2


def test_owners_are_columns_only_if_there_are_several(runs: Path) -> None:
    rows = told(runs, "list")["submissions"]
    assert "who" not in call(runs, "list").output
    rows[0]["owner"] = "anna"
    titles = [column.header for column in listing.table(rows, 80).columns]
    assert titles[-1] == "who"


def test_a_submission_that_its_user_hides_is_named(lab: Lab) -> None:
    assert lab.launcher("submit", lab.job("name: mine\nmatrix: {seed: [1]}\n"), "--engine", "native").returncode == 0
    shown = lab.launcher("list")
    assert shown.returncode == 0 and "mine-" in shown.stdout and "succeeded ✓1" in shown.stdout
    answer = lab.launcher("list", "--runs", "nowhere")
    assert answer.returncode == 1 and "no submission yet" in answer.stderr


# -- why


def sentences(runs: Path, run: str) -> dict[str, dict[str, Any]]:
    """The last answer about each matter."""
    return {answer["about"]: answer for answer in told(runs, "why", run)["answers"]}


def test_why_says_what_became_of_each_attempt(tmp_path: Path) -> None:
    submission = tmp_path / "runs" / "job-20261101-101500"
    run_dir = submission / "001-resnet34"
    create_run(run_dir, RunRequest(run_dir.name, 1, "train", ["train"], config={"batch_size": 2}))
    for state, more in (
        ("starting", {"devices": ["0"]}),
        ("running", {"devices": ["0"]}),
        ("out_of_device_memory", {"seconds": 90.0, "exit_code": 75}),
        ("queued", {"reason": "again with micro-batch 1", "micro_batch": 1}),
        ("starting", {}),
        ("running", {}),
        ("failed", {"reason": "exit code 1: \x1b[31mboom"}),
    ):
        append_event(run_dir, state, again=state == "queued", **more)  # type: ignore[arg-type]
    complete(submission)
    found = told(tmp_path / "runs", "why", "1")
    texts = [answer["text"] for answer in found["answers"]]
    assert found["state"] == "failed" and found["attempt"] == 2
    assert texts[:3] == [
        "It was submitted.",
        "Attempt 1 started on 0.",
        "Attempt 1 ran out of device memory after 1 min 30 s (exit code 75).",
    ]
    assert texts[3] == "It was queued again: again with micro-batch 1." and "boom" in texts[5]
    assert all(answer["time"] for answer in found["answers"][:6])
    last = sentences(tmp_path / "runs", "1")["not_retried"]
    assert "retry.on" in last["text"] and last["next"].startswith(
        "launcher resume job-20261101-101500/001-resnet34 --runs "
    )
    shown = call(tmp_path / "runs", "why", "1").output
    assert "\x1b" not in shown and "boom" in shown and "launcher resume" in shown


def test_why_of_a_queued_run_says_for_what_it_waits(runs: Path) -> None:
    waits = sentences(runs, "second-20261102-101500/002-resnet50")["waits"]
    assert "no launcher is running its submission" in waits["text"] and "launcher resume" in waits["next"]


def test_why_of_bad_data_is_that_it_would_fail_again(tmp_path: Path) -> None:
    submission = tmp_path / "runs" / "job-20261101-101500"
    run_dir = submission / "001-resnet34"
    create_run(run_dir, RunRequest(run_dir.name, 1, "train", ["train"]))
    for state, more in (("starting", {}), ("running", {}), ("failed", {"exit_code": 65, "reason": "no such image"})):
        append_event(run_dir, state, **more)  # type: ignore[arg-type]
    complete(submission)
    assert "its data are wrong" in sentences(tmp_path / "runs", "1")["not_retried"]["text"]


def test_why_says_whether_a_rank_may_be_chance(runs: Path) -> None:
    worse = sentences(runs, "first-20261101-101500/001-resnet34")["distinguishable"]
    assert "Its rank is 2 of 2" in worse["text"] and "may be chance" in worse["text"]
    assert worse["next"] == "launcher diff first-20261101-101500/002-resnet50 first-20261101-101500/001-resnet34"
    assert "the best" in sentences(runs, "first-20261101-101500/002-resnet50")["distinguishable"]["text"]
    assert "launcher collect" in sentences(runs, "second-20261102-101500/001-resnet34")["distinguishable"]["next"]


@pytest.mark.parametrize(
    ("data", "code", "said"),
    [("e", "c", "but other data"), ("d", "f", "another version of the trainer"), ("d", "c", "--fresh")],
)
def test_why_says_why_an_earlier_run_was_not_reused(tmp_path: Path, data: str, code: str, said: str) -> None:
    root = tmp_path / "runs"
    add_run(root / "old-20261101-101500", "001-resnet34", identity="i", data="d", code="c")
    add_run(root / "new-20261102-101500", "001-resnet34", identity="i", data=data, code=code)
    complete(root / "old-20261101-101500", 1e9)
    complete(root / "new-20261102-101500")
    answer = sentences(root, "new-20261102-101500/1")["not_reused"]
    assert "old-20261101-101500/001-resnet34" in answer["text"] and said in answer["text"]
    assert "no earlier run" in sentences(root, "old-20261101-101500/1")["not_reused"]["text"]


def test_why_of_damaged_records_names_the_file(runs: Path) -> None:
    (runs / "first-20261101-101500" / ".state" / "001-resnet34" / "events.jsonl").write_text("{}\n")
    assert "events.jsonl" in sentences(runs, "first-20261101-101500/001-resnet34")["unknown"]["text"]


# -- diff


def test_diff_shows_keys_that_differ_and_figures_side_by_side(tmp_path: Path) -> None:
    submission = tmp_path / "runs" / "job-20261101-101500"
    for number, (words, wrong) in enumerate(
        ((["model=resnet34", "training.lr=0.001"], 6), (["model=resnet50", "training.lr=0.001", "seed=2"], 5)), start=1
    ):
        scored_run(submission, f"00{number}-x", wrong, overrides=words)
    complete(submission)
    found = told(tmp_path / "runs", "diff", "1", "2")
    values = {each["key"]: each["values"] for each in found["configuration"]}
    assert values["model"] == ["resnet34", "resnet50"] and "training.lr" not in values
    figure = {each["name"]: each for each in found["figures"]}["val_f1"]
    assert figure["may_be_chance"] is True and all(figure["intervals"]) and found["not_compared"] == ""
    shown = call(tmp_path / "runs", "diff", "1", "2").output
    assert "resnet50" in shown and "may be chance" in shown and shown.startswith("1: job-20261101-101500/001-x\n2: ")


def test_diff_says_why_figures_are_not_compared(tmp_path: Path) -> None:
    submission = tmp_path / "runs" / "job-20261101-101500"
    scored_run(submission, "001-x", 6)
    scored_run(submission, "002-x", 6, split="other")
    (submission / "002-x" / "metrics.json").write_text('{"val_f1": "\\u001b[31m", "seconds": 1e400}')
    add_run(submission, "003-x", "failed", overrides=["training.gone=1"])
    complete(submission)
    assert "same images" in told(tmp_path / "runs", "diff", "1", "2")["not_compared"]
    without = told(tmp_path / "runs", "diff", "1", "3")
    assert without["not_compared"] == "no validation predictions of 003-x"
    assert ["training.gone", [None, "1"]] in [[each["key"], each["values"]] for each in without["configuration"]]
    assert "1" in call(tmp_path / "runs", "diff", "1", "1").output
