"""The options of a run's container, made only from the run's request. Pure functions, except that they check files of
the host. Starts nothing."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.base.errors import DataFolderError
from launcher.base.sizes import GIB
from launcher.engines.docker import client
from launcher.engines.outcome import GRACE
from launcher.engines.readiness import is_stored, stray
from launcher.host import gpu_locks
from launcher.job.matrix import override_value
from launcher.memory.predict import device_limit
from launcher.record import retry, trainer_figures, trainer_files
from launcher.record.find import cache_dir
from launcher.record.folders import is_run
from launcher.record.journal import read_events
from launcher.record.request import RunRequest
from launcher.record.trainer_files import RESUME
from trainer.base.errors import ConfigError
from trainer.config.compose import parse

PIDS = 4096
"""Limit of processes and threads per container: loader workers and their threads need hundreds, a fork bomb more."""
SHM = GIB
"""Smallest /dev/shm in bytes, unless the job sets shm. With the engine's default of 64 MB loader workers crash. It is
only a limit: memory is used when files are written."""
FILES = ("model.weights", "data.root", "resume", "training.teachers")
"""Keys of the trainer whose value is a path on this host, or a list of paths. Each is mounted read-only under the same
path."""
LISTS = ("training.teachers",)
"""The keys of `FILES` whose value is a list."""
LINKS = 40
"""Links on the way to a file that are followed: the kernel's own limit."""
DATA, RUNS, CACHE, SECRETS, COMPILED = "/data", "/runs", "/cache", "/run/secrets", "/compiled"


@dataclass(frozen=True)
class Place:
    """The environment of a run's container: the `image` (with its own entry point), its user, and its access."""

    image: str
    entrypoint: tuple[str, ...]
    user: tuple[int, int]
    groups: tuple[int, ...] = ()
    cache: Path = Path()
    secrets: Path | None = None
    network: bool = False


def run_user(runs_root: Path, rootless: bool = False) -> tuple[int, int]:
    """uid and gid of the runs: those of the caller; for root, those of the runs folder's owner; if that is root, too,
    1000:1000.

    In a rootless engine, root inside the container is the caller outside.
    """
    if rootless:
        return 0, 0
    uid, gid = os.getuid(), os.getgid()
    if uid == 0:
        stat = runs_root.stat()
        uid, gid = stat.st_uid, stat.st_gid
    return (uid, gid) if uid else (1000, 1000)


def run_groups() -> tuple[int, ...]:
    """Further groups of the runs: the caller's, which may be needed to read data, without the group that controls the
    Docker engine. None for root."""
    if os.getuid() == 0:
        return ()
    with suppress(OSError):
        engine = Path("/var/run/docker.sock").stat().st_gid
        return tuple(group for group in os.getgroups() if group != engine)
    return tuple(os.getgroups())


def network_reason(request: RunRequest, environment: Mapping[str, str], cache: Path, baked: str) -> str | None:
    """Why the run gets a network, or None. Reasons: it asks for one, it logs to W&B, or its weights must be downloaded.

    `baked` are the names of the weights in the image.
    """
    if request.network is not None:
        return "the job asks for it (network: true)" if request.network else None
    if request.kind != "train":
        return None
    mode = environment.get("WANDB_MODE", "").lower() if "WANDB_MODE" in request.env else ""
    key = "WANDB_API_KEY" in request.secrets and environment.get("WANDB_API_KEY")
    if mode == "online" or (key and mode not in ("offline", "dryrun", "disabled", "off")):
        return "W&B is online"
    name = request.fetches
    if name is None or is_stored(name, cache, baked, contained=True):
        return None
    return f"the weights of {name} are neither in the image nor in {cache}{stray([name], cache)}"


def exchangeable(path: Path, cache: Path | None) -> tuple[Path, str] | None:
    """The run directory or shared cache that a path leads into, also through links on its way, and the rest of the
    path in it. None if it leads into none.

    A run can exchange the names in there after the launcher has checked them, but it cannot exchange the folder itself.
    So only the folder as a whole may be mounted.
    """
    here, left, hops = Path("/"), list(path.parts[1:]), 0
    while left and hops <= LINKS:
        name = left.pop(0)
        here = here.parent if name == ".." else here / name
        if is_written_by_runs(here, cache):
            return here, "/".join(left)
        if here.is_symlink():
            hops += 1
            target = here.readlink()
            here = Path("/") if target.is_absolute() else here.parent
            left = [*(part for part in target.parts if part != "/"), *left]
    return None


