"""Which engine executes a job's runs, with which image, on what of this machine; and why."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from launcher import engines
from launcher.base.errors import DataFolderError, EngineError, JobError, RunError
from launcher.engines.base import Watcher
from launcher.engines.docker import images
from launcher.engines.docker.client import explain
from launcher.engines.docker.recipe import cache_dir, network_reason, run_user
from launcher.host import checks
from launcher.host.machine import Machine
from launcher.record.request import RunRequest

if TYPE_CHECKING:
    from docker import DockerClient

    from launcher.engines.docker.engine import DockerEngine


OWN = ("cpu", "cuda")
"""What a job may call the project's own images."""


@dataclass(frozen=True)
class Choice:
    """The engine, what it may use, and what to tell of it."""

    engine: Watcher
    machine: Machine
    said: str
    image: images.Image | None = None
    warnings: list[str] = field(default_factory=list)


def choose(wanted: str, image: str, machine: Machine, gpus: bool, place: str = "") -> Choice:
    """The engine for `wanted` (docker, native or auto) and a job's `image:`, which stands at `place`; `gpus`: whether
    its runs take any.

    auto is Docker where an engine and an image that matches this checkout are there, else native. Raises RunError where
    that cannot be had, and JobError where an engine answers and has not the image that the job names.
    """
    if wanted == "docker":
        return _docker(image, machine, gpus, "", place)
    if wanted == "native":
        return _native(machine, "")
    if machine.mps and gpus:
        return _native(machine, " (auto: containers cannot use MPS)")
    why = " (auto: an engine and its image are there)"
    try:
        choice = _docker(image, machine, gpus, why, place)
        assert choice.image is not None
        if gpus and not machine.declared:
            probe_gpus(engines.engine("docker").client, choice.image, list(machine.devices[:1]))  # type: ignore[attr-defined]
    except EngineError as error:
        return _native(machine, f" (auto: {error})")
    if choice.image.stale and checks.missing_packages():
        only = " (auto: native runs need packages that are not installed here)"
        return dataclasses.replace(choice, said=choice.said.removesuffix(why) + only)
    if choice.image.stale:
        renew = choice.image.build_command
        return _native(machine, f" (auto: image {choice.image.name} is older than what is here; renew it: {renew})")
    return choice


def again(engine: str, machine: Machine) -> Choice:
    """The engine that a submission was started with, for going on with it. Raises RunError."""
    if engine != "docker":
        return _native(machine, "")
    docker = _engine()
    return Choice(docker, offered(docker, machine), "containers")


def _native(machine: Machine, why: str) -> Choice:
    missing = checks.missing_packages()
    if missing:
        also = f"; or use containers{why}" if why else ""
        raise RunError(f"runs need what is not installed here: {', '.join(missing)}\nsay: {checks.INSTALL}{also}")
    return Choice(engines.engine("native"), machine, f"native processes{why}")


def _docker(image: str, machine: Machine, gpus: bool, why: str, place: str) -> Choice:
    docker = _engine()
    named = images.default_tag(image) if image in OWN else image
    try:
        found = images.resolve(docker.client, named, gpus and bool(machine.gpus))
    except EngineError as error:
        if named != "auto" and images.find(docker.client, named) is None:  # and not an engine in trouble
            raise JobError(f"{place}: image: {error}" if place else str(error)) from None
        raise
    warning = images.stale_warning(found)
    version = docker.info.get("ServerVersion", "")
    said = f"containers of {found.name}, Docker {version}{why}"
    return Choice(docker, offered(docker, machine), said, found, [warning] if warning else [])


def _engine() -> DockerEngine:
    docker: DockerEngine = engines.engine("docker")  # type: ignore[assignment]
    docker.client  # noqa: B018  # raises where no engine answers
    docker.mark()
    return docker


def offered(docker: DockerEngine, machine: Machine) -> Machine:
    """What of the machine containers can have: a Mac's engine is a virtual machine, and another host's is another."""
    if machine.declared:
        return machine
    cpus, memory = docker.info.get("NCPU") or machine.cpus, docker.info.get("MemTotal") or machine.memory
    return dataclasses.replace(
        machine, cpus=min(machine.cpus, float(cpus)), memory=min(machine.memory, int(memory)), mps=False
    )


def probe_gpus(client: DockerClient, image: images.Image, devices: list[str]) -> None:
    """Raises EngineError where the engine starts no container with these GPUs."""
    from docker.types import DeviceRequest

    request = DeviceRequest(device_ids=devices, capabilities=[["gpu", "compute", "utility"]])
    try:
        client.containers.run(
            image.id, [], entrypoint=["/bin/true"], device_requests=[request], network_mode="none", remove=True
        )
    except Exception as error:  # the SDK's errors share no base with its HTTP library's
        raise EngineError(f"the Docker engine has no GPUs: {explain(error)}") from None


def network_remarks(requests: Sequence[RunRequest], runs_root: Path, chosen: Choice) -> list[str]:
    """Which runs' containers have a network, and why."""
    if chosen.image is None:
        return []
    cache = cache_dir(runs_root)
    reasons = [network_reason(request, os.environ, cache, chosen.image.weights) for request in requests]
    why = "; ".join(dict.fromkeys(reason for reason in reasons if reason))
    return [f"{sum(map(bool, reasons))} of {len(reasons)} runs have a network: {why}"] if why else []


def check_readable(data_dir: str | None, runs_root: Path, choice: Choice) -> None:
    """Raises DataFolderError where the runs' user cannot read the data folder: root hands runs over to another user."""
    if data_dir is None or choice.image is None or os.getuid() != 0:
        return
    user = run_user(runs_root) if runs_root.is_dir() else (1000, 1000)
    stat = Path(data_dir).stat()
    bits = stat.st_mode >> (6 if stat.st_uid == user[0] else 3 if stat.st_gid == user[1] else 0)
    if user[0] and bits & 0o5 != 0o5:
        raise DataFolderError(
            f"{data_dir}: the data folder cannot be read by the runs' user {user[0]}:{user[1]} "
            f"(for root that is the owner of the runs folder, else 1000); say: chmod -R a+rX {data_dir}"
        )
