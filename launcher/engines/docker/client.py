"""A client of the Docker engine of DOCKER_HOST or the current docker context, and the labels of our containers and
images."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.base.errors import EngineError
from trainer.base.brief import in_brief

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

PREFIX = "document-classifier."
DIRECTORY, ATTEMPT, DEVICES, LOCKS = (PREFIX + word for word in ("directory", "attempt", "devices", "locks"))
SUBMISSION, RUN = PREFIX + "submission", PREFIX + "run"
ALIVE = ("running", "paused", "restarting", "stopping")
"""Words of the engine for a container whose processes live. `stopping` is Podman's: it has been asked to end."""
VARIANT, CONTENT, WEIGHTS, HOW = (PREFIX + word for word in ("variant", "content", "weights", "built-with"))


def connect(timeout: int = 60) -> DockerClient:
    """A client of the engine, after the engine has answered once. Raises EngineError."""
    import docker

    try:
        named = os.environ.get("DOCKER_CONTEXT")
        if not os.environ.get("DOCKER_HOST") and docker.ContextAPI.get_context(named) is None:
            # The SDK would silently use the default engine.
            raise EngineError(
                f"the docker context{f' {named}' if named else ''} does not exist; see: docker context ls"
            )
        client = docker.from_env(timeout=timeout, max_pool_size=64, use_ssh_client=True)
        client.ping()
    except EngineError:
        raise
    except (AttributeError, TypeError):  # the SDK expects other types in the file than are there
        raise EngineError(f"{settings_file()}: no settings of a docker client; repair or remove the file") from None
    except Exception as error:  # errors of the SDK, its HTTP library and the context have no common base
        raise EngineError(f"no Docker engine answers ({explain(error)})") from None
    return client


def settings_file() -> Path:
    """The settings of the docker client, which also name its helpers for credentials."""
    return Path(os.environ.get("DOCKER_CONFIG") or Path("~/.docker").expanduser()) / "config.json"


def explain(error: Exception) -> str:
    """The engine's message on one line, with a fix if known."""
    text = str(getattr(error, "explanation", None) or error)
    text = " ".join(text.split())
    if "paramiko" in text:
        return "ssh:// needs a package that is not installed; run: pip install 'docker[ssh]'"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    if ("Permission denied" in text or "PermissionError" in text) and "onnection" in text:
        return "this user may not open its socket; run: sudo usermod -aG docker $USER, then log in again"
    if "FileNotFoundError" in text or ("No such file or directory" in text and "socket" in text.lower()):
        return "nothing listens on its socket; start it, or set DOCKER_HOST or a docker context"
    if "ConnectionRefused" in text or "Connection refused" in text:
        return "nothing listens there; start it, or set DOCKER_HOST or a docker context"
    if "error setting rlimit" in text:
        return (
            f"{in_brief(text, 200)}; the engine may not set the limits of open files or processes that it gives to "
            'containers: set them in containers.conf, like default_ulimits = ["nofile=4096:4096"]'
        )
    if "could not select device driver" in text or "nvidia-container" in text:
        return f"{in_brief(text, 200)}; the host needs NVIDIA's driver and container toolkit, see: launcher doctor"
    if "no space left" in text:
        return f"{in_brief(text, 200)}; free some with: launcher prune"
    return in_brief(text, 300)


def of_run(client: DockerClient, run_dir: Path) -> list[Container]:
    """The containers of a run, all attempts, newest first. Raises the SDK's errors."""
    return client.containers.list(all=True, filters={"label": f"{DIRECTORY}={run_dir.resolve()}"}, ignore_removed=True)


def devices_in_use(client: DockerClient) -> dict[str, str]:
    """GPU index → the run that uses it, by the labels of all running containers."""
    used = {}
    for container in client.containers.list(filters={"label": DEVICES}, ignore_removed=True):
        for device in filter(None, container.labels[DEVICES].split(",")):
            used[device] = f"{container.labels.get(SUBMISSION)}/{container.labels.get(RUN)}"
    return used


def running(client: DockerClient) -> set[str]:
    """The run directories of all running containers."""
    containers = client.containers.list(filters={"label": DIRECTORY}, ignore_removed=True)
    return {str(container.labels[DIRECTORY]) for container in containers}


def is_network(error: OSError) -> bool:
    """Whether the error is about the connection to the engine, not about a file."""
    import requests

    return isinstance(error, requests.RequestException | ConnectionError)


def seconds(text: str) -> float:
    """The engine's `2026-11-24T12:00:00.123456789Z`, or with an offset like `+02:00`, as seconds of the epoch; 0 for a
    moment that has not come yet or cannot be read."""
    from datetime import UTC, datetime

    # Python's own reader cuts a fraction of nine digits to six, but refuses other numbers of digits in some versions.
    match = re.fullmatch(r"([0-9T:. -]+?)(?:\.([0-9]+))?(Z|[+-][0-9:]+)?", text.strip())
    try:
        if match is None:
            raise ValueError(text)
        moment = datetime.fromisoformat(match[1] + (match[3] or "Z").replace("Z", "+00:00"))
        return max(0.0, moment.astimezone(UTC).timestamp() + float(f"0.{match[2] or 0}"))
    except (ValueError, OverflowError):
        return 0.0
