"""Nothing is lost and nothing runs twice, whenever the launcher, the engine, a container or the disk fails."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher.base.errors import LeaseLostError, RunError
from launcher.record import lease
from launcher.record.find import find_run, list_runs, list_submissions
from launcher.record.folders import state_folder
from launcher.record.journal import append_event, create_run, read_events, read_status, replay
from launcher.record.request import RunRequest, read_request
from tests.docker_engine import Dockerd
from tests.launcher.boxes import containers, job, journal, one_container
from tests.launcher.conftest import Lab, seeds, wait_for

RUNS = 6


def begun(box: Lab) -> Counter[str]:
    return Counter(event["run"] for event in journal(box, "begin"))


def killed_and_resumed(box: Lab, text: str, moment: float) -> None:
    """Submit, kill -9 the supervisor after `moment` seconds, resume; no run may be lost or begin twice."""
    process = box.start("submit", text, "--engine", "docker", box.machine())
    time.sleep(moment)
    process.kill()
    process.wait()
    if not box.runs.is_dir() or not [path for path in list_submissions(box.runs) if path.is_dir()]:
        assert not journal(box, "begin"), "a run without a submission"
        return
    done = box.launcher("resume", box.machine())
    states = box.states()
    assert done.returncode == 0, (moment, done.stdout, done.stderr)
    assert set(states.values()) == {"succeeded"} and len(states) == RUNS, (moment, states)
    ours = {f"{path.name}" for path in list_runs(box.submission())}
    assert {name: count for name, count in begun(box).items() if count > 1} == {} and set(begun(box)) == ours, moment
    for path in list_runs(box.submission()):
        replay(read_events(path))


def kills(box: Lab, dockerd: Dockerd, image: str, count: int, seed: int) -> None:
    box.plan = {"*": {"seconds": 0.3}}
    text, draw = job(box, image, RUNS, "max_parallel: 2\nresources: {cpus: 0.5}\n"), random.Random(seed)
    for number in range(count):
        killed_and_resumed(replace(box, folder=f"runs{number}"), text, draw.uniform(0.3, 4.0))
    left = containers(dockerd, box)
    assert [each.name for each in left if each.status == "running"] == []


def test_a_supervisor_killed_at_any_moment_loses_nothing(box: Lab, dockerd: Dockerd, image: str) -> None:
    kills(box, dockerd, image, 5, seed=5)


@pytest.mark.slow
def test_a_supervisor_killed_at_twenty_moments_loses_nothing(box: Lab, dockerd: Dockerd, image: str) -> None:
    kills(box, dockerd, image, 20, seed=20)


def test_native_runs_survive_a_supervisor_killed_at_any_moment(lab: Lab) -> None:
    lab.plan = {"*": {"seconds": 0.4}}
    text, draw = lab.job(seeds(RUNS, "max_parallel: 2\n")), random.Random(7)
    for number in range(5):
        log = lab.root / f"journal{number}"
        lab.environment["FAKE_LOG"] = str(log)
        again = replace(lab, folder=f"runs{number}")
        process = again.start("submit", text, again.machine())
        time.sleep(draw.uniform(0.3, 3.0))
        process.kill()
        process.wait()
        if not again.runs.is_dir() or not list_submissions(again.runs):
            continue
        done = again.launcher("resume", again.machine())
        assert done.returncode == 0 and set(again.states().values()) == {"succeeded"}, done.stdout + done.stderr
        begins = [json.loads(line) for line in log.read_text().splitlines() if '"begin"' in line]
        assert sorted(event["run"] for event in begins) == [path.name for path in list_runs(again.submission())]
        for path in list_runs(again.submission()):
            replay(read_events(path))


def test_a_killed_container_is_repeated_from_its_checkpoint(box: Lab, dockerd: Dockerd, image: str) -> None:
    box.plan = {"*": {"until": "/data/gate"}}
    text = job(box, image, 1, "retry: {on: [lost], backoff: 0s}\n")
    process = box.start("submit", text, "--engine", "docker", box.machine())
    container = one_container(dockerd, box)
    (box.submission() / "001-resnet34" / "last.ckpt").write_text("state")
    container.kill()
    wait_for(lambda: len(journal(box, "begin")) == 2, "the second attempt")
    (box.root / "data" / "gate").touch()
    assert process.wait(60) == 0 and box.status("1").attempt == 2 and box.states() == {"resnet34": "succeeded"}


def test_an_engine_that_is_restarted_loses_runs_that_are_repeated(
    box: Lab,
    dockerd: Dockerd,
    image: str,
) -> None:
    box.plan = {"*": {"until": "/data/gate"}}
    text = job(box, image, 2, "retry: {on: [lost], backoff: 0s}\nresources: {cpus: 0.5}\n")
    process = box.start("submit", text, "--engine", "docker", box.machine())
    wait_for(lambda: len(journal(box, "begin")) == 2, "two runs")
    dockerd.stop()
    dockerd.start()
    wait_for(lambda: len(journal(box, "begin")) == 4, "their second attempts")
    assert all((path / "last.ckpt").exists() for path in list_runs(box.submission()))
    (box.root / "data" / "gate").touch()
    assert process.wait(90) == 0
    for path in list_runs(box.submission()):
        words = [(event["state"], event["attempt"]) for event in read_events(path)]
        assert ("lost", 1) in words and words[-1] == ("succeeded", 2)


def test_what_a_crash_left_half_written_is_put_right(lab: Lab) -> None:
    lab.plan = {"*": {"f1": 0.8}}
    assert lab.launcher("submit", lab.job(seeds(2)), lab.machine()).returncode == 0
    first, second = list_runs(lab.submission())
    (state_folder(first) / "status.json").write_text('{"state": "runn')
    with (state_folder(second) / "events.jsonl").open("ab") as file:
        file.write(b'{"time": 1, "state": "fai')
    shown = json.loads(lab.launcher("status", "--json").stdout)
    assert [run["state"] for run in shown["runs"]] == ["succeeded", "succeeded"]
    assert json.loads((state_folder(first) / "status.json").read_text())["state"] == "succeeded"
    assert lab.launcher("resume", lab.machine()).returncode == 0


def test_a_clock_that_goes_back_changes_no_order(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = lab.root / "run"
    clock = iter(range(1000, 0, -100))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    create_run(run_dir, RunRequest("run", 1, "train", []))
    for state in ("starting", "running", "lost", "queued"):
        append_event(run_dir, state)  # type: ignore[arg-type]
    assert read_status(run_dir).state == "queued"
    assert [event["state"] for event in read_events(run_dir)][-2:] == ["lost", "queued"]


def test_journals_replay_or_say_where_they_do_not() -> None:
    steps = ["queued", "starting", "running", "lost", "queued", "starting", "running", "succeeded"]
    events = [{"state": state, "attempt": 1 + (number > 3)} for number, state in enumerate(steps)]
    assert replay(events).state == "succeeded" and replay(events).attempt == 2
    with pytest.raises(RunError, match="line 2: running cannot follow queued"):
        replay([events[0], *events[2:]])
    with pytest.raises(RunError, match="line 1: starting cannot follow nothing"):
        replay(events[1:])


# -- one driver


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, seconds in (("EXPIRY", 0.6), ("BEAT", 0.1), ("SETTLE", 0.05)):
        monkeypatch.setattr(lease, name, seconds)
    yield


def elsewhere(tmp_path: Path, **more: Any) -> lease.Holder:
    word = lease.Holder("another-host", "b", 7, 4, "token", **more)
    (tmp_path / "supervisor.json").write_text(json.dumps(vars(word)))
    return word


def test_a_holder_on_another_host_that_is_gone_is_taken_over(quick: None, tmp_path: Path) -> None:
    elsewhere(tmp_path)
    said: list[str] = []
    with lease.hold(tmp_path, said.append) as mine:
        assert mine.fence == 5 and "another-host" in said[0] and lease.is_driven(tmp_path)
    after = lease.read_holder(tmp_path)
    assert after is not None and after.released and not lease.is_driven(tmp_path)


def test_a_holder_on_another_host_that_lives_is_left_alone(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "EXPIRY", 60)  # until a beat is seen, however slow the machine is

    def live(line: str) -> None:
        word = elsewhere(tmp_path)
        pid = os.fork()
        if pid == 0:
            for beat in range(1, 30):
                time.sleep(0.05)
                (tmp_path / "new").write_text(json.dumps({**vars(word), "beat": beat}))
                (tmp_path / "new").replace(tmp_path / "supervisor.json")
            os._exit(0)

    elsewhere(tmp_path)
    with pytest.raises(RunError, match="on another-host, process 7"), lease.hold(tmp_path, live):
        pass


def test_one_who_was_taken_over_writes_no_more(quick: None, tmp_path: Path) -> None:
    run_dir = tmp_path / "001-x"
    create_run(run_dir, RunRequest("001-x", 1, "train", []))
    with lease.hold(tmp_path) as mine:
        elsewhere(tmp_path)
        with pytest.raises(LeaseLostError, match="another-host"):
            mine.check()
        append_event(run_dir, "starting", fence=4)
        with pytest.raises(RunError, match="another launcher has taken over"):
            append_event(run_dir, "running", fence=mine.fence)
    after = lease.read_holder(tmp_path)
    assert after is not None and after.token == "token" and not after.released


def test_a_heartbeat_that_comes_late_is_not_written(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its host is frozen between the look at the lease and the writing, and another one takes over meanwhile."""
    looks: list[lease.Holder | None] = []

    def read(submission: Path) -> lease.Holder | None:
        looks.append(really(submission))
        if len(looks) == 1:
            elsewhere(tmp_path)
        return looks[-1]

    really = lease.read_holder
    with lease.hold(tmp_path) as mine:
        mine._ended.set()  # this thread alone writes
        mine._thread.join()
        time.sleep(0.15)
        monkeypatch.setattr(lease, "read_holder", read)
        with pytest.raises(LeaseLostError, match="another-host"):
            mine.check()
    after = really(tmp_path)
    assert after is not None and after.token == "token" and not after.released


