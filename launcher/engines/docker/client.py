"""The Docker engine that DOCKER_HOST or the current docker context names, and the labels by which its containers and
images are known."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.base.errors import EngineError

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

PREFIX = "document-classifier."
DIRECTORY, ATTEMPT, DEVICES, LOCKS = (PREFIX + word for word in ("directory", "attempt", "devices", "locks"))
SUBMISSION, RUN = PREFIX + "submission", PREFIX + "run"
VARIANT, CONTENT, WEIGHTS, HOW = (PREFIX + word for word in ("variant", "content", "weights", "built-with"))


def connect(timeout: int = 60) -> DockerClient:
    """A client of the engine, which has answered once. Raises EngineError."""
    import docker

    try:
        named = os.environ.get("DOCKER_CONTEXT")
        if not os.environ.get("DOCKER_HOST") and docker.ContextAPI.get_context(named) is None:
            # The SDK would take the default engine in its place.
            raise EngineError(f"the docker context{f' {named}' if named else ''} is not there; see: docker context ls")
        client = docker.from_env(timeout=timeout, max_pool_size=64, use_ssh_client=True)
        client.ping()
    except EngineError:
        raise
    except Exception as error:  # the SDK's, its HTTP library's and the context's errors share no base
        raise EngineError(f"no Docker engine answers ({explain(error)})") from None
    return client


def explain(error: Exception) -> str:
    """The engine's own words on one line, with the way out where it is known."""
    text = str(getattr(error, "explanation", None) or error)
    text = " ".join(text.split())
    if "paramiko" in text:
        return "one behind ssh:// needs a package that is not installed; say: pip install 'docker[ssh]'"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    if ("Permission denied" in text or "PermissionError" in text) and "onnection" in text:
        return "its socket may not be opened by this user; say: sudo usermod -aG docker $USER, then log in again"
    if "FileNotFoundError" in text or ("No such file or directory" in text and "socket" in text.lower()):
        return "nothing listens on its socket; start it, or name another by DOCKER_HOST or `docker context use`"
    if "ConnectionRefused" in text or "Connection refused" in text:
        return "nothing listens there; start it, or name another by DOCKER_HOST or `docker context use`"
    if "could not select device driver" in text or "nvidia-container" in text:
        return f"{text[:200]}; the host needs NVIDIA's driver and container toolkit, see: launcher doctor"
    if "no space left" in text:
        return f"{text[:200]}; free some by: launcher prune"
    return text[:300]


def of_run(client: DockerClient, run_dir: Path) -> list[Container]:
    """The containers of a run, all attempts, newest first. Raises the SDK's errors."""
    return client.containers.list(all=True, filters={"label": f"{DIRECTORY}={run_dir.resolve()}"}, ignore_removed=True)


def devices_in_use(client: DockerClient) -> dict[str, str]:
    """GPU index → the run that has it, by the labels of running containers, whoever started them."""
    used = {}
    for container in client.containers.list(filters={"label": DEVICES}, ignore_removed=True):
        for device in filter(None, container.labels[DEVICES].split(",")):
            used[device] = f"{container.labels.get(SUBMISSION)}/{container.labels.get(RUN)}"
    return used


def is_network(error: OSError) -> bool:
    """Whether the error is of the connection to the engine, and not of a file."""
    import requests

    return isinstance(error, requests.RequestException | ConnectionError)


def seconds(text: str) -> float:
    """The engine's `2026-11-24T12:00:00.123456789Z` as seconds of the epoch; 0 for what has not come yet."""
    from datetime import datetime

    whole, _, fraction = text.rstrip("Z").partition(".")
    moment = datetime.fromisoformat(whole + "+00:00").timestamp()
    return max(0.0, moment + float(f"0.{fraction or 0}"))
