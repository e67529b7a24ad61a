"""What one run asks for, resolved: the content of `run.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from launcher.base.errors import RunError
from launcher.record.states import State
from trainer.base.files import write_text

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
class Retry:
    """How often a run is attempted in all, after which ends, and how many seconds later (twice as many each time)."""

    attempts: int = 3
    on: tuple[State, ...] = ("out_of_device_memory",)
    backoff: float = 30.0


@dataclass(frozen=True)
class RunRequest:
    """A run, resolved: what `run.json` holds. Equal requests on equal data are the same run.

    `command` is what follows `python -m trainer`. A path below the runs folder is written
    `@runs/<submission>/<run>/file`; the engine puts the folder's place (native path or container mount) for `@runs`
    when it starts the run. A step whose members are known only later has `select` (`{"top": N}` or
    `{"runs": [globs]}`, and perhaps `submission`).
    """

    name: str
    index: int
    kind: Kind
    command: list[str]
    overrides: list[str] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)
    select: dict[str, Any] | None = None
    options: list[str] | None = None
    """Of a step with `select`: its words but for the members, which are chosen anew for each attempt."""
    resources: Resources = field(default_factory=Resources)
    image: str | None = None
    image_id: str | None = None
    """The image that `image` named when the run was submitted."""
    network: bool | None = None
    """None: only where W&B or weights need it."""
    fetches: str | None = None
    """timm's name of the model whose weights come from a hub."""
    memory_place: str = ""
    """Where the job asks for `resources.memory`: file and line."""
    data_dir: str | None = None
    cwd: str | None = None
    timeout: float | None = None
    retry: Retry = field(default_factory=Retry)
    env: list[str] = field(default_factory=list)
    secrets: list[str] = field(default_factory=list)
    share_gpu: bool = False
    """Whether it may be packed onto a GPU beside other runs of its submission."""
    priority: int = 0
    """The scheduler's: higher starts first."""
    identity: str = ""
    data: str = ""
    code: str = ""
    """What it trains on and with: see `reuse`."""
    configuration: str = ""
    """Of a run that holds out one of several folds: the name that all folds of its configuration share."""
    config: dict[str, Any] = field(default_factory=dict)
    """What tables show of it: model, data, training, img_size, batch_size, epochs, seed."""
    predicted_memory: int | None = None
    """Bytes on each device that the run is foreseen to need, the allowance for a CUDA context included."""


def device_need(request: RunRequest) -> int | None:
    """Bytes on each device with which the run is scheduled: the job's own cap, else the prediction; None: unknown."""
    return request.resources.gpu_memory or request.predicted_memory


def write_request(run_dir: Path, request: RunRequest) -> None:
    """Replace run.json."""
    write_text(run_dir / "run.json", request_as_json(request))


_ENCODE = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def request_as_json(request: RunRequest) -> str:
    """A line a field: a submission of thousands would feel `dataclasses.asdict`, and json's indenting in Python."""
    fields = {**vars(request), "resources": vars(request.resources), "retry": vars(request.retry)}
    return "{\n" + ",\n".join(f'  "{name}": {_ENCODE(value)}' for name, value in fields.items()) + "\n}\n"


def read_request(run_dir: Path) -> RunRequest:
    """The request in run.json. Raises RunError where `run_dir` is no run directory."""
    try:
        content = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
        content.pop("attempts", None)  # of an earlier version
        retry = {**content.get("retry", {})}
        retry["on"] = tuple(retry.get("on", Retry.on))
        return RunRequest(**{**content, "resources": Resources(**content["resources"]), "retry": Retry(**retry)})
    except FileNotFoundError:
        raise RunError(f"{run_dir}: not a run directory: there is no run.json in it") from None
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(f"{run_dir / 'run.json'}: not a request of this launcher: {error}") from None
