"""A container that a thread of this process watches: its memory, and the meaning of its end."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.base.sizes import show_size
from launcher.engines.docker import client as docker_client
from launcher.engines.docker import recipe
from launcher.engines.outcome import lack_of_memory, last_error, verdict
from launcher.host.gpu_locks import GpuLock
from launcher.host.kernel_log import ended_for_memory
from launcher.record.folders import stop_requested
from launcher.record.request import RunRequest
from launcher.record.states import State
from trainer.base import cgroup
from trainer.base.errors import EXIT_STOPPED

if TYPE_CHECKING:
    from docker import DockerClient


SHARED_MEMORY = re.compile(r"/dev/shm|shared memory", re.IGNORECASE)
"""In a trainer's last message: its container has too little shared memory."""


@dataclass
class ContainerAttempt:
    """An attempt of a run, its container (`id`, empty before its creation), and observations of it."""

    run_dir: Path
    attempt: int
    request: RunRequest
    held: list[GpuLock] = field(default_factory=list)
    id: str = ""
    began: float = 0.0
    """When its container was started, by the monotonic clock; 0: not yet."""
    timed_out: bool = False
    peak: int | None = None
    log_begin: int = 0
    memory_files: list[Path] | None = None
    thread: threading.Thread | None = None


def sample_memory(watched: ContainerAttempt, client: Callable[[], DockerClient] | None) -> None:
    """Sample the container's memory, for its peak in bytes. Asks `client` once for the kernel's counter. `client` is
    None if the container is not on this host."""
    if watched.memory_files is None:
        watched.memory_files = []
        if client is None:
            return
        with suppress(Exception):  # then the figure is missing
            pid = int(client().api.inspect_container(watched.id)["State"]["Pid"])
            watched.memory_files = cgroup.peak_files(pid)
    seen = [number for path in watched.memory_files if (number := cgroup.number(path)) is not None]
    if seen:
        watched.peak = max(watched.peak or 0, *seen)


def state_at_end(client: DockerClient, watched: ContainerAttempt) -> dict[str, Any]:
    """The engine's `State` of an ended container. The report of a lack of memory may arrive shortly after the end, or
    never: Podman's monitor misses it on cgroup v1. Then the kernel's own log tells it. Raises the SDK's errors."""
    for _ in range(10):
        inspected = client.api.inspect_container(watched.id)
        state: dict[str, Any] = inspected["State"]
        if state["ExitCode"] == 0 or state.get("OOMKilled") or not watched.request.resources.memory:
            break
        if ended_for_memory(str(inspected["Id"])):
            return {**state, "OOMKilled": True}
        if state["ExitCode"] != 137 or watched.timed_out or stop_requested(watched.run_dir):
            break
        time.sleep(0.05)
    return state


def ending(watched: ContainerAttempt, state: Mapping[str, Any], asked: bool) -> tuple[State, str, dict[str, Any]]:
    """State, reason and figures of the run's last event, from the container's `state_at_end`.

    `asked`: a stop was requested.
    """
    run_dir, code = watched.run_dir, int(state["ExitCode"])
    if code > 128 and code != EXIT_STOPPED and code - 128 in {int(number) for number in signal.Signals}:
        code = 128 - code
    memory = lack_of_memory(watched.request) if state.get("OOMKilled") else ""
    if state.get("OOMKilled") and watched.request.resources.memory:
        watched.peak = watched.request.resources.memory
    word, reason = verdict(code, asked, watched.timed_out, watched.request, memory, run_dir)
    detail = str(state.get("Error") or "")
    if word in ("failed", "out_of_device_memory"):
        error_line = last_error(run_dir, watched.log_begin)
        detail = detail or recipe.on_host(error_line, watched.request, run_dir)
        if SHARED_MEMORY.search(detail):
            size, place = show_size(recipe.shm_size(watched.request)), watched.request.shm_place
            detail += f"; raise resources.shm: {size}{f' ({place})' if place else ''}"
    figures = {
        "exit_code": code,
        "oom_killed": bool(state.get("OOMKilled")),
        "peak_host_memory_bytes": watched.peak,
        "seconds": _seconds(state),
    }
    return word, ": ".join(part for part in (reason, detail) if part), figures


def _seconds(state: Mapping[str, Any]) -> float | None:
    """Duration of the container; None if it never started, or the engine's times cannot be read."""
    began, ended = (docker_client.seconds(str(state.get(key) or "")) for key in ("StartedAt", "FinishedAt"))
    # Podman may note the end of a short one before its start.
    return round(max(0.0, ended - began), 1) if began and ended else None
