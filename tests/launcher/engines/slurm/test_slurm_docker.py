"""Runs as containers inside jobs of Slurm: a real Slurm, a real Docker engine, a trainer that takes milliseconds."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from launcher.engines.slurm import task_lease
from tests.docker_engine import Dockerd
from tests.launcher.boxes import containers, job, journal
from tests.launcher.conftest import Lab, unwrapped, wait_for
from tests.slurm_cluster import Slurm


@pytest.fixture
def cluster_box(box: Lab, slurm: Slurm) -> Iterator[Lab]:
    """A box on the nodes of a Slurm."""
    box.environment |= slurm.environment
    yield box
    slurm.clear()


def test_containers_in_slurm_have_its_gpus_and_end_with_their_job(
    cluster_box: Lab, slurm: Slurm, dockerd: Dockerd, image: str
) -> None:
    box = cluster_box
    box.plan = {"*": {"seconds": 300}, "seed1": {"seconds": 0.05}}
    more = "resources: {gpus: 1, memory: 200m, cpus: 1}\nslurm: {runtime: docker}\n"
    more += "retry: {on: [lost], attempts: 2, backoff: 0}\n"
    done = box.launcher("submit", job(box, image, 2, more), "--engine", "slurm")
    assert done.returncode == 0 and f"containers of {image}" in unwrapped(done.stdout), done.stdout + done.stderr
    wait_for(lambda: box.states()["seed1"] == "succeeded", "a run")
    wait_for(lambda: box.status("seed0").state == "running" and len(journal(box, "begin")) == 2, "the other")
    status = box.status("seed0")
    (standing,) = containers(dockerd, box, everything=False)
    device = status.figures["devices"]
    assert len(device) == 1 and status.figures["container"] == standing.short_id
    (request,) = standing.attrs["HostConfig"]["DeviceRequests"]
    assert request["DeviceIDs"] == device and standing.attrs["HostConfig"]["Memory"] == 200 * 2**20
    begun = next(event for event in journal(box, "begin") if event["run"] == "001-seed0")
    assert begun["env"]["NVIDIA_VISIBLE_DEVICES"] == device[0]
    word = task_lease.read_holder(box.submission() / "001-seed0")
    assert word is not None
    os.kill(word.pid, signal.SIGKILL)  # nobody is left who could stop it
    wait_for(lambda: journal(box, "stopped"), "its last.ckpt")
    wait_for(lambda: not containers(dockerd, box, everything=False), "the container's end")
    wait_for(lambda: box.status("seed0").attempt == 2 and box.states()["seed0"] == "running", "another attempt", 90)
    wait_for(lambda: len(journal(box, "begin")) == 3, "its trainer")
    slurm.run("scancel", box.status("seed0").figures["slurm"])
    wait_for(lambda: box.states()["seed0"] == "cancelled", "scancel")
    assert box.status("seed0").reason == "cancelled in Slurm (scancel); last.ckpt is kept"
    wait_for(lambda: not slurm.busy(), "the job that collects")
    assert containers(dockerd, box) == []
    argv = [event["argv"][-1] for event in journal(box, "begin") if event["run"] == "001-seed0"]
    assert argv == ["resume=auto", "resume=auto"]
