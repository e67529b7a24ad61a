"""Who runs a submission: what a heartbeat, a missing file, a power cut and a person's word mean."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.base.errors import LeaseLostError, RunError
from launcher.engines.slurm import task_lease
from launcher.record import folders, lease, locks
from launcher.record.journal import append_event, create_run
from launcher.record.lease import Holder
from launcher.record.request import RunRequest
from tests.launcher.conftest import wait_for


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, seconds in (("EXPIRY", 0.6), ("BEAT", 0.05), ("SETTLE", 0.02)):
        monkeypatch.setattr(lease, name, seconds)
    yield


def written(submission: Path, **more: Any) -> Holder:
    holder = Holder(**{"host": "another-host", "boot": "b", "pid": 7, "fence": 4, "token": "token", **more})
    (submission / lease.FILE).write_text(json.dumps(vars(holder)))
    return holder


def run_with_fence(submission: Path, fence: int) -> Path:
    run_dir = submission / "001-x"
    create_run(run_dir, RunRequest("001-x", 1, "train", []))
    append_event(run_dir, "starting", fence=fence)
    return run_dir


def failing(number: int, times: float, name: str, by: bytes = b"") -> Callable[..., bytes]:
    """`folders.read` that fails the first times that it reads a file of this name (written `by` this host)."""
    really, left = folders.read, [times]

    def read(folder: folders.Folder, file: str) -> bytes:
        content = really(folder, file)
        if file == name and by in content and left[0] > 0:
            left[0] -= 1
            raise OSError(number, os.strerror(number), str(folder.path / file))
        return content

    return read


def test_the_heart_beats_while_the_holder_does_something_else(tmp_path: Path) -> None:
    with lease.hold(tmp_path):
        first = lease.read_holder(tmp_path)
        assert first is not None
        wait_for(lambda: (now := lease.read_holder(tmp_path)) and now.beat > first.beat + 2, "beats")
        beating = [thread for thread in threading.enumerate() if thread.name == "lease"]
        assert all(thread.daemon for thread in beating) and beating, "it does not keep a process alive"
    last = lease.read_holder(tmp_path)
    assert last is not None and last.released
    time.sleep(0.15)
    assert lease.read_holder(tmp_path) == last, "no beat after the release"


def test_a_lease_that_is_lost_while_the_holder_does_something_else_stops_its_writing(tmp_path: Path) -> None:
    with lease.hold(tmp_path) as mine:
        written(tmp_path)
        wait_for(lambda: not mine._thread.is_alive(), "the thread's notice")
        (tmp_path / lease.FILE).unlink()  # what the thread saw is remembered
        with pytest.raises(LeaseLostError, match=r"another launcher has taken over .*another-host, process 7"):
            mine.fence  # noqa: B018
        with pytest.raises(LeaseLostError):
            mine.check()
    assert lease.read_holder(tmp_path) is None, "the loser does not write at its end either"


def test_a_process_that_was_suspended_looks_before_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with lease.hold(tmp_path) as mine:
        mine._ended.set()  # the thread has not run yet
        mine._thread.join()
        assert mine.fence == 1
        written(tmp_path)
        later = lease._now() + 1
        monkeypatch.setattr(lease, "_now", lambda: later)
        with pytest.raises(LeaseLostError, match="another-host"):
            mine.fence  # noqa: B018


def test_a_holder_whose_file_was_deleted_writes_it_again(tmp_path: Path) -> None:
    with lease.hold(tmp_path) as mine:
        (tmp_path / lease.FILE).unlink()
        mine.check()
        assert lease.read_holder(tmp_path) == mine.holder


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"fence": 9}', '{"fence": "9", "host": 1}', "null", "\x00"])
def test_after_a_lost_or_damaged_file_the_journals_have_the_number(tmp_path: Path, content: str | None) -> None:
    run_dir = run_with_fence(tmp_path, 3)
    if content is not None:
        (tmp_path / lease.FILE).write_text(content)
    said: list[str] = []
    with lease.hold(tmp_path, said.append) as mine:
        assert mine.fence == 4
        append_event(run_dir, "running", fence=mine.fence)
    assert len(said) == 1 and ("missing" if content is None else "an unknown host") in said[0]


def test_a_file_of_a_late_old_holder_has_no_too_low_number(tmp_path: Path) -> None:
    run_dir = run_with_fence(tmp_path, 8)
    written(tmp_path, released=True)
    with lease.hold(tmp_path) as mine:
        assert mine.fence == 9
        append_event(run_dir, "running", fence=mine.fence)


def test_a_holder_whose_file_was_deleted_is_not_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_with_fence(tmp_path, 4)
    monkeypatch.setattr(lease, "BEAT", 60)
    with (
        pytest.raises(RunError, match="on another-host, process 7"),
        lease.hold(tmp_path, lambda line: written(tmp_path, beat=3) and None),
    ):
        pass


def test_a_damaged_file_that_becomes_whole_again_is_of_somebody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / lease.FILE).write_text("{")
    monkeypatch.setattr(lease, "EXPIRY", 60)
    monkeypatch.setattr(time, "sleep", lambda seconds: written(tmp_path))
    with pytest.raises(RunError, match="on another-host, process 7"), lease.hold(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_file_that_cannot_be_read_for_a_moment_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    written(tmp_path, released=True)
    monkeypatch.setattr(lease, "EXPIRY", 60)
    monkeypatch.setattr(folders, "read", failing(number, 2, lease.FILE))
    said: list[str] = []
    with lease.hold(tmp_path, said.append) as mine:
        assert mine.fence == 5
    assert len(said) == 1 and os.strerror(number) in said[0] and lease.FILE in said[0]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_file_that_stays_unreadable_is_nobodys_leave_to_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    written(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(folders, "read", failing(number, 1e9, lease.FILE, b"another-host"))
        with pytest.raises(RunError, match=r"cannot be read.*\n.*\n?.*resume .* --take-over"), lease.hold(tmp_path):
            pass
        assert lease.is_driven(tmp_path), "nor may anybody record the ends of its runs"
        with lease.hold(tmp_path, take_over=True) as mine:
            assert mine.fence == 1 and lease.read_holder(tmp_path) == mine.holder
    assert lease.is_driven(tmp_path) is False


def test_a_holder_that_cannot_read_its_file_goes_on_and_looks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lease.hold(tmp_path) as mine:
        with monkeypatch.context() as patch:
            patch.setattr(folders, "read", failing(errno.EIO, 1e9, lease.FILE))
            mine.check()
            time.sleep(0.15)
            assert mine._thread.is_alive()
        written(tmp_path)
        with pytest.raises(LeaseLostError):
            mine.check()


def test_after_a_power_cut_of_this_machine_nobody_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "machine_id", lambda: "m")
    here = {"host": os.uname().nodename, "boot": "the boot before"}
    written(tmp_path, **here, machine="m")
    assert not lease.is_driven(tmp_path)
    said: list[str] = []
    with lease.hold(tmp_path, said.append) as mine:
        assert mine.fence == 5 and said == [] and mine.holder.machine == "m"
    for other in ("another machine of this name", ""):  # the latter: written by an earlier version
        written(tmp_path, **here, machine=other)
        assert lease.is_driven(tmp_path)
        with lease.hold(tmp_path, said.append):
            pass
    assert len(said) == 2


@pytest.mark.parametrize(("ahead", "expected"), [(-40, False), (-20, True), (3, True), (20, True), (3600, False)])
def test_the_clock_of_a_file_server_may_be_ahead(tmp_path: Path, ahead: float, expected: bool) -> None:
    """Else a launcher on another host would seem to vanish after each heartbeat."""
    written(tmp_path)
    os.utime(tmp_path / lease.FILE, (time.time() + ahead,) * 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease, "EXPIRY", 30.0)
        assert lease.is_driven(tmp_path) is expected


@pytest.mark.parametrize("wrong", [-7200, 7200])
def test_a_wrong_clock_of_this_host_makes_no_holder_look_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    run_dir = run_with_fence(tmp_path, 1)
    written(tmp_path)
    with folders.own_state(run_dir) as folder:
        folders.replace(folder, folders.TASK, (tmp_path / lease.FILE).read_bytes())
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + wrong)
    monkeypatch.setattr(lease, "EXPIRY", 30.0)
    assert lease.is_driven(tmp_path) and task_lease.is_fresh(run_dir)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([lease.FILE, folders.STATE, run_dir.name])


def test_a_host_that_was_suspended_knows_the_file_systems_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The monotonic clock stands still meanwhile, and a heartbeat that came since is not from the future."""
    monkeypatch.setattr(lease, "_times", {})
    written(tmp_path)
    assert lease.is_recent(tmp_path / lease.FILE, 30)
    now = lease._now
    monkeypatch.setattr(lease, "_now", lambda: now() + 50)
    os.utime(tmp_path / lease.FILE, (time.time() + 50,) * 2)
    assert lease.is_recent(tmp_path / lease.FILE, 30)


