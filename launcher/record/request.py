"""The resolved request of one run: the content of `run.json`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any, Literal, get_args

from launcher.base import fields
from launcher.base.errors import RecordError, UnknownNameError
from launcher.record import folders
from launcher.record.folders import JOURNAL, PASSING, REQUEST
from launcher.record.states import State
from trainer.base.files import json_text

Kind = Literal["train", "ensemble", "predict", "analyze"]


@dataclass(frozen=True)
class Resources:
    """Resources of one run. Sizes are bytes; `None` means no limit."""

    gpus: int = 0
    gpu_memory: int | None = None
    memory: int | None = None
    cpus: float | None = None
    shm: int | None = None


@dataclass(frozen=True)
class Retry:
    """Number of attempts in all, the states to retry, and the wait in seconds (doubled after each attempt)."""

    attempts: int = 3
    on: tuple[State, ...] = ("out_of_device_memory",)
    backoff: float = 30.0


@dataclass(frozen=True)
class RunRequest:
    """The resolved request of a run. Equal requests on equal data are the same run.

    `command` has the words after `python -m trainer`. A path in the runs folder is written
    `@runs/<submission>/<run>/file`; the engine replaces `@runs` by the folder (native path or container mount) when it
    starts the run. A step whose members are known only later has `select` (`{"top": N}` or `{"runs": [globs]}`, with an
    optional `submission`).
    """

    name: str
    index: int
    kind: Kind
    command: list[str]
    overrides: list[str] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)
    select: dict[str, Any] | None = None
    options: list[str] | None = None
    """Of a step with `select`: its words without the members, which are chosen again for each attempt."""
    absent: list[str] = field(default_factory=list)
    """Of a step with `select`: the training runs that had not succeeded when its members were chosen."""
    remark: str = ""
    """Of a step with `select`: that it has fewer members than it should have, and why."""
    resources: Resources = field(default_factory=Resources)
    image: str | None = None
    image_id: str | None = None
    """Id of the image that `image` named at submission."""
    network: bool | None = None
    """None: only if W&B or a download of weights needs it."""
    fetches: str | None = None
    """timm's name of the model whose weights are downloaded from a hub."""
    memory_place: str = ""
    """File and line of `resources.memory` in the job."""
    shm_place: str = ""
    """File and line of `resources.shm` in the job; if it is auto, those of `resources`."""
    loader_shm: int = 0
    """Bytes of shared memory that the run's loader fills at most: see `trainer.base.cores.shared_bytes`."""
    data_dir: str | None = None
    links: dict[str, str] = field(default_factory=dict)
    """Of a container: where links of its data lead, by the container's path → the path on this host."""
    cwd: str | None = None
    timeout: float | None = None
    retry: Retry = field(default_factory=Retry)
    env: list[str] = field(default_factory=list)
    secrets: list[str] = field(default_factory=list)
    share_gpu: bool = False
    """Whether it may share a GPU with other runs of its submission."""
    priority: int = 0
    """For the scheduler: a higher priority starts first."""
    identity: str = ""
    data: str = ""
    code: str = ""
    """Digest of its data and code: see `reuse`."""
    configuration: str = ""
    """Of a run on one of several folds: the name that all folds of its configuration share."""
    config: dict[str, Any] = field(default_factory=dict)
    """Values for tables: model, data, training, img_size, batch_size, epochs, seed."""
    predicted_memory: int | None = None
    """Predicted memory in bytes on each device, including the allowance for a CUDA context."""