def test_a_late_heartbeat_of_a_former_holder_unseats_nobody(quick: None, tmp_path: Path) -> None:
    elsewhere(tmp_path, released=True)
    with lease.hold(tmp_path) as mine:
        elsewhere(tmp_path, beat=9)
        mine.check()
        word = lease.read_holder(tmp_path)
        assert word is not None and (word.fence, word.token) == (5, mine.holder.token)


def test_the_heart_beats_while_it_is_looked_after(quick: None, tmp_path: Path) -> None:
    with lease.hold(tmp_path) as mine:
        time.sleep(0.15)
        mine.check()
        word = lease.read_holder(tmp_path)
        assert word is not None and word.beat >= 1
        with pytest.raises(RunError, match="another launcher is running this submission"), lease.hold(tmp_path):
            pass


def test_a_supervisor_that_is_taken_over_leaves_the_runs_alone(lab: Lab) -> None:
    lab.plan = {"*": {"until": str(lab.root / "gate")}}
    process = lab.start("submit", lab.job(seeds(2, "max_parallel: 1\n")), lab.machine())
    wait_for(lambda: lab.journal("begin"), "a run")
    elsewhere(lab.submission())
    assert process.wait(30) == 1
    assert lab.states() == {"seed0": "running", "seed1": "queued"}, "neither stopped nor started"
    assert json.loads((lab.submission() / "supervisor.json").read_text())["host"] == "another-host"
    os.kill(lab.journal("begin")[0]["pid"], signal.SIGKILL)


