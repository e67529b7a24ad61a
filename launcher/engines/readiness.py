"""What runs need beside their configuration: a data set without errors, and weights that can be had. Checked once for
all runs before the first starts."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.base.errors import DataFolderError, RunError
from launcher.engines import process, registry
from launcher.engines.base import Choice, QueueEngine
from launcher.host.checks import missing_packages
from launcher.host.machine import Machine
from launcher.record import folders
from launcher.record.find import cache_dir, own_cache
from launcher.record.request import RunRequest
from trainer.base.errors import EXIT_DATA, EXIT_OK
from trainer.base.files import to_bytes
from trainer.config import timm_models

if TYPE_CHECKING:
    from launcher.job.expansion import Planned

HUB = "https://huggingface.co"
QUIET = 5.0
"""Seconds without a word about the images."""
PATIENCE = 5.0
"""Seconds for a connection to the hub."""


Say = Callable[[str], object]


def check(requests: Sequence[RunRequest], runs_root: Path, chosen: Choice, say: Say) -> list[str]:
    """Check what these runs need. Returns notes on what could not be checked. Calls `say` before a long wait. Raises
    DataFolderError, RunError."""
    trained = [request for request in requests if request.kind == "train"]
    notes = []
    for request in {(r.config.get("root") or r.data_dir, r.config.get("format"), r.data): r for r in trained}.values():
        folder = str(request.config.get("root") or request.data_dir)
        notes += check_images(
            folder, str(request.config.get("format", "auto")), request.data, own_cache(runs_root), say
        )
    check_weights(trained, cache_dir(runs_root), chosen)
    return notes


def check_planned(
    planned: Sequence[Planned], data_dir: str | None, runs_root: Path, chosen: Choice | None, machine: Machine
) -> list[str]:
    """The same for `plan`, which starts nothing: the data set if its folder is named, and a note on weights that could
    not be had. Raises DataFolderError."""
    trained = [run.request for run in planned if run.request.kind == "train"]
    notes: list[str] = []
    for kind in sorted({str(request.config.get("format", "auto")) for request in trained}) if data_dir else ():
        notes += check_images(str(data_dir), kind, "", own_cache(runs_root))
    if not machine.declared:
        try:
            check_weights(trained, cache_dir(runs_root), chosen or Choice(registry.engine("native"), machine, ""))
        except RunError as error:
            notes.append(f"note: submit would refuse this now: {error}")
    return notes


def check_images(folder: str, kind: str, digest: str, cache: Path, say: Say = lambda line: None) -> list[str]:
    """Read every training image and label of a data folder with the trainer. Returns notes if that is not possible.
    Calls `say` if it takes long.

    `kind` is the value of `data.format`. A file in `cache`, which no run can write to, remembers a good data set by the
    `digest` of its content (empty: unknown). Raises DataFolderError with the errors, each with its file and row.
    """
    passed = cache / "checked" / f"data-{digest}-{kind}"
    if digest and passed.exists():
        return []
    if missing_packages():
        return [
            f"note: {folder}: its images are not checked here, where the trainer is not installed; each run does so"
        ]
    command = [*process.ENTRY, "check-data", "--quick", "--data", folder, f"data.format={kind}"]
    environment = {**os.environ, "CACHE_DIR": str(cache)}
    try:
        code, said = _result(command, environment, lambda: say(f"{folder}: reading every image, once for all runs …"))
    except OSError as error:
        return [f"note: {folder}: its images could not be checked ({error.strerror}); each run does so"]
    if code == EXIT_DATA:
        raise DataFolderError(said.removeprefix("error: "))
    if code != EXIT_OK:
        last = said.removeprefix("error: ").splitlines()[-1:] or [f"exit code {code}"]
        return [f"note: {folder}: its images could not be checked ({last[0]}); each run does so"]
    if digest:
        with contextlib.suppress(OSError):
            passed.parent.mkdir(parents=True, exist_ok=True)
            folders.write(passed, to_bytes(f"{folder}\n"), 2)
    return []


def _result(command: Sequence[str], environment: dict[str, str], tell: Callable[[], object]) -> tuple[int, str]:
    """Exit code and errors of a command. Calls `tell` after some seconds. Raises OSError."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    )
    try:
        try:
            errors = process.communicate(timeout=QUIET)[1]
        except subprocess.TimeoutExpired:
            tell()
            errors = process.communicate()[1]
    finally:  # also after Ctrl-C
        if process.poll() is None:
            process.kill()
            process.wait()
    return process.returncode, errors.decode(errors="surrogateescape").strip()


def check_weights(trained: Sequence[RunRequest], cache: Path, chosen: Choice) -> None:
    """Raises RunError if runs need pretrained weights that are neither stored nor can be downloaded."""
    baked = chosen.image.weights if chosen.image else ""
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
    return any(path.is_dir() and not (contained and leads_out(path, cache)) for path in stored)


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
