"""Run directories: the record of every run. The journal is the truth; everything else can be rebuilt from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

State = Literal[
    "queued",
    "starting",
    "running",
    "succeeded",
    "failed",
    "out_of_device_memory",
    "out_of_host_memory",
    "timed_out",
    "cancelled",
    "lost",
    "reused",
]
Kind = Literal["train", "ensemble", "predict", "analyze"]


@dataclass(frozen=True)
class Resources:
    """What one run asks for. Sizes are bytes; `None` means no limit."""

    gpus: int = 0
    gpu_memory: int | None = None
    memory: int | None = None
    cpus: float | None = None
    shm: int | None = None


@dataclass(frozen=True)
class RunRequest:
    """A run, resolved: what `run.json` holds. Equal requests on equal data are the same run.

    `command` is what follows `python -m trainer`. A path below the runs folder is written `@runs/<submission>/<run>/file`;
    the engine puts the folder's place (native path or container mount) for `@runs` when it starts the run.
    """

    name: str
    index: int
    kind: Kind
    command: list[str]
    overrides: list[str] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)
    resources: Resources = field(default_factory=Resources)
    image: str | None = None
    data_dir: str | None = None
    timeout: float | None = None
    attempts: int = 1
    env: list[str] = field(default_factory=list)
    secrets: list[str] = field(default_factory=list)
    identity: str = ""
