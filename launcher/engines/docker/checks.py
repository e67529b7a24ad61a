"""The Docker engine's checks of `launcher doctor`. They run a container for about 1 s."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.base.errors import EngineError
from launcher.base.sizes import GIB
from launcher.engines.docker import client as docker_client
from launcher.engines.docker import create, images, podman
from launcher.engines.docker.client import explain
from launcher.engines.docker.podman import Info
from launcher.engines.docker.recipe import run_user
from launcher.host import nvml
from launcher.host.checks import Check, Level
from launcher.host.machine import here
from trainer.base.plural import counted

if TYPE_CHECKING:
    from docker import DockerClient

Seen = dict[str, Any]
"""What a container printed about itself."""
LIMIT = 256 * 2**20
"""Memory in bytes of the container that tests whether limits are enforced."""
PATIENCE = 60
"""Timeout in seconds of the engine's answers about that container: a cold disk and a GPU's first use are slow."""
# Runs in the container and prints what it sees. Reads torch's CUDA version from a file: an import would take seconds.
_LOOK = """
import importlib.metadata, json, os, pathlib, re
def read(*names):
    for name in names:
        try:
            return int(pathlib.Path(name).read_text())
        except (OSError, ValueError):
            pass
def write(name):
    try:
        pathlib.Path(name).write_text("x")
    except OSError:
        return False
    return True
try:
    torch = importlib.metadata.distribution("torch")
    cuda = re.search(r"^cuda\\b[^=]*=\\s*'([\\d.]+)'", torch.locate_file("torch/version.py").read_text(), re.M)
except (importlib.metadata.PackageNotFoundError, OSError):
    torch = cuda = None
print(json.dumps({
    "memory": read("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"),
    "written": write("/mounted/written"),
    "outside": [name for name in ("/written", "/etc/written", "/opt/app/written") if write(name)],
    "torch": torch and torch.version,
    "cuda": cuda and cuda[1],
    "gpus": len(list(pathlib.Path("/dev").glob("nvidia[0-9]*"))),
}))
"""


def examine(runs_root: Path) -> list[Check]:
    """Checks of the engine, its images, and a test container."""
    try:
        client = docker_client.connect(timeout=5)
    except EngineError as error:
        return [Check("docker", "note", f"{error}; runs will be native processes")]
    checks: list[Check] = []
    try:
        info = client.info()
        memory, cores = int(info.get("MemTotal") or 0) / GIB, int(info.get("NCPU") or 0)
        checks.append(Check("docker", "ok", f"engine {podman.title(info)}, {counted(cores, 'core')}, {memory:.1f} GiB"))
        host = here()
        gpus = host.visible([gpu.label for gpu in host.gpus])
        checks += limit_checks(info, bool(gpus))
        if podman.why_no_gpus(info):
            gpus = []
        variants = {variant: images.find(client, images.default_tag(variant)) for variant in ("cpu", "cuda")}
        checks += _images(variants, bool(gpus))
        image = (variants["cuda"] if gpus else None) or variants["cpu"] or variants["cuda"]
        if image is not None:
            checks += _container(docker_client.connect(timeout=PATIENCE), info, image, runs_root, gpus)
    except Exception as error:  # an engine that answers little more than a ping may return anything, or nothing
        checks.append(Check("docker", "note", f"the engine reports an error: {explain(error)}"))
    return checks


def limit_checks(info: Mapping[str, Any], gpus: bool) -> list[Check]:
    """What the engine cannot do for runs, by its own description: limits, GPUs of this host (`gpus`)."""
    checks = []
    if missing := podman.unenforced(info):
        what = f"{', '.join(missing)}: not enforced by this engine ({podman.why_unenforced(info)})"
        checks.append(Check("limits", "note", what, "a rootful engine, or boot the host with cgroup v2"))
    if gpus and (why_not := podman.why_no_gpus(info)):
        checks.append(Check("gpu access", "missing", why_not, "use Docker, or --engine native; --cpu trains without"))
    return checks


def _images(variants: Mapping[str, images.Image | None], gpus: bool) -> list[Check]:
    """Whether the images for this host exist and are up to date."""
    checks = []
    for variant, image in variants.items():
        if variant == "cuda" and variants["cpu"] and not gpus:
            continue  # no run on this host would use it
        if image is None:
            level: Level = "note" if variant == "cuda" or not variants["cuda"] else "ok"
            if variant == "cpu" or gpus:
                checks.append(Check(f"image {variant}", level, "does not exist", f"launcher build {variant}"))
        elif image.stale:
            checks.append(Check(f"image {variant}", "note", "older than this checkout", image.build_command))
        elif images.stale_warning(image):
            checks.append(Check(f"image {variant}", "note", "has no label for its content", image.build_command))
        else:
            checks.append(Check(f"image {variant}", "ok", f"{image.name}, {image.size / 1e9:.2f} GB"))
    return checks


def _container(client: DockerClient, info: Info, image: images.Image, runs_root: Path, gpus: list[str]) -> list[Check]:
    seen = _look(client, info, image, runs_root, [])
    if isinstance(seen, str):
        return [Check("container", "missing", f"cannot start: {seen}", "docker run --rm hello-world")]
    checks = []
    if seen["memory"] and seen["memory"] <= LIMIT:
        checks.append(Check("memory limit", "ok", "enforced in containers"))
    elif "memory" not in podman.unenforced(info):  # else it has been said
        checks.append(Check("memory limit", "note", "not enforced by this engine", "enable the kernel's memory cgroup"))
    checks.append(mounts_check(seen, runs_root))
    if seen["warned"]:
        fix = podman.INIT if podman.INIT in seen["warned"] else ""
        checks.append(Check("container", "note", f"the engine warns: {seen['warned']}", fix))
    if not gpus:
        return checks
    with_gpus = _look(client, info, image, runs_root, gpus)
    if isinstance(with_gpus, str):
        return [*checks, Check("gpu access", "missing", with_gpus, "install the NVIDIA container toolkit")]
    if with_gpus["gpus"] < len(gpus):
        finding = f"containers see {with_gpus['gpus']} of {counted(len(gpus), 'GPU')}"
        return [*checks, Check("gpu access", "missing", finding, "nvidia-ctk runtime configure; restart the engine")]
    checks.append(Check("gpu access", "ok", f"{counted(len(gpus), 'GPU')} in containers"))
    return [*checks, cuda_check(nvml.driver_cuda(), seen["cuda"], seen["torch"])]


def mounts_check(seen: Mapping[str, Any], runs_root: Path) -> Check:
    """Whether a run's files arrive in `runs_root`, and nowhere else."""
    if not seen["written"]:
        problem = f"a run cannot write to {runs_root}"
        return Check("mounts", "missing", problem, "--runs DIR, on a disk of the engine's host")
    if not seen["arrived"]:
        problem = f"a run's files do not arrive in {runs_root}: the engine has another disk"
        return Check(
            "mounts", "missing", problem, "DOCKER_HOST of an engine on this host, or --runs DIR on a shared disk"
        )
    if seen["outside"]:
        problem = f"a run can write outside its directory: {', '.join(seen['outside'])}"
        return Check("mounts", "missing", problem, "an engine that supports read-only root file systems")
    return Check("mounts", "ok", "a run can write only to its directory")


