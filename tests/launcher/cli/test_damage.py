"""One run whose records are damaged, missing or unreadable is one bad row: all commands show and work on the others."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from launcher import __main__ as program
from launcher.cli import live, watch
from launcher.engines import registry
from launcher.host.machine import Machine
from launcher.record import folders, lease
from launcher.record.find import list_runs
from launcher.record.folders import state_folder
from launcher.record.journal import append_event, create_run, read_status
from launcher.record.records import Records
from launcher.record.request import RunRequest
from launcher.results import collect
from launcher.supervise import runs as supervisor_runs
from launcher.supervise import stopping, supervisor
from tests.launcher.conftest import NO_ENGINE, Lab, pipe, seeds, wait_for
from trainer.base.files import write_json

NAME = "job-20261130-101500"
BAD = "002-bad"
EVENT: dict[str, Any] = {"time": 1.0, "state": "failed", "attempt": 1, "reason": "exit code 3"}
LINES: dict[str, Any] = {
    "devices": {**EVENT, "devices": 7},
    "devices' names": {**EVENT, "devices": [7]},
    "state": {**EVENT, "state": {}},
    "a state of another version": {**EVENT, "state": "paused"},
    "no state": {"time": 1.0, "attempt": 1, "reason": ""},
    "attempt": {**EVENT, "attempt": "1"},
    "attempt below 1": {**EVENT, "attempt": 0},
    "time": {**EVENT, "time": {}},
    "reason": {**EVENT, "reason": ["x"]},
    "engine": {**EVENT, "engine": 7},
    "container": {**EVENT, "container": {}},
    "host": {**EVENT, "host": []},
    "exec_pid": {**EVENT, "exec_pid": -1},
    "seconds": {**EVENT, "seconds": "x"},
    "exit_code": {**EVENT, "exit_code": "0"},
    "micro_batch": {**EVENT, "micro_batch": []},
    "retry": {**EVENT, "retry": {}},
    "fence": {**EVENT, "fence": "9"},
    "peak": {**EVENT, "peak_host_memory_bytes": []},
    "source": {**EVENT, "source": 7},
    "a number that JSON does not have": {**EVENT, "other": [float("nan")]},
    "a list": [1],
    "a number": 7,
}
FIELDS: dict[str, Any] = {
    "resources": [],
    "resources.gpus": {"gpus": "1"},
    "needs": 7,
    "needs' names": ["../../x"],
    "command": None,
    "config": [],
    "config.fold": {"fold": "x"},
    "config.teachers": {"teachers": 7},
    "retry": 7,
    "retry.on": {"on": 7},
    "kind": "other",
    "kind's type": {},
    "select": {"other": 1},
    "links": {"/data/x": 7},
    "timeout": float("inf"),
    "env": "HOME",
    "config's numbers": {"other": float("inf")},
    "unheard_of": 1,
}


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def foreign(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 20)


PLACES: dict[str, Callable[[Path], None]] = {
    "pipe": pipe,
    "folder": folder,
    "link": link,
    "foreign": foreign,
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b"") and None,
}


@pytest.fixture(params=["new", "old"])
def submission(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three runs that have ended, in the present layout or that of the version before."""
    monkeypatch.setenv("DOCKER_HOST", NO_ENGINE)
    monkeypatch.setenv("LAUNCHER_RUNS", str(tmp_path / "runs"))
    path = tmp_path / "runs" / NAME
    names = ("001-good", BAD, "003-failed")
    for number, name in enumerate(names, 1):
        create_run(path / name, RunRequest(name, number, "train", ["train"], config={"model": "resnet34"}))
        (path / name / "log.txt").write_text(f"log of {name}\n")
        append_event(path / name, "starting", devices=["0"])
        append_event(path / name, "running")
        if name == "001-good":
            (path / name / "metrics.json").write_text('{"val_f1": 0.5}')
            (path / name / "best.ckpt").write_text("weights")
        append_event(path / name, "succeeded" if name == "001-good" else "failed", exit_code=3 * (name != "001-good"))
    write_json(path / "submission.json", {"name": NAME, "engine": "native", "runs": names, "steps": []})
    if request.param == "old":
        for name in names:
            shutil.copytree(path / ".state" / name, path / name, dirs_exist_ok=True)
        shutil.rmtree(path / ".state")
    return path


@dataclass
class Done:
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    def call(*words: str) -> Done:
        with pytest.raises(SystemExit) as ended:
            program.main(list(words))
        out, err = capsys.readouterr()
        said = out + err
        assert "Traceback" not in said and "unexpected" not in said, said
        assert isinstance(ended.value.code, int)
        return Done(ended.value.code, out, err)

    return call