def test_a_person_can_take_over_from_a_host_that_is_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "EXPIRY", 1e9)
    written(tmp_path)
    said: list[str] = []
    with lease.hold(tmp_path, said.append, take_over=True) as mine:
        assert mine.fence == 5 and said == []


def test_a_person_can_take_over_from_a_launcher_that_hangs_and_it_writes_no_more(tmp_path: Path) -> None:
    with lease.hold(tmp_path) as hanging:
        with (
            pytest.raises(RunError, match=f"resume {tmp_path.name} --runs {tmp_path.parent} --take-over"),
            lease.hold(tmp_path),
        ):
            pass
        with lease.hold(tmp_path, take_over=True) as mine:
            assert mine.fence == 2 and locks.is_locked(tmp_path / lease.LOCK)
            with pytest.raises(LeaseLostError):
                hanging.check()
            with pytest.raises(RunError, match="another launcher is running"), lease.hold(tmp_path):
                pass
        assert not locks.is_locked(tmp_path / lease.LOCK) and not list(tmp_path.glob(f".{lease.LOCK}*"))


def test_a_newer_launchers_file_is_read(tmp_path: Path) -> None:
    (tmp_path / lease.FILE).write_text(json.dumps({**vars(written(tmp_path)), "a later field": [1]}))
    holder = lease.read_holder(tmp_path)
    assert holder is not None and (holder.host, holder.fence) == ("another-host", 4)


