"""Pretrained weights of runs: whether they are stored, and can be had. Checked once for all runs before the first
starts."""

from __future__ import annotations

import os
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Collection, Sequence
from pathlib import Path

from launcher.base.errors import DamagedFileError, RunError
from launcher.engines.base import Choice, QueueEngine
from launcher.job import named_files
from launcher.record.request import RunRequest
from trainer.config import timm_models

HUB = "https://huggingface.co"
PATIENCE = 5.0
"""Seconds for a connection to the hub."""


def check_weights(trained: Sequence[RunRequest], cache: Path, chosen: Choice) -> None:
    """Raises RunError if runs need pretrained weights that are neither stored nor can be downloaded, or are stored in a
    damaged file."""
    baked = chosen.image.weights if chosen.image else ""
    check_stored({request.fetches for request in trained if request.fetches}, cache, baked, chosen)
    wanted: dict[str, list[RunRequest]] = {}
    for request in trained:
        if request.fetches and not is_stored(request.fetches, cache, baked, chosen.contained):
            wanted.setdefault(request.fetches, []).append(request)
    if not wanted:
        return
    names = ", ".join(sorted(wanted))
    place = f"in the image nor in {cache / 'weights'}" if chosen.contained else f"in {cache / 'weights'}"
    remedy = (
        f"copy NAME.safetensors to {cache / 'weights'}, give a file with model.weights=FILE, or train from scratch "
        "with model.pretrained=false"
    )
    nowhere = [name for name in sorted(wanted) if not timm_models.has_weights(name)]
    if nowhere:
        raise RunError(f"timm has no weights for {', '.join(nowhere)}: {remedy}")
    absent = f"the weights of {names} are {'neither' if chosen.contained else 'not'} {place}"
    absent += stray(sorted(wanted), cache) if chosen.contained else ""
    if any(request.network is False for requests in wanted.values() for request in requests):
        raise RunError(f"{absent}, and network: false forbids to download them: {remedy}")
    if isinstance(chosen.engine, QueueEngine) or chosen.machine.declared:
        return  # the runs start on other machines
    if why := why_no_hub(chosen.contained):
        raise RunError(f"{absent}, and {why}. Connect this machine, {remedy}")


def check_stored(names: Collection[str], cache: Path, baked: str, chosen: Choice) -> None:
    """Raises DamagedFileError if a run would take its weights from a file that cannot have any."""
    if chosen.machine.declared and not isinstance(chosen.engine, QueueEngine):
        return
    files = [cache / "weights" / f"{name}.safetensors" for name in sorted(set(names) - set(baked.split(",")))]
    faults = [f"{path}: {why}" for path in files if path.is_file() and (why := named_files.wrong(path))]
    if faults:
        raise DamagedFileError("\n".join([*faults, "correct or remove these files of the weights' cache"]))


def is_stored(name: str, cache: Path, baked: str = "", contained: bool = False) -> bool:
    """Whether a run finds the weights of timm's `name` without a network. `baked` are the names in its image. A link
    that leads out of the cache is of no use to a container, which sees nothing there."""
    folders = [cache / "weights"]
    if not contained:
        hub = os.environ.get("HF_HUB_CACHE") or (os.environ.get("HF_HOME") and f"{os.environ['HF_HOME']}/hub")
        folders = [Path(hub).expanduser()] if hub else folders
        folders += [Path(folder) for folder in [os.environ.get("BAKED_WEIGHTS")] if folder]
    if name in baked.split(",") or any(
        (folder / f"{name}.safetensors").is_file()
        and not (contained and leads_out(folder / f"{name}.safetensors", cache))
        for folder in (cache / "weights", *folders)
    ):
        return True
    repository = timm_models.hub_repository(name) or f"timm/{name}"
    stored = [folder / f"models--{repository.replace('/', '--')}" for folder in folders]
    return any(_has_snapshot(path) and not (contained and leads_out(path, cache)) for path in stored)


def _has_snapshot(folder: Path) -> bool:
    """Whether a repository in the hub client's cache has weights. A download that was cut short leaves a folder
    without."""
    return any(
        path.suffix in (".safetensors", ".bin", ".pth") for path in folder.glob("snapshots/*/*") if path.exists()
    )


def leads_out(path: Path, cache: Path) -> bool:
    """Whether a file of the cache is a link that leads out of it."""
    try:
        return not path.resolve().is_relative_to(cache.resolve())
    except (OSError, RuntimeError):
        return True


def stray(names: Sequence[str], cache: Path) -> str:
    """The remark on weights in the cache that containers do not see; empty if there are none."""
    links = [path for name in names if (path := cache / "weights" / f"{name}.safetensors").is_symlink()]
    out = [str(path) for path in links if leads_out(path, cache)]
    return f" ({', '.join(out)} leads out of the cache, where containers see nothing: copy the file)" if out else ""


def why_no_hub(contained: bool = False) -> str | None:
    """Why the model hub cannot be reached from this host; None if it can, or if that is not known."""
    if not contained and os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return "HF_HUB_OFFLINE is set"
    endpoint = (None if contained else os.environ.get("HF_ENDPOINT")) or HUB
    parts = urllib.parse.urlsplit(endpoint)
    if not parts.hostname or urllib.request.getproxies():
        return None
    errors: list[OSError] = []
    address = (parts.hostname, parts.port or (80 if parts.scheme == "http" else 443))

    def connect() -> None:
        try:
            socket.create_connection(address, timeout=PATIENCE).close()
        except OSError as error:
            errors.append(error)

    attempt = threading.Thread(target=connect, daemon=True)  # a name server can be silent for long
    attempt.start()
    attempt.join(PATIENCE)
    if attempt.is_alive():
        return f"{endpoint} does not answer for {PATIENCE:g} s"
    return f"{endpoint} cannot be reached ({errors[0].strerror or errors[0]})" if errors else None
