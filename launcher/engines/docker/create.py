"""Creates a run's container on the engine, and resolves conflicts of its name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.base.errors import EngineError
from launcher.engines import secret_files
from launcher.engines.docker import client as docker_client
from launcher.engines.docker import images, podman, recipe
from launcher.engines.docker.shared_cache import give_cache
from launcher.record.find import cache_dir
from launcher.record.request import RunRequest

if TYPE_CHECKING:
    from docker import DockerClient


_KNOWN: dict[str, images.Image] = {}
"""Images by reference: an image id never changes its meaning."""


def place(
    client: DockerClient, info: Mapping[str, Any], local: bool, request: RunRequest, run_dir: Path, attempt: int
) -> recipe.Place:
    """The place of the run's container, with its cache and secrets created. `local`: the engine is on this host.

    Raises EngineError, and OSError for files of this host.
    """
    reference, runs_root = request.image_id or request.image or "auto", run_dir.parent.parent
    image = _KNOWN.get(reference) or images.find(client, reference)
    if image is None:
        raise EngineError(
            f"the image {request.image} of its submission ({reference[7:19]}) was deleted; "
            "submit the job again: finished runs are reused"
        )
    _KNOWN[reference] = image
    if not local and any(os.environ.get(name) for name in request.secrets):
        raise EngineError(
            "secrets are files of this host, but the engine is on another host; remove secrets: from the job"
        )
    user, cache = recipe.run_user(runs_root, podman.is_rootless(info)), cache_dir(runs_root)
    if run_dir.resolve().is_relative_to(cache.resolve()):
        raise EngineError(
            f"{cache}: containers write to this cache, and the runs are in it; set CACHE_DIR to another folder"
        )
    give_cache(cache, runs_root, user)
    network = recipe.network_reason(request, os.environ, cache, image.weights) is not None
    secrets = secret_files.hand_over(request.secrets, run_dir, attempt, user if os.getuid() == 0 else None)
    return recipe.Place(image.id, image.entrypoint, user, recipe.run_groups(), cache, secrets, network)


def create(client: DockerClient, info: Mapping[str, Any], options: Mapping[str, Any]) -> tuple[str, str]:
    """Create the container of these `options` (see `recipe.options`). Returns its id and the engine's warnings, for
    example of a limit that it cannot enforce. Raises EngineError if its name is taken, and the SDK's errors."""
    from docker.errors import APIError

    api, host, freed = client.api, dict(options["host_config"]), False
    if "nano_cpus" in host:  # the engine refuses more cores than it has, and any limit that the kernel does not support
        host["nano_cpus"] = min(host["nano_cpus"], int(info.get("NCPU") or 4096) * 10**9)
        if info.get("CpuCfsQuota") is False:
            del host["nano_cpus"]
    if podman.is_podman(info):
        host["ulimits"] = [*host["ulimits"], *podman.ulimits()]
    warnings: list[str] = []
    while True:
        try:
            created = api.create_container(**{**options, "host_config": api.create_host_config(**host)})
        except APIError as error:
            if podman.is_name_taken(error) and not freed:
                _free_name(client, options)
                freed = True
            elif podman.lacks_init(error) and host.pop("init", False):
                warnings.append(f"no init reaps the container's processes; {podman.INIT}")
            else:
                raise
        else:
            return str(created["Id"]), "; ".join([*warnings, *(created.get("Warnings") or [])])


def _free_name(client: DockerClient, options: Mapping[str, Any]) -> None:
    """Remove the container that this attempt's dead launcher left. Other containers of the name are not ours."""
    standing = client.api.inspect_container(options["name"])
    labels = standing["Config"].get("Labels") or {}
    ours = labels.get(docker_client.DIRECTORY) == options["labels"][docker_client.DIRECTORY]
    if not ours or standing["State"]["Status"] in docker_client.ALIVE:
        name = options["name"]
        raise EngineError(f"a container named {name} exists already; remove it: docker rm {name}")
    remove(client, standing["Id"])


def remove(client: DockerClient, container: str) -> None:
    """Remove a container by id; does nothing if the id is empty."""
    if container:
        with suppress(Exception):  # removed already, or later by `launcher prune`
            client.api.remove_container(container, force=True, v=True)
