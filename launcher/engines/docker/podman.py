"""Podman's Docker API: what an engine is, and how Podman differs from Docker. Pure functions of the engine's `info`.

Known differences of Podman 4.3, each covered by a test: its id changes with every call, its default limits may exceed
what it may set, it may have no init, it ignores requests for GPUs, and a rootless one on cgroup v1 ignores limits.
"""

from __future__ import annotations

import resource
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from docker.types import Ulimit

Info = Mapping[str, Any]
INIT = "install Podman's init: apt-get install catatonit"


def is_podman(info: Info) -> bool:
    """Whether the engine is Podman."""
    return "BuildahVersion" in info


def title(info: Info) -> str:
    """The engine's name and version for messages."""
    return f"{'Podman' if is_podman(info) else 'Docker'} {info.get('ServerVersion') or ''}".strip()


def identity(info: Info) -> str:
    """An id of the engine that stays the same: the journal names it with each run.

    Podman invents an `ID` for each call, so its host and the folder of its containers identify it.
    """
    if is_podman(info):
        return f"podman:{info.get('Name', '')}:{info.get('DockerRootDir', '')}"
    return str(info.get("ID", ""))


def is_rootless(info: Info) -> bool:
    """Whether root in its containers is the engine's user outside. Podman does not list it as a security option."""
    return bool(info.get("Rootless")) or any("name=rootless" in word for word in info.get("SecurityOptions") or [])


def unenforced(info: Info) -> list[str]:
    """The limits that the engine does not enforce: `memory`, `cpus`, `processes`."""
    if is_rootless(info) and str(info.get("CgroupVersion")) == "1":
        return ["memory", "cpus", "processes"]  # whatever else it says: Podman reports the controllers of the host
    flags = {"memory": "MemoryLimit", "cpus": "CpuCfsQuota", "processes": "PidsLimit"}
    return [limit for limit, flag in flags.items() if info.get(flag) is False]


def limit_notes(info: Info) -> list[str]:
    """The note for a user whose runs' limits the engine does not enforce."""
    missing = unenforced(info)
    if not missing:
        return []
    limits = f"the limit{'s' * (len(missing) > 1)} of {', '.join(missing)}"
    return [f"note: {title(info)} does not enforce {limits} ({why_unenforced(info)}); runs are still scheduled by them"]


def why_unenforced(info: Info) -> str:
    """Why, and what would help."""
    if is_rootless(info):
        return "a rootless engine needs cgroup v2 with delegated controllers"
    return "the kernel's control groups lack them"


def why_no_gpus(info: Info) -> str | None:
    """Why containers of the engine get no GPUs; None if they may."""
    if is_podman(info):
        return f"{title(info)} ignores requests for GPUs in its Docker API"
    return None


def ulimits() -> list[Ulimit]:
    """The limits of open files and processes for Podman's containers: those of this process.

    Podman's own default is 1048576 open files, which it may not be allowed to set.
    """
    from docker.types import Ulimit

    most = {"nofile": 2**20, "nproc": 2**22}
    with suppress(OSError, ValueError):  # Podman lowers its own limit to this number
        most["nproc"] = int(Path("/proc/sys/kernel/pid_max").read_text())
    kinds = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
    limits = []
    for name, kind in kinds.items():
        own = resource.getrlimit(kind)[1]
        hard = most[name] if own == resource.RLIM_INFINITY else min(own, most[name])
        limits.append(Ulimit(name=name, soft=hard, hard=hard))
    return limits


def lacks_init(error: Exception) -> bool:
    """Whether the engine refused a container because its init program is not installed."""
    text = str(getattr(error, "explanation", None) or error)
    return "init" in text and ("catatonit" in text or "container-init" in text) and "not found" in text


def is_name_taken(error: Exception) -> bool:
    """Whether another container has the name. Podman answers with the code of an internal error."""
    text = str(getattr(error, "explanation", None) or error)
    return getattr(error, "status_code", None) == 409 or "name is already in use" in text


def plain_name(tag: str) -> str:
    """An image's name without the registry that Podman puts before local names."""
    for registry in ("localhost/", "docker.io/library/"):
        tag = tag.removeprefix(registry)
    return tag