# -- the lease of a run in Slurm is of the same kind


def test_an_attempt_whose_record_cannot_be_read_may_still_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_lease, "EXPIRY", 0.2)
    run_dir = run_with_fence(tmp_path, 1)
    with folders.own_state(run_dir) as folder:
        folders.replace(folder, folders.TASK, b"{}")

    def read(folder: folders.Folder, name: str) -> bytes:
        raise OSError(errno.ESTALE, "Stale file handle", name)

    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(folders, "read", read)
        with pytest.raises(RunError, match="an earlier attempt may still execute the run"):
            task_lease.await_former(run_dir, said.append)
        assert task_lease.is_fresh(run_dir) and len(said) == 1
    task_lease.await_former(run_dir, said.append)
    assert "checking for 0.2 s whether an unknown host" in said[1], "a damaged record is not nobody's"
    (folders.state_folder(run_dir) / folders.TASK).unlink()
    task_lease.await_former(run_dir, said.append)
    assert len(said) == 2


def test_an_attempt_beats_while_it_waits_for_its_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_lease, "BEAT", 0.03)
    run_dir = run_with_fence(tmp_path, 1)
    held = task_lease.TaskLease(run_dir, 1)
    held.start_beating()
    wait_for(lambda: (now := task_lease.read_holder(run_dir)) and now.beat > 2, "beats")
    held.release()
    last = task_lease.read_holder(run_dir)
    assert last is not None and last.released