_CHECKS: dict[str, fields.Check] = {
    **dict.fromkeys(("command", "overrides", "options", "env", "secrets"), fields.TEXTS),
    **dict.fromkeys(("image", "image_id", "fetches", "data_dir", "cwd"), fields.TEXT),
    **dict.fromkeys(("memory_place", "shm_place", "identity", "data", "code", "configuration", "remark"), fields.TEXT),
    "absent": fields.NAMES,
    **dict.fromkeys(("network", "share_gpu"), fields.FLAG),
    **dict.fromkeys(("loader_shm", "predicted_memory"), fields.COUNT),
    **dict.fromkeys(("resources", "retry", "config", "select"), fields.MAPPING),
    "name": fields.NAME,
    "needs": fields.NAMES,
    "index": fields.COUNT,
    "kind": fields.one_of(get_args(Kind)),
    "links": fields.TEXTS_BY_NAME,
    "timeout": fields.AMOUNT,
    "priority": fields.whole(-(10**15)),
}
_INNER: dict[str, tuple[dict[str, fields.Check], tuple[str, ...]]] = {
    "resources": (
        {**dict.fromkeys(("gpus", "gpu_memory", "memory", "shm"), fields.COUNT), "cpus": fields.AMOUNT},
        ("gpus",),
    ),
    "retry": (
        {"attempts": fields.COUNT, "on": fields.TEXTS, "backoff": fields.AMOUNT},
        ("attempts", "on", "backoff"),
    ),
    "config": (
        {
            **dict.fromkeys(("img_size", "batch_size", "epochs", "fold"), fields.COUNT),
            **dict.fromkeys(("model", "data", "training", "root", "format", "weights"), fields.TEXT),
            "teachers": fields.TEXTS,
        },
        (),
    ),
    "select": ({"top": fields.COUNT, "runs": fields.TEXTS, "submission": fields.TEXT}, ()),
}
"""Types of the fields of run.json, and of the mappings in it with their fields that are never null."""
_FIELDS = {field.name for field in dataclass_fields(RunRequest)}
_REQUIRED = _FIELDS - {
    *("fetches", "select", "options", "image", "image_id", "network", "data_dir", "cwd", "timeout", "predicted_memory")
}
"""Fields that are never null."""


def device_need(request: RunRequest) -> int | None:
    """Bytes on each device that the scheduler reserves: the job's own cap, else the prediction; None: unknown."""
    return request.resources.gpu_memory or request.predicted_memory


def write_request(run_dir: Path, request: RunRequest, durable: bool = True) -> None:
    """Replace run.json. Not `durable`: see `append_event`."""
    with folders.own_state(run_dir) as folder:
        folders.replace(folder, REQUEST, request_as_json(request).encode(), durable)


def request_as_json(request: RunRequest) -> str:
    """One line per field. `dataclasses.asdict` and json's indentation are too slow for thousands of runs."""
    fields = {**vars(request), "resources": vars(request.resources), "retry": vars(request.retry)}
    return "{\n" + ",\n".join([f'  "{name}": {json_text(value)}' for name, value in fields.items()]) + "\n}\n"


def read_request(run_dir: Path) -> RunRequest:
    """The request in run.json. Raises RunError if `run_dir` is not a run directory, RecordError if the file cannot be
    used, and OSError if the file system may answer later."""
    try:
        with folders.state(run_dir) as folder:
            return parse_request(folders.read(folder, REQUEST), run_dir)
    except FileNotFoundError as error:
        if os.path.lexists(folders.state_folder(run_dir) / JOURNAL):
            raise RecordError(f"{folders.state_folder(run_dir) / REQUEST}: {error.strerror}") from None
        raise UnknownNameError(f"{run_dir}: not a run directory: it has no run.json") from None
    except OSError as error:
        if error.errno in PASSING:
            raise
        raise RecordError(f"{folders.state_folder(run_dir) / REQUEST}: {error.strerror}") from None


def parse_request(text: bytes, run_dir: Path) -> RunRequest:
    """The request that is the content of run.json in `run_dir`. Raises RecordError."""
    try:
        content = fields.parsed(text.decode())
        if not isinstance(content, dict):
            raise ValueError("it is no mapping")
        content.pop("attempts", None)  # written by an earlier version
        if why := _wrong(content):
            raise ValueError(why)
        content["resources"] = Resources(**content["resources"])
        retry = content.get("retry", {})
        content["retry"] = Retry(**{**retry, "on": tuple(retry.get("on", Retry.on))})
        if content.keys() != _FIELDS:  # written by an earlier version
            return RunRequest(**content)
        request = object.__new__(RunRequest)
        vars(request).update(content)  # the constructor takes as long as everything else here
        return request
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        why = f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else str(error)
        place = folders.state_folder(run_dir) / REQUEST
        raise RecordError(f"{place}: not a request of this launcher: {why}") from None


def _wrong(content: dict[str, Any]) -> str:
    """What is wrong with the fields of a request; empty if nothing is."""
    if not content.keys() <= _FIELDS:
        return f"its field {min(content.keys() - _FIELDS)} is of another version"
    if why := fields.wrong(content, _CHECKS, _REQUIRED):
        return why
    for name, (checks, required) in _INNER.items():
        if (inner := content.get(name)) and (why := fields.wrong(inner, checks, required)):
            return f"{name}.{why}"
    select = content.get("select")
    if select is not None and select.get("top") is None and select.get("runs") is None:
        return "select names neither top nor runs"
    return ""