# -- what a review found


def test_a_trainer_whose_launcher_exec_was_killed_is_under_way_until_it_ends(lab: Lab) -> None:
    lab.plan = {"*": {"until": str(lab.root / "gate"), "stubborn": True}}
    process = lab.start("submit", lab.job(seeds(1, "retry: {on: [lost], backoff: 0s}\n")), lab.machine())
    (begin,) = wait_for(lambda: lab.journal("begin"), "a run")
    wait_for(lambda: lab.states() == {"resnet34": "running"}, "word of it")
    os.kill(lab.status("1").figures["exec_pid"], signal.SIGKILL)
    time.sleep(1)
    assert lab.states() == {"resnet34": "running"} and len(lab.journal("begin")) == 1, "it trains on: nobody else may"
    os.kill(begin["pid"], signal.SIGKILL)
    wait_for(lambda: len(lab.journal("begin")) == 2, "the second attempt")
    (lab.root / "gate").touch()
    assert process.wait(60) == 0 and lab.status("1").attempt == 2


def test_a_submission_that_was_never_finished_is_none(lab: Lab) -> None:
    assert lab.launcher("submit", lab.job(seeds(1)), lab.machine()).returncode == 0
    whole = lab.submission()
    half = lab.runs / ".new-abc"
    half.mkdir()
    (half / "submission.json").write_text((whole / "submission.json").read_text())
    assert lab.submission() == whole and list_submissions(lab.runs) == [whole]


