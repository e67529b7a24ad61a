"""Runs as containers of a real Podman engine through its Docker API, and how it differs from Docker."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from docker.errors import APIError

from launcher.base.errors import EngineError
from launcher.engines.base import UnofferedError, Want
from launcher.engines.docker import builder, checks, client, create, images, leftovers, podman
from launcher.engines.docker.containers import began as began_at
from launcher.engines.docker.engine import DockerEngine
from launcher.engines.docker.watched import ContainerAttempt, ending
from launcher.host import processes
from launcher.job import spec
from launcher.record import lease
from launcher.record.find import list_runs
from launcher.record.request import RunRequest
from tests.docker_engine import BASE
from tests.launcher.boxes import MIB, containers, job, journal, one_container, submit
from tests.launcher.conftest import Lab, unwrapped, wait_for

# The same tests on the engine that this module's fixture `dockerd` starts.
from tests.launcher.engines.docker.test_docker import (  # noqa: F401
    test_memory_that_is_too_little_names_the_line_to_change,
)
from tests.podman_engine import Podman, missing


@pytest.fixture(scope="module")
def dockerd() -> Iterator[Podman]:
    """Podman, for the fixtures `box` and `image`, which are written for either engine."""
    lacking = missing()
    if lacking:
        pytest.skip(lacking)
    engine = Podman()
    engine.start()
    yield engine
    engine.close()


def test_a_job_runs_from_submit_to_the_leaderboard(box: Lab, dockerd: Podman, image: str) -> None:
    (box.root / "elsewhere").mkdir()
    (box.root / "elsewhere" / "1.jpg").touch()
    (box.root / "data" / "train" / "b").symlink_to("../../elsewhere")
    box.plan = {
        "seed0": {"f1": 0.7, "print": "error: not really", "until": "/data/train/b/1.jpg"},
        "seed1": {"leaves": {"best.ckpt": None}},
    }
    after = "after:\n  - {name: vote, step: ensemble, from: {top: 2}}\n  - {name: out, step: predict, needs: [vote]}\n"
    done = submit(box, job(box, image, 2, after))
    assert done.returncode == 1 and f"containers of {image}, Podman 4" in unwrapped(done.stdout), (
        done.stdout + done.stderr
    )
    assert box.states() == {"seed0": "succeeded", "seed1": "failed", "vote": "succeeded", "out": "succeeded"}
    assert box.status("2").reason.startswith("ended with exit code 0, but left no best.ckpt")
    assert containers(dockerd, box) == [] and "0.7000" in done.stdout
    (vote,) = (event["argv"] for event in journal(box, "begin") if event["run"] == "003-vote")
    assert vote[2:] == [f"/runs/{box.submission().name}/001-seed0/best.ckpt"]
    figures = box.status("1").figures
    assert figures["exit_code"] == 0 and figures["oom_killed"] is False and 0 < figures["seconds"] < 30
    log = (box.submission() / "001-seed0" / "log.txt").read_text().splitlines()
    assert log[0].startswith("--- attempt 1, ") and log[1:] == ["working", "error: not really"]
    assert "error: not really" in box.launcher("logs", "1").stdout


def test_a_container_is_limited_and_outlives_a_killed_launcher(box: Lab, dockerd: Podman, image: str) -> None:
    box.plan = {"*": {"until": "/data/gate", "probe": ["/", "/etc", "/data", "/runs", "/dev"]}}
    box.environment |= {"TOKEN": "hunter2-hunter2", "UNASKED": "of the host"}
    text = job(box, image, 1, "resources: {memory: 200m, cpus: 1.5, shm: 70m}\nsecrets: [TOKEN]\n")
    process = box.start("submit", text, "--engine", "docker", box.machine())
    details = one_container(dockerd, box).attrs
    host = details["HostConfig"]
    assert host["Memory"] == host["MemorySwap"] == 200 * MIB and host["NanoCpus"] == 1_500_000_000
    assert host["ShmSize"] == 70 * MIB and host["PidsLimit"] == 4096 and host["ReadonlyRootfs"] is True
    assert host["NetworkMode"] == "none" and host["SecurityOpt"] == ["no-new-privileges"] and not host["Privileged"]
    assert details["Config"]["User"] == "1000:1000"
    source = Path(next(m["Source"] for m in details["Mounts"] if m["Destination"] == "/run/secrets"))
    assert (source / "TOKEN").stat().st_uid == 1000 and "hunter2" not in json.dumps(details)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert json.loads(box.launcher("status", "--json").stdout)["state"] == "unattended"
    assert box.states() == {"resnet34": "running"}
    resumed = box.start("resume", box.machine())
    wait_for(lambda: lease.is_driven(box.submission()), "the second launcher to drive it")
    (box.root / "data" / "gate").touch()
    assert resumed.wait(60) == 0 and box.states() == {"resnet34": "succeeded"}
    assert len(journal(box, "begin")) == 1 and containers(dockerd, box) == [], "nothing ran twice"
    assert not source.exists()
    (event,) = journal(box, "begin")
    assert event["secrets"] == {"TOKEN": ["hunter2-hunter2", "0o600"]} and event["interfaces"] == ["lo"]
    assert event["uid"] == event["gid"] == 1000 and "UNASKED" not in event["env"]
    tried = json.loads((list_runs(box.submission())[0] / "probe.json").read_text())
    assert not [place for place in ("/", "/etc", "/data", "/runs", "/dev") if tried[place] == "written"], tried
    assert {tried[key] for key in ("CapEff", "CapPrm", "CapBnd", "CapInh")} == {"0" * 16} and tried["NoNewPrivs"] == "1"


def test_containers_that_end_before_their_time(box: Lab, dockerd: Podman, image: str) -> None:
    box.plan = {"*": {"until": "/data/never"}}
    text = job(box, image, 3, "resources: {cpus: 1, memory: 200m}\n")
    process = box.start("submit", text, "--engine", "docker", box.machine())
    wait_for(lambda: len(journal(box, "begin")) == 3, "the runs")
    by_run = {container.labels[client.RUN]: container for container in containers(dockerd, box)}
    by_run["001-seed0"].kill()
    by_run["002-seed1"].remove(force=True)
    wait_for(lambda: box.states() == {"seed0": "lost", "seed1": "lost", "seed2": "running"}, "word of their ends")
    assert box.status("1").reason.startswith("killed by SIGKILL from outside"), "not for lack of memory"
    assert box.status("2").reason.startswith("its container disappeared")
    assert box.launcher("stop").returncode == 0 and process.wait(60) == 130
    assert box.states()["seed2"] == "cancelled" and containers(dockerd, box) == []
    assert (box.submission() / "003-seed2" / "last.ckpt").exists()


def test_gpus_are_refused(box: Lab, dockerd: Podman, image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, machine = job(box, image), box.machine(gpus=1)
    refused = box.launcher("plan", text, "--engine", "docker", machine)
    why = "ignores requests for GPUs in its Docker API"
    assert refused.returncode == 1 and f"{why}; train on the CPU with --cpu" in refused.stderr
    monkeypatch.setenv("DOCKER_HOST", dockerd.host)
    want = Want(spec.load(box.root / text), str(box.root / "machine.yaml"))
    with pytest.raises(UnofferedError, match=why):  # so that --engine auto asks the next engine
        DockerEngine().offer(dataclasses.replace(want, auto=True))
    offered = DockerEngine().offer(dataclasses.replace(want, cpu_only=True))
    assert offered.machine.gpus == () and "Podman 4" in offered.said


def test_doctor_says_what_the_engine_can(
    dockerd: Podman, image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", dockerd.host)
    dockerd.client().images.get(image).tag("document-classifier", "cpu")
    try:
        found = {check.what: check for check in checks.examine(tmp_path)}
    finally:
        dockerd.client().images.remove("document-classifier:cpu")
    assert "Podman 4" in found["docker"].said and "limits" not in found
    for name in ("docker", "memory limit", "mounts"):
        assert found[name].level == "ok", found


def test_a_name_in_use_is_said(dockerd: Podman, image: str) -> None:
    options = {"image": image, "name": "in-use", "labels": {client.DIRECTORY: "/a"}, "host_config": {"ulimits": []}}
    engine = dockerd.client()
    standing, _ = create.create(engine, engine.info(), options)
    try:
        others = {**options, "labels": {client.DIRECTORY: "/b"}}
        with pytest.raises(EngineError, match="a container named in-use exists already; remove it: docker rm in-use"):
            create.create(engine, engine.info(), others)
        again, _ = create.create(engine, engine.info(), options)  # what a dead launcher left of this attempt
        assert again != standing
        standing = again
    finally:
        create.remove(engine, standing)


def test_the_engines_own_builder_builds_the_real_dockerfile(
    dockerd: Podman, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dockerd.base()
    monkeypatch.setenv("PATH", dockerd.environment["PATH"])  # a docker client with BuildKit is of no use
    said: list[str] = []
    built = builder.build(dockerd.client(), "cpu", BASE, {}, ["built:one", "built:two"], said.append, tree)
    try:
        assert {"built:one", "built:two"} <= set(built.tags) and built.variant == "cpu"
        assert said[1].startswith("Podman: using the engine's own builder") and built.content
        assert built.build_command == f"launcher build cpu --base {BASE} --tag {built.tags[0]}"
    finally:
        for tag in ("built:one", "built:two"):
            dockerd.client().images.remove(tag, force=True)


# -- without an engine

ROOTFUL = {
    "ID": "1b", "BuildahVersion": "1.28.2", "Name": "vm", "DockerRootDir": "/var/lib/containers/storage",
    "ServerVersion": "4.3.1", "CgroupVersion": "1", "Rootless": False, "MemoryLimit": True, "CpuCfsQuota": True,
    "PidsLimit": True, "SecurityOptions": ["name=seccomp,profile=default"],
}  # fmt: skip
ROOTLESS = {**ROOTFUL, "Rootless": True, "DockerRootDir": "/home/me/.local/share/containers/storage"}
DOCKER = {"ID": "ABCD", "ServerVersion": "28.2.2", "CgroupVersion": "2", "SecurityOptions": ["name=rootless"]}


def test_an_engine_is_known_again_whatever_id_it_invents() -> None:
    assert podman.identity(ROOTFUL) == podman.identity({**ROOTFUL, "ID": "2c"}) != podman.identity(ROOTLESS)
    assert podman.identity(DOCKER) == "ABCD" and podman.title(DOCKER) == "Docker 28.2.2"
    assert podman.title(ROOTFUL) == "Podman 4.3.1"
    assert podman.is_rootless(ROOTLESS) and podman.is_rootless(DOCKER) and not podman.is_rootless(ROOTFUL)


def test_limits_that_a_rootless_engine_ignores_are_said_whatever_it_claims() -> None:
    assert podman.unenforced(ROOTFUL) == [] and podman.unenforced(DOCKER) == []
    assert podman.unenforced(ROOTLESS) == ["memory", "cpus", "processes"]
    assert podman.unenforced({**ROOTLESS, "CgroupVersion": "2", "CpuCfsQuota": False}) == ["cpus"]
    (check,) = checks.limit_checks(ROOTLESS, gpus=False)
    assert check.level == "note" and "memory, cpus, processes: not enforced" in check.said and "cgroup v2" in check.said
    assert [check.what for check in checks.limit_checks(ROOTFUL, gpus=True)] == ["gpu access"]
    assert checks.limit_checks(DOCKER, gpus=True) == [] and podman.limit_notes(ROOTFUL) == []
    (note,) = podman.limit_notes(ROOTLESS)
    assert note.startswith(
        "note: Podman 4.3.1 does not enforce the limits of memory, cpus, processes (a rootless engine"
    )


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-11-24T12:00:00.123456789Z", 1795521600.123456789),
        ("2026-11-24T14:00:00.123456789+02:00", 1795521600.123456789),
        ("2026-11-24T06:30:00.5-05:30", 1795521600.5),
        ("2026-11-24T12:00:00Z", 1795521600),
        ("0001-01-01T00:00:00Z", 0),
        ("0001-01-01T00:00:00+02:00", 0),
        ("", 0),
        ("yesterday", 0),
    ],
)
def test_times_have_any_offset(text: str, seconds: float) -> None:
    assert client.seconds(text) == pytest.approx(seconds, abs=1e-6)


def test_a_run_lasts_as_long_in_any_time_zone(tmp_path: Path) -> None:
    attempt = ContainerAttempt(tmp_path, 1, RunRequest("001-a", 1, "train", []))
    state = {"ExitCode": 1, "OOMKilled": False, "StartedAt": "2026-11-24T14:00:00.5+02:00"}
    for ended, seconds in (("2026-11-24T14:01:00.5+02:00", 60.0), ("2026-11-24T12:01:00.5Z", 60.0)):
        assert ending(attempt, {**state, "FinishedAt": ended}, False)[2]["seconds"] == seconds
    assert ending(attempt, {**state, "FinishedAt": "2026-11-24T14:00:00.4+02:00"}, False)[2]["seconds"] == 0
    assert ending(attempt, {**state, "FinishedAt": "0001-01-01T00:00:00Z"}, False)[2]["seconds"] is None


def test_a_clock_that_is_set_changes_no_time_limit_of_an_adopted_container(monkeypatch: pytest.MonkeyPatch) -> None:
    began = "2026-11-24T12:00:00Z"
    monkeypatch.setattr(time, "time", lambda: client.seconds(began) + 7200)
    figures = {"boot": processes.boot(), "uptime": processes.uptime() - 60}
    assert time.monotonic() - began_at(figures, began) == pytest.approx(60, abs=5)
    for other in ({}, {**figures, "boot": "an earlier boot"}):
        assert time.monotonic() - began_at(other, began) == pytest.approx(7200, abs=5)
    assert began_at({}, "0001-01-01T00:00:00Z") == 0


def test_a_container_that_is_stopping_is_not_over(tmp_path: Path) -> None:
    labels = {client.DIRECTORY: "/a"}
    standing = {"Id": "c0", "Config": {"Labels": labels}, "State": {"Status": "stopping", "Running": False}}
    engine: Any = SimpleNamespace(api=SimpleNamespace(inspect_container=lambda name: standing))
    with pytest.raises(EngineError, match="exists already"):
        create._free_name(engine, {"name": "x", "labels": labels})
    container: Any = SimpleNamespace(name="x", status="stopping", labels=labels)
    remarks: list[str] = []
    assert leftovers._why_left(container, tmp_path / "gone", remarks) is None
    assert len(remarks) == 1 and "container x is stopping" in remarks[0]


def test_the_time_of_an_image_is_told_in_utc() -> None:
    config: dict[str, Any] = {"Labels": {}}
    image = images.describe({"Id": "sha256:1", "Config": config, "Created": "2026-11-24T14:00:00.1+02:00"})
    assert image.created == "2026-11-24T12:00:00"


class WithoutInit:
    """An API whose engine has no init: it refuses a container as Podman 4.3 does."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.api = self

    def create_host_config(self, **host: Any) -> dict[str, Any]:
        return host

    def create_container(self, host_config: dict[str, Any], **more: Any) -> dict[str, Any]:
        self.asked.append(host_config)
        if host_config.get("init"):
            raise APIError(
                "500", None, "container-init binary not found on the host: stat /usr/libexec/podman/catatonit"
            )
        return {"Id": "c0", "Warnings": None}


def test_a_podman_without_init_runs_containers_and_says_what_to_install() -> None:
    engine = WithoutInit()
    made = create.create(engine, ROOTFUL, {"host_config": {"init": True, "ulimits": []}})  # type: ignore[arg-type]
    assert made == ("c0", "no init reaps the container's processes; install Podman's init: apt-get install catatonit")
    assert [host.get("init") for host in engine.asked] == [True, None]
    assert {limit["Name"] for limit in engine.asked[0]["ulimits"]} == {"nofile", "nproc"}


def test_limits_that_the_engine_may_not_set_name_the_setting() -> None:
    error = RuntimeError("runc: error setting rlimits for ready process: error setting rlimit type 7: not permitted")
    assert "containers.conf" in client.explain(error) and "default_ulimits" in client.explain(error)