def is_written_by_runs(folder: Path, cache: Path | None) -> bool:
    """Whether a folder is a run directory (or looks like one: it is in a submission), or the shared cache."""
    if is_run(folder) or os.path.lexists(folder.parent / "submission.json"):
        return True
    try:
        return cache is not None and folder.samefile(cache)
    except OSError:
        return False


def refuse_exchangeable(folder: str, cache: Path, what: str) -> None:
    """Raise DataFolderError if a folder of data leads into a run directory or the shared cache."""
    if inner := exchangeable(Path(os.path.abspath(folder)), cache):  # noqa: PTH100  # keeps links
        raise DataFolderError(
            f"{folder}: {what} leads into {inner[0]}, where runs can exchange it for any other folder of this host; "
            "copy it, and give the copy with --data DIR"
        )


def words(request: RunRequest, run_dir: Path, cache: Path) -> tuple[list[str], list[Path]]:
    """The trainer's words with paths of the container, and what must be mounted of this host for them: files, or
    folders that are mounted as a whole, see `exchangeable`.

    Raises FileNotFoundError.
    """
    trainer_words, files = [], []
    for word in retry.command(request, read_events(run_dir)):
        word = word.replace("@runs/", RUNS + "/")
        key = word.partition("=")[0]
        values = _named(word)
        for position, value in enumerate(values):
            if not value.startswith(RUNS + "/"):
                path = Path(os.path.abspath(Path(request.cwd or ".") / Path(value).expanduser()))  # noqa: PTH100  # keeps links
                inner = exchangeable(path, cache)
                path = inner[0] / inner[1] if inner else path
                if not trainer_files.is_usable(path):
                    raise FileNotFoundError(f"{key}={value}: no such file")
                for each in (path, *trainer_figures.ensemble_members(path)):
                    inner = exchangeable(each, cache)
                    files.append(inner[0] if inner else each)
                values[position] = str(path)
        if values:
            word = f"{key}={override_value(values if key in LISTS else values[0])}"
        trainer_words.append(word)
    resumes = any(word.startswith("resume=") for word in trainer_words)
    if request.kind == "train" and (trainer_files.has(run_dir, RESUME) or not resumes):
        trainer_words.append("resume=auto")
    return trainer_words, files


def _named(word: str) -> list[str]:
    """The files that one of the trainer's words names; empty for other keys."""
    key, separator, value = word.partition("=")
    if not separator or key not in FILES:
        return []
    with suppress(ConfigError):  # what the trainer cannot read is no quoted text
        parsed = parse(word)[1]
        if isinstance(parsed, list):
            return [str(name) for name in parsed]
        value = "" if parsed is None else str(parsed)
    return [value] if value not in ("", "null", "auto") else []


def environment(request: RunRequest, place: Place, run_dir: Path, gpus: bool) -> dict[str, str]:
    """The contract's variables and those that the job lists; nothing else of this process's environment."""
    settings = {name: os.environ[name] for name in request.env if name in os.environ}
    settings |= {
        "RUN_DIR": f"{RUNS}/{run_dir.parent.name}/{run_dir.name}",
        "CACHE_DIR": CACHE,
        "PYTHONUNBUFFERED": "1",
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "TORCHINDUCTOR_CACHE_DIR": f"{COMPILED}/inductor",
        "TRITON_CACHE_DIR": f"{COMPILED}/triton",
    }
    if not gpus:
        settings["NVIDIA_VISIBLE_DEVICES"] = "void"  # otherwise a host's default runtime would give it all GPUs
    if request.data_dir:
        settings["DATA_DIR"] = DATA
    if limit := device_limit(request):
        settings["DEVICE_MEMORY_LIMIT"] = str(limit)
    if request.resources.cpus:
        settings["OMP_NUM_THREADS"] = str(max(1, int(request.resources.cpus)))
    if place.secrets is not None:
        settings["SECRETS_DIR"] = SECRETS
    return settings