def looked_at(run: Callable[..., Done], file: str) -> None:
    """Every command that looks shows the other runs, and one bad row with the name of the file."""
    done = run("status", "--json")
    assert done.code == 0, done.err
    seen = json.loads(done.out)
    rows = {row["name"]: row for row in seen["runs"]}
    states = {name: row["state"] for name, row in rows.items()}
    assert states == {"001-good": "succeeded", BAD: "unknown", "003-failed": "failed"} and seen["state"] == "failed"
    assert file in rows[BAD]["reason"] and rows["001-good"]["val_f1"] == 0.5
    table = run("status")
    assert table.code == 0 and "✗ unknown" in table.out and "✓ succeeded" in table.out
    assert run("status", "--watch").code == 1
    attached = run("attach")
    assert attached.code == 1 and f"not succeeded: {BAD}, 003-failed" in attached.out, attached.err
    (line,) = [
        line for line in attached.out.splitlines() if f"  {BAD}" in line and "unknown" in line and ":" in line[:6]
    ]
    assert file in line
    collected = run("collect", "--json")
    assert collected.code == 0, collected.err
    rows = {row["run"]: row for row in json.loads(collected.out)["rows"]}
    assert rows[BAD]["state"] == "unknown" and file in rows[BAD]["reason"] and rows["001-good"]["rank"] == 1
    assert run("logs", "1").out == "log of 001-good\n"
    logs = run("logs", "2", "-f")
    assert logs.code == 1 and file in logs.err
    replayed = run("replay")
    assert replayed.code == 1 and replayed.out.count("✗") == 1 and f"✗ {BAD}: " in replayed.out
    stopped = run("stop")
    assert stopped.code == 0 and f"note: {BAD}: " in stopped.out and file in stopped.out, stopped.err
    assert run("prune").code == 0


@pytest.mark.parametrize("kind", PLACES)
def test_a_journal_that_is_none(submission: Path, run: Callable[..., Done], kind: str) -> None:
    PLACES[kind](state_folder(submission / BAD) / "events.jsonl")
    looked_at(run, f"{BAD}/events.jsonl")


@pytest.mark.parametrize("submission", ["new"], indirect=True)
@pytest.mark.parametrize("kind", LINES)
def test_a_line_of_other_types(submission: Path, run: Callable[..., Done], kind: str) -> None:
    with (state_folder(submission / BAD) / "events.jsonl").open("a") as journal:
        journal.write(json.dumps(LINES[kind]) + "\n")
    status = read_status(submission / BAD)
    assert status.state == "unknown" and f"{BAD}/events.jsonl: line 5 is no event of this launcher: " in status.reason
    assert run("status").code == 0
    if kind in ("devices", "state", "a list"):
        looked_at(run, f"{BAD}/events.jsonl: line 5")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_journal_that_cannot_be_read(
    submission: Path, run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fails(monkeypatch, number, "events.jsonl")
    looked_at(run, os.strerror(number))
    assert f"{BAD}/events.jsonl" in live.look(submission / BAD).reason


def fails(monkeypatch: pytest.MonkeyPatch, number: int, file: str) -> None:
    """The file system gives an error for this file of the bad run."""
    before = folders.open_own

    def open_own(folder: folders.Folder, name: str, flags: int) -> int:
        place = Path(f"/proc/self/fd/{folder.descriptor}").readlink()
        if name == file and place.name == BAD:
            raise OSError(number, os.strerror(number), f"{place}/{name}")
        return before(folder, name, flags)

    monkeypatch.setattr(folders, "open_own", open_own)


@pytest.mark.parametrize("kind", PLACES)
def test_a_request_that_is_none(submission: Path, run: Callable[..., Done], kind: str) -> None:
    PLACES[kind](state_folder(submission / BAD) / "run.json")
    looked_at_request(submission, run)


@pytest.mark.parametrize("submission", ["new"], indirect=True)
@pytest.mark.parametrize("field", FIELDS)
def test_a_request_of_other_types(submission: Path, run: Callable[..., Done], field: str) -> None:
    path = state_folder(submission / BAD) / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field.split(".")[0].split("'")[0]: FIELDS[field]}))
    looked_at_request(submission, run)


def looked_at_request(submission: Path, run: Callable[..., Done]) -> None:
    """What a run's state needs no request for is shown without it; a leaderboard needs it."""
    for words in (["status"], ["status", "--json"], ["collect"], ["stop"]):
        done = run(*words)
        assert done.code == 0, done.out + done.err
    rows = {row["run"]: row for row in collect.leaderboard_rows(submission)}
    assert (
        rows[BAD]["state"] == "unknown" and f"{BAD}/run.json" in rows[BAD]["reason"] and rows["001-good"]["rank"] == 1
    )
    if (submission / BAD / "events.jsonl").exists():
        return  # of the version before: it cannot be changed
    append_event(submission / "003-failed", "queued", 2)
    append_event(submission / BAD, "queued", 2)
    states = {row["name"]: row for row in watch.status_json(submission)["runs"]}
    assert states[BAD]["state"] == "unknown" and f"{BAD}/run.json" in states[BAD]["reason"]
    assert states["003-failed"]["state"] == "queued"


