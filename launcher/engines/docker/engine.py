"""The Docker engine: its offer to a job, its checks of doctor, and the items that prune may delete."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.base.errors import DataFolderError, EngineError, JobError
from launcher.engines.base import Choice, SupervisedEngine, UnofferedError, Want, Waste
from launcher.engines.docker import checks, client, data_links, image_marks, images, leftovers, podman
from launcher.engines.docker.client import explain
from launcher.engines.docker.connection import Connection
from launcher.engines.docker.containers import NAME, Containers
from launcher.engines.docker.recipe import DATA, network_reason, refuse_exchangeable, run_user
from launcher.host.checks import Check, missing_packages
from launcher.host.gpu_locks import GpuLock
from launcher.host.machine import Machine
from launcher.record.find import cache_dir
from launcher.record.journal import Status
from launcher.record.request import RunRequest
from trainer.base import cgroup
from trainer.base.plural import counted

if TYPE_CHECKING:
    from docker import DockerClient

    from launcher.job.spec import Job

OWN = ("cpu", "cuda")
"""Names for the project's own images in a job."""


class DockerEngine(SupervisedEngine):
    """See `SupervisedEngine`."""

    name = NAME
    where = "in a container"
    inherits_locks = False

    def __init__(self) -> None:
        self.connection = Connection()
        self.containers = Containers(self.connection)
        self._patient: DockerClient | None = None
        self._silent = False
        self._memory_files: dict[str, list[Path]] = {}

    @property
    def trouble(self) -> str | None:
        """See `Engine.trouble`."""
        return self.containers.trouble

    # -- before a submission is created

    def offer(self, want: Want) -> Choice:
        """See `Engine.offer`. `--engine auto` uses it if its image matches this checkout, or no trainer is here.

        If the job names an image that does not exist, no other engine is tried."""
        machine = want.host()
        gpus = want.takes_gpus(machine)
        if want.auto and machine.mps and gpus:
            raise UnofferedError("containers cannot use MPS")
        try:
            self.mark()  # raises if no engine answers
            if gpus and (why_not := podman.why_no_gpus(self.connection.info)):
                raise EngineError(
                    f"{why_not}; train on the CPU with --cpu, without containers with --engine native, or use Docker"
                )
            image = _image(self.connection.client, want, gpus and bool(machine.gpus))
            if want.auto and gpus and not machine.declared:
                probe_gpus(self.connection.client, image, machine.visible(machine.devices[:1]))
        except EngineError as error:
            if want.auto:
                raise UnofferedError(str(error)) from None
            raise
        why = "an engine and its image exist"
        if want.auto and image.stale:
            if not missing_packages():
                command = image.build_command
                raise UnofferedError(f"image {image.name} is older than this checkout; build it again: {command}")
            why = "native runs need packages that are not installed here"
        warning, title = images.stale_warning(image), podman.title(self.connection.info)
        return Choice(
            self, self._offered(machine), f"containers of {image.name}, {title}", image,
            [warning] if warning else [], contained=True, why=why,
        )  # fmt: skip

    def again(self, machine: Machine) -> Choice:
        """See `Engine.again`."""
        self.mark()  # raises if no engine answers
        return Choice(self, self._offered(machine), "containers", contained=True)

    def _offered(self, machine: Machine) -> Machine:
        """The machine as containers see it: on a Mac a virtual machine, and with a remote engine another host."""
        info = self.connection.info
        if podman.why_no_gpus(info):
            machine = dataclasses.replace(machine, gpus=())
        if machine.declared:
            return machine
        cpus, memory = info.get("NCPU") or machine.cpus, info.get("MemTotal") or machine.memory
        return dataclasses.replace(
            machine, cpus=min(machine.cpus, float(cpus)), memory=min(machine.memory, int(memory)), mps=False
        )

    def check_data(self, data_dir: str, runs_root: Path) -> list[str]:
        """See `Engine.check_data`. If the launcher is root, its runs have another user; and links may lead where
        containers see nothing."""
        check_access(data_dir, runs_root)
        check_cache(runs_root, data_dir)
        return data_links.notes(data_dir)

    def completed(self, requests: Sequence[RunRequest], job: Job, choice: Choice) -> list[RunRequest]:
        """See `Engine.completed`: with the targets of links in the data."""
        return data_links.added(requests)

    def created(self, submission: Path) -> None:
        """See `Engine.created`: `prune` of other runs folders leaves the image alone."""
        image_marks.mark(self.connection.client, submission)

    def remarks(self, requests: Sequence[RunRequest], runs_root: Path, choice: Choice) -> list[str]:
        """See `Engine.remarks`: limits that do not hold; which runs' containers have a network, and why."""
        weights = choice.image.weights if choice.image is not None else ""
        cache = cache_dir(runs_root)
        reasons = [network_reason(request, os.environ, cache, weights) for request in requests]
        why = "; ".join(dict.fromkeys(reason for reason in reasons if reason))
        count = sum(map(bool, reasons))
        have = "has" if count == 1 else "have"
        network = [f"{count} of {counted(len(reasons), 'run')} {have} a network: {why}"] if why else []
        return podman.limit_notes(self.connection.info) + network

    # -- runs

    def mark(self) -> dict[str, Any]:
        """See `SupervisedEngine.mark`. Raises EngineError if no engine answers."""
        return self.containers.mark()

    def start(self, run_dir: Path, attempt: int, devices: Sequence[str], held: Sequence[GpuLock]) -> None:
        """See `SupervisedEngine.start`."""
        self.containers.start(run_dir, attempt, devices, held)

    def poll(self, run_dir: Path) -> bool:
        """See `SupervisedEngine.poll`."""
        return self.containers.poll(run_dir)

    def settle(self, run_dir: Path) -> bool:
        """See `Engine.settle`."""
        return self.containers.settle(run_dir)

    def stop(self, run_dir: Path) -> None:
        """See `Engine.stop`."""
        self.containers.stop(run_dir)

    def kill(self, run_dir: Path) -> None:
        """See `Engine.kill`."""
        self.containers.kill(run_dir)

    def wait(self, seconds: float) -> None:
        """See `SupervisedEngine.wait`."""
        self.containers.wait(seconds)

    def taken(self) -> dict[str, str]:
        """See `SupervisedEngine.taken`."""
        return self.containers.taken()

    def ready(self) -> bool:
        """See `SupervisedEngine.ready`."""
        return self.containers.ready()

    def close(self) -> None:
        """See `SupervisedEngine.close`."""
        self.containers.close()

    def host_memory(self, run_dir: Path, status: Status) -> int | None:
        """See `Engine.host_memory`: the peak of the container's control group, including file caches."""
        container = str(status.figures.get("container") or "")
        if container not in self._memory_files:
            self._memory_files[container] = []
            with suppress(Exception):  # no engine, or one on another host
                inspected = client.connect(timeout=3).api.inspect_container(container)
                self._memory_files[container] = cgroup.peak_files(int(inspected["State"]["Pid"]))
        sizes = [size for path in self._memory_files[container] if (size := cgroup.number(path)) is not None]
        return max(sizes, default=None)

    def holds(self) -> dict[str, str]:
        """See `Engine.holds`."""
        with suppress(Exception):  # the memory in use on the GPU is checked anyway
            if (connected := self._for_others()) is not None:
                return client.devices_in_use(connected)
        return {}

    def still_runs(self, directories: Collection[str]) -> set[str] | None:
        """See `Engine.still_runs`."""
        with suppress(Exception):
            if (connected := self._for_others()) is not None:
                return client.running(connected) & set(directories)
        return None

    def _for_others(self) -> DockerClient | None:
        """A client for questions of other engines. If no engine answers there are no containers, and it is not asked
        again."""
        if self._patient is None and not self._silent:
            try:
                self._patient = client.connect(timeout=3)
            except EngineError:
                self._silent = True
        return self._patient

    # -- commands

    def checks(self, runs_root: Path) -> list[Check]:
        """See `Engine.checks`."""
        return checks.examine(runs_root)

    def needs_no_packages(self, checks: Sequence[Check]) -> bool:
        """See `Engine.needs_no_packages`: whether the containers' files arrive here."""
        return any((check.what, check.level) == ("mounts", "ok") for check in checks)

    def waste(self, runs_root: Path, remarks: list[str]) -> list[Waste]:
        """See `Engine.waste`: leftover containers, replaced images."""
        return leftovers.find(runs_root, remarks)


