"""Run directories: the journal is the truth, whatever crashed while it was written."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from launcher.base.errors import RunError
from launcher.cli import watch
from launcher.engines import outcome
from launcher.record import journal
from launcher.record.find import find_run, find_submission
from launcher.record.folders import state_folder
from launcher.record.journal import Status, append_event, create_run, mark_lost, read_events, read_status
from launcher.record.locks import locked, run_locked
from launcher.record.request import Resources, RunRequest, read_request, write_request
from launcher.record.states import ENDED, TRANSITIONS, UNKNOWN, State
from trainer.base.files import write_json


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "job-20261124-101500" / "001-resnet34"
    create_run(path, RunRequest("001-resnet34", 1, "train", ["train"]))
    write_json(path.parent / "submission.json", {"name": path.parent.name})
    return path


def test_a_request_is_read_back_as_written(tmp_path: Path) -> None:
    request = RunRequest(
        "a", 3, "ensemble", ["ensemble"], select={"top": 2}, resources=Resources(1, memory=5, cpus=2.5)
    )
    create_run(tmp_path / "a", request)
    assert read_request(tmp_path / "a") == request


def test_status_follows_the_journal(run_dir: Path) -> None:
    assert read_status(run_dir).state == "queued"
    append_event(run_dir, "starting", devices=["0"])
    append_event(run_dir, "running", pid=7)
    ended = append_event(run_dir, "failed", reason="exit code 3", exit_code=3)
    assert read_status(run_dir) == ended and ended.figures["exit_code"] == 3
    assert append_event(run_dir, "queued", attempt=2).attempt == 2
    assert [event["state"] for event in read_events(run_dir)] == [
        "queued",
        "starting",
        "running",
        "failed",
        "queued",
    ]


@pytest.mark.parametrize("state", ["running", "succeeded", "lost", "timed_out"])
def test_a_step_that_the_table_does_not_allow_is_refused(run_dir: Path, state: State) -> None:
    with pytest.raises(RunError, match=f"queued already and cannot become {state}"):
        append_event(run_dir, state)
    assert len(read_events(run_dir)) == 1


def test_every_state_can_be_left_or_is_final() -> None:
    assert set(TRANSITIONS) == set(ENDED) - {UNKNOWN} | {"queued", "starting", "running"}
    for state, following in TRANSITIONS.items():
        assert following <= set(TRANSITIONS)
        assert bool(following) == (state != "reused")


def test_a_run_that_has_succeeded_begins_again_only_if_it_is_an_outdated_step(run_dir: Path) -> None:
    for state in ("starting", "running", "succeeded"):
        append_event(run_dir, state)
    with pytest.raises(RunError, match="is succeeded already and cannot become queued"):
        append_event(run_dir, "queued", 2)
    append_event(run_dir, "queued", 2, "again", outdated=True)
    events = read_events(run_dir)
    assert journal.replay(events).attempt == 2
    with pytest.raises(RunError, match="line 5: queued cannot follow succeeded"):
        journal.replay([*events[:4], {**events[4], "outdated": False}])


@pytest.mark.parametrize(
    "damage", [b'{"time": 1, "state": "runn', b"\x00\xff\x00", b"not json\n", b'{"state": "odd"\n']
)
def test_a_torn_line_is_passed_over_and_closed(run_dir: Path, damage: bytes) -> None:
    with (state_folder(run_dir) / "events.jsonl").open("ab") as journal:
        journal.write(damage)
    assert read_status(run_dir).state == "queued"
    append_event(run_dir, "starting")
    assert [event["state"] for event in read_events(run_dir)] == ["queued", "starting"]


def test_an_event_is_never_passed_over(run_dir: Path) -> None:
    """A crash cuts a line short, or leaves zeros behind it. Two events in one line were never written by a crash."""
    for state in ("starting", "running", "succeeded"):
        append_event(run_dir, state)
    place = state_folder(run_dir) / "events.jsonl"
    content = place.read_bytes()
    place.write_bytes(content[:-1] + bytes(50))
    assert read_status(run_dir).state == "succeeded"
    lines = content.splitlines()
    place.write_bytes(b"\n".join([*lines[:2], lines[2] + lines[3], b""]))
    status = read_status(run_dir)
    assert (
        status.state == UNKNOWN and "line 3 is no event of this launcher: something follows the event" in status.reason
    )


@pytest.mark.parametrize(
    "content", [b"", b'{"state": "succe', b'{"state": "succeeded", "attempt": 1, "time": 0, "reason": ""}']
)
def test_a_wrong_status_json_is_put_right_from_the_journal(run_dir: Path, content: bytes) -> None:
    (state_folder(run_dir) / "status.json").write_bytes(content)
    assert read_status(run_dir).state == "queued"
    assert json.loads((state_folder(run_dir) / "status.json").read_text())["state"] == "queued"


def test_a_clock_that_goes_back_changes_no_order(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal.time, "time", lambda: 1.0)
    append_event(run_dir, "starting")
    append_event(run_dir, "running")
    assert read_status(run_dir).state == "running"
    append_event(run_dir, "succeeded", seconds=-3599.5)  # as an earlier version wrote it
    assert read_status(run_dir).state == "succeeded"


def _append(run_dir: Path, results: object) -> None:
    try:
        append_event(run_dir, "starting")
        results.put("won")  # type: ignore[attr-defined]
    except RunError:
        results.put("lost")  # type: ignore[attr-defined]


def test_of_two_writers_one_wins(run_dir: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    writers = [context.Process(target=_append, args=(run_dir, results)) for _ in range(4)]
    for writer in writers:
        writer.start()
    outcomes = sorted(results.get(timeout=60) for _ in writers)
    for writer in writers:
        writer.join()
    assert outcomes == ["lost", "lost", "lost", "won"]


def test_a_run_without_a_process_is_marked_lost_but_not_one_with(run_dir: Path) -> None:
    assert not mark_lost(run_dir), "a queued run has no process"
    append_event(run_dir, "starting")
    with run_locked(run_dir) as mine:
        assert mine and not mark_lost(run_dir)
    assert mark_lost(run_dir) and read_status(run_dir).state == "lost"


def test_a_run_of_another_host_is_not_judged_from_here(run_dir: Path) -> None:
    append_event(run_dir, "starting", host="elsewhere")
    assert not mark_lost(run_dir) and read_status(run_dir).state == "starting"


def test_submissions_and_runs_are_found_by_what_people_type(run_dir: Path) -> None:
    root, submission = run_dir.parents[1], run_dir.parent
    for name in (None, submission.name, "job", "job-2026", str(submission)):
        assert find_submission(root, name) == submission
    for name in ("001-resnet34", "1", "resnet34", "res*", f"{submission.name}/1", str(run_dir)):
        assert find_run(root, name) == run_dir
    with pytest.raises(RunError, match=r"did you mean '001-resnet34'"):
        find_run(root, "001-resnet43")
    with pytest.raises(RunError, match=r"no submission 'jab-20261124-101500'; did you mean 'job-"):
        find_submission(root, "jab-20261124-101500")
    with pytest.raises(RunError, match=r"no submission yet"):
        find_submission(root / "none")


def test_of_several_submissions_of_a_job_the_latest_is_meant(run_dir: Path) -> None:
    root = run_dir.parents[1]
    later = root / "job-20261125-101500"
    later.mkdir()
    write_json(later / "submission.json", {})
    assert find_submission(root, "job") == later
    with pytest.raises(RunError, match=r"is ambiguous"):
        find_submission(root, "job-2026")


def test_a_name_of_thousands_lists_a_few_of_them_the_latest_first(run_dir: Path) -> None:
    root = run_dir.parents[1]
    for number in range(100):
        later = root / f"many-20261125-1015{number:02}"
        later.mkdir()
        write_json(later / "submission.json", {})
        (run_dir.parent / ".state" / f"{number + 2:03}-seed{number}").mkdir()
        (run_dir.parent / f"{number + 2:03}-seed{number}").mkdir()
    with pytest.raises(RunError, match=r"write one of: many-20261125-101599, .* … and 88 more$"):
        find_submission(root, "many-2026")
    with pytest.raises(RunError, match=r"write one of: 002-seed0, .* … and 88 more$"):
        find_run(root, f"{run_dir.parent.name}/*seed*")


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("epoch 1\nerror: one\nthing more\n", "one; thing more"),
        ("error: first\nepoch 1\nerror: a.jpg: empty\n  b.jpg:   empty;\n\n2 faults in data\n", "a.jpg: empty; b.jpg: empty; 2 faults in data"),
        ("error: alone", "alone"),
        ("no error\nkilled\n", "killed"),
        ("", ""),
    ],
)  # fmt: skip
def test_the_last_error_of_a_log_is_one_line_with_its_faults_apart(log: str, said: str) -> None:
    assert outcome.last_message(log) == said
    assert len(outcome.last_message("error: " + 1000 * "x")) == 500
    assert outcome.last_message("error: " + 100 * "again and ").endswith(("again…", "and…")), (
        "not in the middle of a word"
    )


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (["succeeded", "reused"], "succeeded"),
        (["succeeded", "failed"], "failed"),
        (["succeeded", "cancelled"], "stopped"),
        (["succeeded", "queued"], "unattended"),
        (["running", "lost"], "unattended"),
    ],
)
def test_a_submissions_state_is_that_of_its_runs(tmp_path: Path, states: list[State], expected: str) -> None:
    assert watch.submission_state(tmp_path, [Status(state) for state in states]) == expected
    with locked(tmp_path / "supervisor.lock"):
        assert watch.submission_state(tmp_path, [Status("running")]) == "running"


ODD_TEXTS = ["한글", "caf\udce9", "\ud800", "a\u2028b\u2029c\x85d", "\x1b[31m\0", "x\ny\r\nz", '"\\']


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_any_text_is_read_back_from_the_records(run_dir: Path, text: str) -> None:
    append_event(run_dir, "failed", reason=text, host=text)
    append_event(run_dir, "queued", 2, reason=text)
    assert [event["reason"] for event in read_events(run_dir)] == ["", text, text]
    assert read_status(run_dir).reason == text
    request = RunRequest("a", 3, "train", ["train", text], data_dir=text, cwd=text, config={"root": text})
    create_run(run_dir.parent / "002-b", request)
    assert read_request(run_dir.parent / "002-b") == request
    write_request(run_dir, request)
    assert read_request(run_dir) == request
    for path in run_dir.parent.rglob("*.json*"):
        path.read_text(encoding="utf-8")  # other programs read them