def _look(client: DockerClient, info: Info, image: images.Image, runs_root: Path, gpus: list[str]) -> Seen | str:
    """What a container sees, or why it did not start."""
    from docker.types import DeviceRequest, Mount

    parent = next(path for path in (runs_root.resolve(), *runs_root.resolve().parents) if path.is_dir())
    requests = [DeviceRequest(device_ids=gpus, capabilities=[["gpu", "compute", "utility"]])] if gpus else []
    container = ""
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=parent) as folder:
            user = run_user(parent, podman.is_rootless(info))
            if os.getuid() == 0 and user[0]:
                os.chown(folder, *user)
            options = {
                "image": image.id, "entrypoint": ["python3"], "command": ["-c", _LOOK], "user": f"{user[0]}:{user[1]}",
                "host_config": {
                    "mem_limit": LIMIT, "memswap_limit": LIMIT, "mounts": [Mount("/mounted", folder, type="bind")],
                    "read_only": True, "cap_drop": ["ALL"], "network_mode": "none", "device_requests": requests,
                    "init": True, "ulimits": [],
                },
            }  # fmt: skip
            container, warned = create.create(client, info, options)
            client.api.start(container)
            code = client.api.wait(container)["StatusCode"]
            printed = client.api.logs(container, stdout=True, stderr=False)
            if code:
                return explain(RuntimeError(client.api.logs(container).decode(errors="replace")[-300:]))
            arrived = (Path(folder) / "written").is_file()
        return {**json.loads(printed), "arrived": arrived, "warned": warned}
    except (
        Exception
    ) as error:  # the SDK's and its HTTP library's errors have no common base; another image may print anything
        return explain(error)
    finally:
        create.remove(client, container)


def cuda_check(driver: tuple[int, int] | None, built: str | None, torch: str) -> Check:
    """Whether the host's driver supports the CUDA version (like 13.0) that the image's torch was built for.

    A driver supports every release of its own CUDA's major version and of earlier ones: NVIDIA, CUDA Compatibility
    guide, "minor version compatibility".
    """
    if built is None:
        return Check(
            "cuda", "missing", f"the image's torch {torch} is a CPU build", "launcher build cuda (no TORCH_INDEX)"
        )
    if driver is None:
        return Check(
            "cuda", "note", f"the driver does not report its CUDA version; torch {torch} was built for CUDA {built}"
        )
    ours = f"the driver supports CUDA {driver[0]}.{driver[1]}, torch {torch} was built for {built}"
    if driver[0] >= int(built.partition(".")[0]):
        return Check("cuda", "ok", ours)
    index = wheel_index(driver)
    if index is None:
        return Check("cuda", "missing", ours, "install a newer driver: no wheel of this torch supports it")
    return Check(
        "cuda", "missing", ours,
        f"install a newer driver, or: launcher build cuda --build-arg TORCH_INDEX=<PyTorch's wheel index>/{index}",
    )  # fmt: skip


def wheel_index(driver: tuple[int, int]) -> str | None:
    """Last part of the newest PyTorch wheel index whose CUDA version the driver supports (names since torch 2.7)."""
    known: list[tuple[tuple[int, int], str]] = [((13, 0), "cu130"), ((12, 8), "cu128"), ((12, 0), "cu126")]
    return next((name for least, name in known if driver >= least), None)