def test_steps_of_a_resumed_submission_take_what_serves_then(lab: Lab) -> None:
    lab.plan = {"seed0": {"f1": 0.9, "bad_attempts": 1}, "seed1": {"f1": 0.5}, "vote": {"bad_attempts": 1}}
    after = "after: [{name: vote, step: ensemble, from: {top: 2}}]\n"
    assert lab.launcher("submit", lab.job(seeds(2, after)), lab.machine()).returncode == 1
    assert lab.launcher("resume", lab.machine()).returncode == 0
    first, second = (e["argv"][2:] for e in lab.journal("begin") if e["run"].endswith("vote"))
    at = lab.submission()
    assert first == [f"{at}/002-seed1/best.ckpt"]
    assert second == [f"{at}/001-seed0/best.ckpt", f"{at}/002-seed1/best.ckpt"]


def test_what_a_resumed_run_trains_with_is_put_down(lab: Lab) -> None:
    (lab.root / "data" / "train" / "a" / "1.png").write_bytes(b"1")
    lab.plan = {"*": {"bad_attempts": 1}}
    lab.launcher("submit", lab.job(seeds(1)), lab.machine())
    run_dir = find_run(lab.runs, "1")
    before = read_request(run_dir)
    (lab.root / "data" / "train" / "a" / "1.png").write_bytes(b"2")
    assert lab.launcher("resume", lab.machine()).returncode == 0
    after = read_request(run_dir)
    assert before.data and after.data not in ("", before.data) and after.code == before.code


def test_a_clock_that_was_put_back_keeps_nobody_driving(quick: None, tmp_path: Path) -> None:
    elsewhere(tmp_path)
    assert lease.is_driven(tmp_path)
    later = time.time() + 3600
    os.utime(tmp_path / "supervisor.json", (later, later))
    assert not lease.is_driven(tmp_path)


def killed_while(lab: Lab, moments: list[tuple[str, float]]) -> None:
    """Start each command and kill -9 it after so many seconds; then finish. No run may be lost or begin twice."""
    lab.plan = {"*": {"seconds": 0.2}}
    text = lab.job(seeds(4, "max_parallel: 2\n"))
    assert lab.launcher("submit", text, lab.machine(), "--detach").returncode == 0
    name = lab.submission().name
    for command, moment in moments:
        words = {"submit": (text, "--fresh", lab.machine()), "resume": (name, lab.machine()), "stop": (name,)}
        process = lab.start(command, *words.get(command, (name,)))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        process.kill()
        process.wait()
        assert process.stdout is not None and "Traceback" not in process.stdout.read()
    for submission in list_submissions(lab.runs):
        wait_for(lambda path=submission: not lease.is_driven(path), "the end of its supervisor")  # type: ignore[misc]
        done = lab.launcher("resume", submission.name, lab.machine())
        assert done.returncode == 0, done.stdout + done.stderr
        assert set(lab.states(submission).values()) == {"succeeded"}
        assert lab.launcher("collect", submission.name).returncode == 0
        for path in list_runs(submission):
            events = read_events(path)
            replay(events)
            assert [event["state"] for event in events].count("succeeded") == 1


def test_commands_that_are_killed_at_any_moment_lose_nothing(lab: Lab) -> None:
    killed_while(lab, [("stop", 0.5), ("resume", 0.9), ("collect", 0.4)])


@pytest.mark.slow
def test_commands_that_are_killed_at_twenty_moments_lose_nothing(lab: Lab) -> None:
    draw = random.Random(21)
    killed_while(lab, [(draw.choice(["submit", "resume", "collect", "stop"]), draw.uniform(0.1, 2)) for _ in range(20)])