def check_access(data_dir: str, runs_root: Path) -> None:
    """Raises DataFolderError if the runs' user cannot read the data folder."""
    if os.getuid() != 0:
        return
    user = run_user(runs_root) if runs_root.is_dir() else (1000, 1000)
    stat = Path(data_dir).stat()
    bits = stat.st_mode >> (6 if stat.st_uid == user[0] else 3 if stat.st_gid == user[1] else 0)
    if user[0] and bits & 0o5 != 0o5:
        raise DataFolderError(
            f"{data_dir}: the runs' user {user[0]}:{user[1]} cannot read the data folder "
            f"(for root that is the owner of the runs folder, else 1000); run: chmod -R a+rX {data_dir}"
        )


def check_cache(runs_root: Path, data_dir: str) -> None:
    """Raises DataFolderError if containers could write to the runs folder or the data through the cache that they
    share, or exchange the data."""
    cache = cache_dir(runs_root)
    for folder, what in ((runs_root, "the runs folder"), (Path(data_dir), "the data folder")):
        if folder.resolve().is_relative_to(cache.resolve()):
            raise DataFolderError(
                f"{cache}: containers write to this cache, and {what} {folder} is in it; set another CACHE_DIR"
            )
    refuse_exchangeable(data_dir, cache, "the data folder")
    for target in data_links.links(str(Path(data_dir).resolve()), DATA).mounts.values():
        refuse_exchangeable(target, cache, "a link of the data")


def _image(client: DockerClient, want: Want, gpus: bool) -> images.Image:
    """The image of the job. Raises EngineError, and JobError if the engine works but does not have the image."""
    image = want.job.spec.image
    named = images.default_tag(image) if image in OWN else image
    try:
        return images.resolve(client, named, gpus)
    except EngineError as error:
        if (
            named != "auto" and images.find(client, named) is None
        ):  # the image is missing, and the engine is not failing
            raise JobError(f"{want.job.document.place(('image',))}: image: {error}") from None
        raise


def probe_gpus(client: DockerClient, image: images.Image, devices: list[str]) -> None:
    """Raises EngineError if the engine cannot start a container with these GPUs."""
    from docker.types import DeviceRequest

    request = DeviceRequest(device_ids=devices, capabilities=[["gpu", "compute", "utility"]])
    try:
        client.containers.run(
            image.id, [], entrypoint=["/bin/true"], device_requests=[request], network_mode="none", remove=True
        )
    except Exception as error:  # errors of the SDK and its HTTP library have no common base
        raise EngineError(f"the Docker engine cannot use the GPUs: {explain(error)}") from None
