"""Runs as containers when the launcher, the engine or the disk fails: what waits goes on, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from launcher.engines import registry
from launcher.host import account, gpu_locks
from launcher.record.find import find_run, list_runs
from launcher.record.folders import state_folder
from launcher.record.journal import read_events
from launcher.record.locks import run_locked
from tests.docker_engine import Dockerd
from tests.launcher.boxes import containers, job, journal, one_container, submit
from tests.launcher.conftest import Lab, wait_for


@pytest.mark.parametrize(
    ("command", "reason"), [("kill", "killed by SIGKILL from outside"), ("rm", "its container disappeared")]
)
def test_a_container_that_somebody_ends_is_lost(
    box: Lab, dockerd: Dockerd, image: str, command: str, reason: str
) -> None:
    box.plan = {"*": {"until": "/data/never"}}
    process = box.start("submit", job(box, image), "--engine", "docker", box.machine())
    container = one_container(dockerd, box)
    container.kill() if command == "kill" else container.remove(force=True)
    assert process.wait(60) == 1
    assert box.status("1").state == "lost" and box.status("1").reason.startswith(reason)


def test_containers_outlive_a_killed_launcher_and_are_adopted(box: Lab, dockerd: Dockerd, image: str) -> None:
    box.plan = {"seed0": {"until": "/data/first"}, "*": {"until": "/data/second"}}
    text = job(box, image, 3, "max_parallel: 2\n")
    process = box.start("submit", text, "--engine", "docker", box.machine())
    wait_for(lambda: len(journal(box, "begin")) == 2, "two runs")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    relative = os.path.relpath(box.runs, box.root)
    assert json.loads(box.launcher("status", "--json", "--runs", relative).stdout)["state"] == "unattended"
    assert box.states() == {"seed0": "running", "seed1": "running", "seed2": "queued"}
    (box.root / "data" / "first").touch()  # one ends while nobody looks
    wait_for(lambda: journal(box, "end"), "its end")
    wait_for(lambda: '"succeeded"' in box.launcher("status", "--json").stdout, "status finds out how it ended")
    assert box.states() == {"seed0": "succeeded", "seed1": "running", "seed2": "queued"}
    refused = box.launcher("exec", str(find_run(box.runs, "2")))
    assert refused.returncode == 1 and "in progress in a container" in refused.stderr
    resumed = box.start("resume", box.machine())
    wait_for(lambda: box.states()["seed2"] == "running", "the queue to go on")
    (box.root / "data" / "second").touch()
    assert resumed.wait(60) == 0
    assert len(journal(box, "begin")) == 3 and containers(dockerd, box) == [], "nothing ran twice"


def waits(box: Lab) -> str | None:
    """Why queued runs wait, as `status` says it."""
    status = json.loads(box.launcher("status", "--json").stdout)
    assert all(run["reason"] for run in status["runs"] if run["state"] == "queued") or not status["waits"]
    reason: str | None = status["waits"]
    return reason


def killed_and_waited_for(
    box: Lab, process: subprocess.Popen[str], text: str, machine: str
) -> tuple[Path, subprocess.Popen[str]]:
    """Kill the launcher whose containers have the GPU: its submission, and a launcher that waits for that GPU."""
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    first = box.submission()
    assert gpu_locks.holder("gpu0") is None, "its lock died with it"
    second = box.start("submit", text, "--engine", "docker", machine)
    assert second.stdout is not None
    wait_for(lambda: "waiting: GPU 0 is held by " + first.name in (second.stdout.readline() or ""), "word of the wait")
    return first, second


def test_a_gpu_whose_launcher_was_killed_stays_taken(box: Lab, dockerd: Dockerd, image: str) -> None:
    box.plan = {"*": {"until": "/data/gate"}}
    text, machine = job(box, image), box.machine(gpus=1)
    process = box.start("submit", text, "--engine", "docker", machine)
    container = one_container(dockerd, box)
    (request,) = container.attrs["HostConfig"]["DeviceRequests"]
    assert request["DeviceIDs"] == ["0"] and set(request["Capabilities"][0]) == {"gpu", "compute", "utility"}
    assert request["Count"] == 0
    _, second = killed_and_waited_for(box, process, text, machine)
    time.sleep(1)
    assert len(journal(box, "begin")) == 1
    (box.root / "data" / "gate").touch()
    assert second.wait(60) == 0


def test_memory_of_a_container_whose_launcher_was_killed_stays_taken(box: Lab, dockerd: Dockerd, image: str) -> None:
    """By its engine, also for native runs; the launcher that adopts it holds its share again."""
    box.plan = {"*": {"until": "/data/gate"}}
    text, machine = job(box, image, 1, "resources: {memory: 40g, cpus: 1}\n"), box.machine()
    process = box.start("submit", text, "--engine", "docker", machine)
    wait_for(lambda: journal(box, "begin"), "a run")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    first = box.submission()
    second = box.start("submit", text, "--engine", "docker", machine)
    word = f"waiting: it needs 40 GiB of memory; 40 GiB of 64 GiB are used by {first.name}/"
    assert second.stdout is not None
    wait_for(lambda: word in (second.stdout.readline() or ""), "word of the wait")
    assert [share.locked for share in account.shares()] == [False]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", box.environment["DOCKER_HOST"])
        asked = registry.engine("docker")
        assert asked.still_runs({str(first / "x"), *(str(path) for path in first.iterdir())}) == {
            str(path) for path in list_runs(first)
        }
    resumed = box.start("resume", first.name, machine)
    wait_for(lambda: [share.locked for share in account.shares()] == [True], "its share to be held again")
    assert len(journal(box, "begin")) == 1
    (box.root / "data" / "gate").touch()
    assert resumed.wait(60) == 0 and second.wait(60) == 0
    assert account.shares() == []


def test_containers_that_share_a_gpu_keep_it_after_their_launcher_was_killed(
    box: Lab, dockerd: Dockerd, image: str
) -> None:
    box.plan = {"*": {"until": "/data/gate"}}
    text = job(box, image, 2, "resources: {share_gpu: true, gpu_memory: 10g, cpus: 1}\n")
    (box.root / "machine.yaml").write_text("{gpus: [{memory: 24g}], cpus: 16, memory: 64g}")
    machine = "--machine=machine.yaml"
    process = box.start("submit", text, "--engine", "docker", machine)
    wait_for(lambda: len(journal(box, "begin")) == 2, "two runs on one GPU")
    for event in journal(box, "begin"):
        assert event["env"]["DEVICE_MEMORY_LIMIT"] == str(10 * 2**30) and event["env"]["NVIDIA_VISIBLE_DEVICES"] == "0"
    first, second = killed_and_waited_for(box, process, text, machine)
    resumed = box.start("resume", first.name, machine)
    wait_for(lambda: gpu_locks.holder("gpu0") == f"{first.name} (runs that share it)", "the lock to be taken again")
    held = [
        gpu_locks.acquire_for("gpu0", first / "001-seed0", True),
        gpu_locks.acquire_for("gpu0", box.submission() / "x", True),
    ]
    assert held[0] is not None and held[1] is None
    held[0].close()
    assert len(journal(box, "begin")) == 2
    (box.root / "data" / "gate").touch()
    assert resumed.wait(60) == 0 and second.wait(60) == 0


def test_an_engine_that_stops_answering_is_waited_for(box: Lab, dockerd: Dockerd, image: str) -> None:
    box.plan = {"*": {"until": "/data/gate"}}
    process = box.start("submit", job(box, image), "--engine", "docker", box.machine())
    one_container(dockerd, box)
    dockerd.signal(signal.SIGSTOP)
    try:
        assert process.stdout is not None
        wait_for(lambda: "does not answer" in (process.stdout.readline() or ""), "word of it", 120)  # type: ignore[union-attr]
        assert box.states() == {"resnet34": "running"}
        (box.root / "data" / "gate").touch()
        wait_for(lambda: journal(box, "end"), "the run to end by itself")
    finally:
        dockerd.signal(signal.SIGCONT)
    assert process.wait(90) == 0 and box.states() == {"resnet34": "succeeded"}


def test_an_engine_that_dies_takes_its_runs_along_and_resume_goes_on(box: Lab, dockerd: Dockerd, image: str) -> None:
    box.plan = {"*": {"until": "/data/gate"}}
    process = box.start("submit", job(box, image), "--engine", "docker", box.machine())
    one_container(dockerd, box)
    dockerd.stop()  # asks containers to end first, as a reboot does
    try:
        wait_for(lambda: journal(box, "stopped"), "the trainer to write its checkpoint")
        offline = box.launcher("status")
        assert offline.returncode == 0 and "001-resnet34" in offline.stdout
    finally:
        dockerd.start()
    assert process.wait(90) == 1
    assert box.states() == {"resnet34": "lost"} and "last.ckpt is kept" in box.status("1").reason
    (box.root / "data" / "gate").touch()
    assert box.launcher("resume", box.machine()).returncode == 0 and box.states() == {"resnet34": "succeeded"}


def test_an_engine_that_goes_away_fails_nothing_that_waits(box: Lab, dockerd: Dockerd, image: str) -> None:
    box.plan = {"*": {"until": "/data/gate"}}
    text = job(box, image, 4, "max_parallel: 2\nretry: {on: [lost], backoff: 0s}\n")
    process = box.start("submit", text, "--engine", "docker", box.machine())
    wait_for(lambda: len(journal(box, "begin")) == 2, "two runs")
    dockerd.stop()
    try:
        assert process.stdout is not None
        wait_for(lambda: "does not answer" in (process.stdout.readline() or ""), "word of it")  # type: ignore[union-attr]
        wait_for(lambda: "does not answer" in (waits(box) or ""), "the reason where others read it")
        time.sleep(3)
        assert "failed" not in box.states().values() and process.poll() is None
    finally:
        dockerd.start()
    (box.root / "data" / "gate").touch()
    process.communicate(timeout=90)
    assert process.returncode == 0 and set(box.states().values()) == {"succeeded"}


@pytest.mark.slow
def test_a_stop_that_the_engine_did_not_hear_is_asked_for_again(box: Lab, dockerd: Dockerd, image: str) -> None:
    box.plan = {"*": {"until": "/data/never"}}
    process = box.start("submit", job(box, image), "--engine", "docker", box.machine())
    one_container(dockerd, box)
    dockerd.signal(signal.SIGSTOP)
    try:
        process.send_signal(signal.SIGINT)
        time.sleep(70)  # longer than the launcher waits for the engine's answer
    finally:
        dockerd.signal(signal.SIGCONT)
    assert process.wait(90) == 130 and box.states() == {"resnet34": "cancelled"}
    assert journal(box, "stopped")


@pytest.mark.parametrize("moment", ["created", "started"])
def test_a_container_whose_launcher_died_while_it_started_it(
    box: Lab, dockerd: Dockerd, image: str, moment: str
) -> None:
    """As the launcher leaves it when it is killed just before, or just after, the engine starts the container."""
    box.plan = {"*": {"until": "/data/gate"}}
    process = box.start("submit", job(box, image), "--engine", "docker", box.machine())
    found = one_container(dockerd, box)
    process.kill()
    process.wait()
    run_dir = find_run(box.runs, "1")
    lines = (state_folder(run_dir) / "events.jsonl").read_text().splitlines()
    assert '"running"' in lines[-1]
    (state_folder(run_dir) / "events.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    if moment == "created":
        labels, name = found.labels, found.name
        found.remove(force=True)
        dockerd.client().containers.create(image, name=name, labels=labels)
    (box.root / "data" / "gate").touch()
    assert box.launcher("resume", box.machine()).returncode == 0
    assert box.states() == {"resnet34": "succeeded"} and containers(dockerd, box) == []
    assert len(journal(box, "begin")) == (2 if moment == "created" else 1)
    assert box.status("1").attempt == 1, "a container that was never started is no attempt"


def test_a_container_waits_for_the_runs_lock_and_can_be_stopped(box: Lab, dockerd: Dockerd, image: str) -> None:
    box.plan = {"*": {"bad_attempts": 1, "bad_exit": 3}}
    assert submit(box, job(box, image)).returncode == 1
    box.environment["FAKE_PATIENCE"] = "0.5"
    run_dir = box.submission() / "001-resnet34"
    with run_locked(run_dir) as mine:
        assert mine is not None
        process = box.start("resume", box.machine())
        events = wait_for(lambda: len(found := read_events(run_dir)) > 6 and found, "another start")[4:]
        assert [event["state"] for event in events[:3]] == ["queued", "starting", "queued"]
        assert f"waits for the run's lock, which process {os.getpid()} (" in events[2]["reason"]
        assert {event["attempt"] for event in events} == {2}
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130 and box.states() == {"resnet34": "cancelled"}
    assert len(journal(box, "begin")) == 1


def test_a_full_disk_loses_nothing(box: Lab, dockerd: Dockerd, image: str) -> None:
    box.plan = {"*": {"until": "/data/gate"}}
    box.runs.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(box.runs)], check=True)
    try:
        text = job(box, image, 2, "max_parallel: 1\n")
        process = box.start("submit", text, "--engine", "docker", box.machine())
        one_container(dockerd, box)
        filler = box.runs / "filler"
        with pytest.raises(OSError, match="No space"), filler.open("wb") as file:
            while True:
                file.write(b"x" * 512)
                file.flush()
        (box.root / "data" / "gate").touch()
        assert process.stdout is not None
        said = [process.stdout.readline()]
        while said[-1] and "no space left" not in said[-1]:
            said.append(process.stdout.readline())
        assert "queued runs wait until" in said[-1]
        wait_for(lambda: not containers(dockerd, box, everything=False), "the first to end")
        time.sleep(1)
        assert box.states()["seed1"] == "queued" and process.poll() is None
        assert (waits(box) or "").startswith(f"{box.runs}: no space left (")
        filler.unlink()
        process.communicate(timeout=60)
        # The first may have met the full disk itself; what must not be is a run without an end.
        assert box.states()["seed0"] in ("succeeded", "failed") and box.states()["seed1"] == "succeeded"
    finally:
        subprocess.run(["umount", "--lazy", str(box.runs)], check=True)