@pytest.mark.parametrize("file", ["status.json", "exec.lock", "exec.json", "stop.requested"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "foreign"])
def test_what_is_no_record_of_the_state_hides_nothing(
    submission: Path, run: Callable[..., Done], kind: str, file: str
) -> None:
    place = state_folder(submission / BAD) / file
    place.touch()
    PLACES[kind](place)
    seen = json.loads(run("status", "--json").out)
    assert [row["state"] for row in seen["runs"]] == ["succeeded", "failed", "failed"]
    assert run("collect").code == 0 and run("attach").code == 1 and run("stop").code == 0


@pytest.mark.parametrize(
    "content", ['{"process": {"pid": "x", "started": 7}, "host": 1, "token": 2, "trainer": 3}', "7"]
)
def test_a_lock_file_of_other_types_names_nobody(submission: Path, run: Callable[..., Done], content: str) -> None:
    append_event(submission / BAD, "queued", 2)
    append_event(submission / BAD, "starting")
    (state_folder(submission / BAD) / "exec.lock").write_text(content)
    assert run("status").code == 0 and read_status(submission / BAD).state == "lost"


@pytest.mark.parametrize("submission", ["new"], indirect=True)
@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
def test_a_run_in_progress_whose_lock_is_none(submission: Path, run: Callable[..., Done], kind: str) -> None:
    append_event(submission / BAD, "queued", 2)
    append_event(submission / BAD, "starting")
    place = state_folder(submission / BAD) / "exec.lock"
    place.touch()
    PLACES[kind](place)
    seen = json.loads(run("status", "--json").out)
    assert [row["state"] for row in seen["runs"]] == ["succeeded", "starting", "failed"]
    assert f"{BAD}/exec.lock: " in seen["runs"][1]["reason"]
    assert run("collect").code == 0 and run("logs", "2").code == 0 and run("prune").code == 0
    assert run("attach").code == 1 and driven(submission)[0] == 1


@pytest.mark.parametrize("submission", ["new"], indirect=True)
def test_a_folder_of_records_that_is_none(submission: Path, run: Callable[..., Done]) -> None:
    place = submission / ".state" / BAD
    shutil.rmtree(place)
    place.write_text("x")
    looked_at(run, f"{BAD}")


# -- a run directory that is gone


@pytest.mark.parametrize("submission", ["new"], indirect=True)
@pytest.mark.parametrize("instead", ["nothing", "a file", "a link"])
def test_a_run_whose_directory_is_gone_has_not_succeeded(
    submission: Path, run: Callable[..., Done], instead: str
) -> None:
    gone = submission / "001-good"
    shutil.rmtree(gone)
    if instead == "a file":
        gone.write_text("")
    elif instead == "a link":
        gone.symlink_to(submission / "003-failed")
    append_event(submission / "003-failed", "queued", 2)
    append_event(submission / "003-failed", "cancelled")
    append_event(submission / BAD, "queued", 2)
    append_event(submission / BAD, "cancelled")
    seen = json.loads(run("status", "--json").out)
    assert [row["state"] for row in seen["runs"]] == ["unknown", "cancelled", "cancelled"]
    assert seen["state"] == "failed", "as if it had failed, and never stopped or succeeded"
    assert "directory is gone" in seen["runs"][0]["reason"] and "it was succeeded" in seen["runs"][0]["reason"]
    assert run("collect").code == 0 and collect.leaderboard_rows(submission)[0]["rank"] == ""
    assert "submit the job again" in run("logs", "1", "-f").err if instead == "nothing" else True


def test_a_submission_without_its_runs_has_failed(submission: Path, run: Callable[..., Done]) -> None:
    for path in (*list_runs(submission), submission / ".state"):
        shutil.rmtree(path, ignore_errors=True)
    seen = json.loads(run("status", "--json").out)
    assert [row["state"] for row in seen["runs"]] == ["unknown"] * 3 and seen["state"] == "failed"
    assert "001-good: the run's directory is gone; submit the job again" in seen["runs"][0]["reason"]
    assert run("status", "--watch").code == 1 and run("attach").code == 1 and run("collect").code == 0
    (submission / "submission.json").write_text("{}")
    assert json.loads(run("status", "--json").out)["state"] == "failed", "no run is no success"
    assert live.exit_code([]) == 1


# -- the others are worked on


def driven(submission: Path) -> tuple[int, list[tuple[str, str, str]]]:
    """The end of a supervision on a machine without a GPU, and what it told."""
    seen: list[tuple[str, str, str]] = []
    with lease.hold(submission) as held:
        supervision = supervisor.Supervision(
            held, submission, Machine("m", 4, 2**34, declared=True), registry.supervised("native"),
            supervisor.Rules(), lambda name, status: seen.append((name, status.state, status.reason)),
        )  # fmt: skip
        with closing(supervision):
            return supervision.drive(), seen