def options(
    request: RunRequest, place: Place, run_dir: Path, attempt: int, devices: Sequence[str], locks: Sequence[str]
) -> dict[str, Any]:
    """Arguments of `APIClient.create_container`, with `host_config` as those of `create_host_config`.

    The container itself writes the trainer's output to the run's log.txt, so that the log is complete at any time.
    Raises FileNotFoundError for a file that the run names, and DataFolderError.
    """
    from docker.types import DeviceRequest, LogConfig, Mount, Ulimit

    trainer_words, files = words(request, run_dir, place.cache)
    if request.data_dir:
        refuse_exchangeable(request.data_dir, place.cache, "the data folder")
    for target in request.links.values():
        refuse_exchangeable(target, place.cache, "a link of the data")
    resources = request.resources
    inside = f"{RUNS}/{run_dir.parent.name}/{run_dir.name}"
    mounts = [Mount(inside, str(run_dir), type="bind")]
    if any(word.startswith(RUNS + "/") or f"={RUNS}/" in word for word in trainer_words):
        mounts.append(Mount(RUNS, str(run_dir.parent.parent), type="bind", read_only=True))
    mounts.append(Mount(CACHE, str(place.cache), type="bind"))
    if request.data_dir:
        mounts.append(Mount(DATA, request.data_dir, type="bind", read_only=True))
    if place.secrets is not None:
        mounts.append(Mount(SECRETS, str(place.secrets), type="bind", read_only=True))
    mounts += [Mount(str(path), str(path), type="bind", read_only=True) for path in dict.fromkeys(files)]
    mounts += [Mount(path, target, type="bind", read_only=True) for path, target in request.links.items()]
    host: dict[str, Any] = {
        "mounts": mounts,
        "network_mode": "bridge" if place.network else "none",
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "read_only": True,
        "tmpfs": {
            "/tmp": "rw,noexec,nosuid,nodev,mode=1777",
            COMPILED: "rw,exec,nosuid,nodev,mode=1777",
        },
        "init": True,
        "pids_limit": PIDS,
        "shm_size": shm_size(request),
        "ulimits": [Ulimit(name="core", soft=0, hard=0)],
        "log_config": LogConfig(type=LogConfig.types.JSON, config={"max-size": "1m", "max-file": "1"}),
        "group_add": [str(group) for group in place.groups],
    }
    if resources.memory:
        host |= {"mem_limit": resources.memory, "memswap_limit": resources.memory}
    if resources.cpus:
        host["nano_cpus"] = int(resources.cpus * 1e9)
    if devices:
        host["device_requests"] = [
            DeviceRequest(device_ids=gpu_locks.visible(devices, locks), capabilities=[["gpu", "compute", "utility"]])
        ]
    return {
        "image": place.image,
        "name": name(run_dir, attempt),
        "entrypoint": ["/bin/sh", "-c", 'exec "$@" >>"$RUN_DIR/log.txt" 2>&1', "sh"],
        "command": [*place.entrypoint, *trainer_words],
        "environment": environment(request, place, run_dir, bool(devices)),
        "user": f"{place.user[0]}:{place.user[1]}",
        "working_dir": "/tmp",
        "labels": {
            client.SUBMISSION: run_dir.parent.name,
            client.RUN: run_dir.name,
            client.ATTEMPT: str(attempt),
            client.DIRECTORY: str(run_dir),
            client.DEVICES: ",".join(devices),
            client.LOCKS: ",".join(locks),
        },
        "stop_signal": "SIGTERM",
        "stop_timeout": int(GRACE),
        "host_config": host,
    }


def shm_size(request: RunRequest) -> int:
    """Bytes of /dev/shm of the run's container."""
    return request.resources.shm or max(SHM, request.loader_shm, (request.resources.memory or 0) // 2)


def on_host(text: str, request: RunRequest, run_dir: Path | None = None) -> str:
    """A message of a run with the container's paths replaced by the host's, if known: paths in /data by the request,
    paths in /runs and /cache by the run's directory."""
    places = {DATA: request.data_dir}
    if run_dir is not None:
        root = run_dir.absolute().parent.parent
        places |= {RUNS: str(root), CACHE: str(cache_dir(root))}
    # Files that a run names are mounted under their own path, so their prefix has no meaning.
    own = [name for word in request.command for name in _named(word)]

    def host(match: re.Match[str]) -> str:
        kept = any(each and text.startswith(each, match.start()) for each in own)
        return match[0] if kept else places.get(match[0]) or match[0]

    return re.sub(rf"(?<![\w./~-])({DATA}|{RUNS}|{CACHE})(?![\w-]|\.\w)", host, text)


def name(run_dir: Path, attempt: int) -> str:
    """The container's name: readable, unique for each attempt and for each runs folder."""
    readable = re.sub(r"[^A-Za-z0-9_.-]", "_", f"{run_dir.parent.name}.{run_dir.name}.{attempt}")
    return readable[-200:].lstrip("_.-") + "." + hashlib.sha256(os.fsencode(run_dir)).hexdigest()[:6]
