"""Leftovers of runs on the Docker engine: containers of runs that have ended, and images without a name."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from launcher.base.errors import EngineError, RunError
from launcher.engines import registry
from launcher.engines.base import Waste
from launcher.engines.docker import client as docker_client
from launcher.engines.docker import image_marks, images
from launcher.engines.docker.client import explain
from launcher.record.folders import REQUEST, state_folder
from launcher.record.journal import read_status
from launcher.record.locks import is_run_locked
from launcher.record.states import ENDED, UNKNOWN

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

_T = TypeVar("_T")
REMOVAL = 300
"""Timeout of each removal in seconds: gigabytes of layers on a slow disk take long."""


def find(runs_root: Path, remarks: list[str]) -> list[Waste]:
    """Everything that may be deleted. Adds to `remarks` what could not be checked. Deletes nothing."""
    waste: list[Waste] = []
    try:
        client = docker_client.connect(timeout=10)
        waste += leftovers(client, remarks)
        waste += images_of(client, runs_root, remarks)
    except EngineError as error:
        remarks.append(f"containers and images were not checked completely: {error}")
    return waste


def leftovers(client: DockerClient, remarks: list[str]) -> list[Waste]:
    """Containers of runs that have ended or are gone, and that no launcher watches. Raises EngineError."""
    waste = []
    for container in _list(client):
        run_dir = Path(container.labels[docker_client.DIRECTORY])
        try:
            why = _why_left(container, run_dir, remarks)
        except (OSError, RunError) as error:  # another user's folder may not be readable
            remarks.append(f"container {container.name} stays: its run cannot be checked: {error}")
            continue
        if why:
            waste.append(Waste(f"container {container.name}", 0, why, partial(_remove_container, str(container.id))))
    return waste


def _why_left(container: Container, run_dir: Path, remarks: list[str]) -> str | None:
    """Why nobody needs the container; None if somebody may need it. Raises OSError and RunError."""
    try:
        # Not is_run(), which is also False for a folder that this user may not see.
        run_dir.stat(), (state_folder(run_dir) / REQUEST).stat()
    except (FileNotFoundError, NotADirectoryError):
        # A run of another runs folder, perhaps of another host: only an ended container is a leftover.
        if container.status in docker_client.ALIVE:
            remarks.append(
                f"container {container.name} is {container.status}, and its run directory {run_dir} is not here (on "
                f"another host?): it stays; if nobody needs it: docker rm -f {container.name}"
            )
            return None
        return "its run directory is gone"
    if os.getuid() in (0, run_dir.stat().st_uid):  # only a run's own user records its end
        registry.settle(run_dir)
    status = read_status(run_dir)
    current = str(status.attempt) == container.labels.get(docker_client.ATTEMPT)
    if status.state == UNKNOWN:
        remarks.append(f"container {container.name} stays: its run cannot be checked: {status.reason}")
        return None
    if is_run_locked(run_dir) or (current and status.state not in ENDED):
        return None
    return f"the run is {status.state}"


def _list(client: DockerClient) -> list[Container]:
    return _answered(
        lambda: client.containers.list(all=True, filters={"label": docker_client.DIRECTORY}, ignore_removed=True)
    )


def images_of(client: DockerClient, runs_root: Path, remarks: list[str]) -> list[Waste]:
    """Images of the trainer whose name a later build took, except those that unfinished submissions of this or another
    runs folder need. Raises EngineError."""
    try:
        needed = image_marks.needed_in(runs_root)
    except (OSError, RunError) as error:
        remarks.append(f"replaced images stay: it is unknown which of them are needed: {error}")
        return []
    waste = []
    own = _unshared(client)
    elsewhere = _answered(lambda: image_marks.needed_elsewhere(client, runs_root))
    for image in images.listed(client):
        if not image.tags and image.id in elsewhere:
            remarks.append(f"image {image.name} stays: unfinished submissions in {elsewhere[image.id]} may need it")
        elif not image.tags and image.id not in needed:
            what = f"image {image.name} ({image.variant}, {image.created})"
            why = "a later build took its name; the size counts only layers that no other image has"
            waste.append(Waste(what, own.get(image.id, 0), why, partial(_remove_image, image.id)))
    return waste


def _unshared(client: DockerClient) -> dict[str, int]:
    """Image → bytes of the layers that no other image has."""
    try:
        listed = client.df()["Images"] or []
    except Exception:  # a busy engine answers with an error; a missing size is no reason to fail
        return {}
    return {image["Id"]: max(0, int(image["Size"]) - max(0, int(image["SharedSize"]))) for image in listed}


def _remove_container(identity: str) -> None:
    _answered(lambda: docker_client.connect(timeout=REMOVAL).containers.get(identity).remove(force=True, v=True))


def _remove_image(identity: str) -> None:
    client = docker_client.connect(timeout=REMOVAL)
    _answered(lambda: client.images.remove(identity, force=True))
    _answered(lambda: image_marks.forget(client, identity))


def _answered(question: Callable[[], _T]) -> _T:
    """The engine's answer. Raises EngineError instead of the SDK's errors."""
    try:
        return question()
    except EngineError:
        raise
    except Exception as error:
        raise EngineError(explain(error)) from None