@pytest.mark.parametrize("submission", ["new"], indirect=True)
def test_a_run_alone_on_a_bad_place_of_the_disk_is_given_up(submission: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are driven meanwhile, and the supervision ends."""
    monkeypatch.setattr(supervisor_runs, "SILENCE", 0.6)
    fails(monkeypatch, errno.EIO, "events.jsonl")
    append_event(submission / "003-failed", "queued", 2)
    request = state_folder(submission / "003-failed") / "run.json"
    request.write_text(request.read_text().replace('"gpus": 0', '"gpus": 1'))  # can never start here
    code, seen = driven(submission)
    assert code == 1
    assert ("003-failed", "failed", "it needs 1 GPU; this machine has 0") in seen
    assert any(name == NAME and "trying again" in reason for name, _, reason in seen)
    (last,) = [reason for name, state, reason in seen if (name, state) == (BAD, "unknown")]
    assert last.endswith(f"{BAD}/events.jsonl: {os.strerror(errno.EIO)}")


def test_a_run_whose_journal_cannot_be_written_does_not_keep_the_others_from_their_stop(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.plan = {"*": {"seconds": 300}}
    process = lab.start("submit", lab.job(seeds(3, "max_parallel: 1\n")), lab.machine())
    wait_for(lambda: lab.journal("begin") and "running" in lab.states().values(), "a run")
    process.kill()
    process.wait()
    before = stopping.append_event

    def append(run_dir: Path, *words: Any, **more: Any) -> Any:
        if run_dir.name == "002-seed1":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(run_dir / "events.jsonl"))
        return before(run_dir, *words, **more)

    monkeypatch.setattr(stopping, "append_event", append)
    touched, problems = stopping.stop(lab.submission(), list_runs(lab.submission()), 30)
    assert touched == ["001-seed0", "003-seed2"] and list(problems) == ["002-seed1"]
    assert "events.jsonl: Permission denied" in problems["002-seed1"]
    assert lab.states() == {"seed0": "cancelled", "seed1": "queued", "seed2": "cancelled"}


# -- a submission's own file


@pytest.mark.parametrize("submission", ["new"], indirect=True)
@pytest.mark.parametrize("kind", [*PLACES, "7", '{"runs": 7}', '{"runs": ["../x"]}', '{"engine": []}', '{"image": 7}'])
def test_a_submission_file_that_is_none_hides_no_other_submission(
    submission: Path, run: Callable[..., Done], kind: str
) -> None:
    other = submission.with_name("other-20261130-111500")
    shutil.copytree(submission, other)
    place = submission / "submission.json"
    PLACES[kind](place) if kind in PLACES else place.write_text(kind)
    for words in (["status", other.name], ["collect", other.name], ["logs", "1"], ["prune"], ["stop", other.name]):
        done = run(*words)
        assert done.code == 0, done.out + done.err
    if kind != "missing":
        done = run("status", NAME)
        assert done.code in (0, 1) and ("submission.json" in done.err or done.code == 0)


@pytest.mark.parametrize("submission", ["new"], indirect=True)
def test_a_file_system_that_fails_for_a_moment_is_waited_for(submission: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, failures = supervisor.stop_request.everything, iter(range(3))

    def everything(path: Path) -> bool:
        if next(failures, None) is not None:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return before(path)

    monkeypatch.setattr(supervisor.stop_request, "everything", everything)
    monkeypatch.setattr(supervisor, "POLL", 0.01)
    code, seen = driven(submission)
    notes = [reason for name, _, reason in seen if name == NAME]
    assert code == 1 and notes == [f"{submission}: {os.strerror(errno.EIO)}; trying again"]


@pytest.mark.parametrize("submission", ["new"], indirect=True)
def test_an_error_that_does_not_pass_ends_the_supervision(submission: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def everything(path: Path) -> bool:
        raise OSError(errno.ENAMETOOLONG, "x", str(path))

    monkeypatch.setattr(supervisor.stop_request, "everything", everything)
    with pytest.raises(OSError, match="x"):
        driven(submission)


def test_stop_closes_the_records_that_it_has_opened(submission: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Records] = []

    class Kept(Records):
        def __init__(self, submission: Path) -> None:
            super().__init__(submission)
            opened.append(self)  # what nobody refers to is closed without a word

    monkeypatch.setattr(stopping, "Records", Kept)

    def descriptors() -> int:
        return len(list(Path("/dev/fd").iterdir()))

    before = descriptors()
    assert stopping.stop(submission, list_runs(submission), grace=0) == ([], {})
    assert len(opened) == 1 and descriptors() == before
