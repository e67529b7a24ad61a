"""The host's checks of `launcher doctor`, each with the command that fixes the problem."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launcher.base.sizes import GIB
from launcher.host import nvml
from launcher.host.machine import VARIABLE, Machine, here, select
from trainer.base import layout
from trainer.base.errors import DataError
from trainer.base.plural import counted

Level = Literal["ok", "note", "missing"]
MARKS: dict[Level, str] = {"ok": "✓", "note": "!", "missing": "✗"}


@dataclass(frozen=True)
class Check:
    """One result of `doctor`. `fix` is the command or setting that fixes the problem."""

    what: str
    level: Level
    said: str
    fix: str = ""

    def as_json(self) -> dict[str, str]:
        """The entry of `doctor --json`. The key of `fix` there is `mend`."""
        return {"what": self.what, "level": self.level, "said": self.said, "mend": self.fix}


def before_engines(data: str | None, runs_root: Path, packages_needed: bool) -> list[Check]:
    """The host's checks that come before the engines' checks, in the order in which a user would meet the problems.

    `packages_needed`: no engine executes runs unless the trainer is installed here.
    """
    return [_python(), _trainer(packages_needed), *_accelerator(), _memory(), _data(data), _runs(runs_root)]


def after_engines() -> list[Check]:
    """The host's checks that come after the engines' checks."""
    return [_wandb(), *_mac()]


def _python() -> Check:
    return Check("python", "ok", platform.python_version())


INSTALL = "pip install -c images/constraints.txt -e '.[train]'"


@functools.cache
def missing_packages() -> list[str]:
    """Packages of the `train` extra that are not installed, by metadata, because importing torch takes seconds.

    Also empty if the project itself is not installed: its requirements are then unknown.
    """
    try:
        requirements = importlib.metadata.requires("document-classifier-jobs") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    wanted = [
        re.split(r"[<>=!~; \[]", line)[0] for line in requirements if 'extra == "train"' in line.replace("'", '"')
    ]
    missing = []
    for name in wanted:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    return missing


def _trainer(packages_needed: bool) -> Check:
    missing = missing_packages()
    if missing and not packages_needed:
        return Check("trainer", "note", "not installed here; runs need containers", f"for native runs: {INSTALL}")
    if missing:
        return Check("trainer", "missing", f"not installed: {', '.join(missing)}", INSTALL)
    try:
        versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "timm")]
    except importlib.metadata.PackageNotFoundError as error:
        return Check("trainer", "missing", f"not installed: {error.name}", INSTALL)
    return Check("trainer", "ok", ", ".join(versions))


def _accelerator() -> list[Check]:
    host = here()
    checks = [Check(f"gpu {gpu.label}", "ok", f"{gpu.name}, {(gpu.memory or 0) / GIB:.0f} GiB") for gpu in host.gpus]
    checks += [
        Check(f"gpu {line.split()[1]}", "note" if host.gpus else "missing", line, "nvidia-smi; restart the host")
        for line in host.lost
    ]
    checks += [
        Check(
            f"gpu {index}",
            "note",
            "in MIG mode without instances: CUDA cannot use it",
            f"nvidia-smi mig -i {index} -cgi … -C",
        )
        for index in nvml.divided_without_instances()
    ]
    if host.mps:
        checks.append(Check("gpu", "ok", "MPS"))
    elif not checks and Path("/dev/nvidiactl").exists():
        checks.append(Check("gpu", "note", "found an NVIDIA device, but its driver does not answer", "nvidia-smi"))
    elif not checks:
        cores = counted(host.cpus, "core")
        checks.append(Check("gpu", "note", f"none; runs train on the CPU ({cores}), many times slower"))
    return checks + _variable(host)


def _variable(host: Machine) -> list[Check]:
    """What CUDA_VISIBLE_DEVICES leaves of the GPUs."""
    allowed = select(None)
    value = os.environ.get(VARIABLE)
    if value is None or (not host.gpus and not allowed.ignored):
        return []
    fix = f"unset {VARIABLE}, or name other GPUs in it"
    if allowed.ignored:
        return [Check("gpu choice", "note" if allowed.gpus or not host.gpus else "missing", allowed.ignored, fix)]
    if not allowed.gpus:
        return [Check("gpu choice", "note", f"{VARIABLE}={value} hides every GPU: runs train on the CPU", fix)]
    return [Check("gpu choice", "ok", f"{VARIABLE}={value}: {', '.join(allowed.devices)}")]


def _memory() -> Check:
    memory = here().memory / GIB
    if memory < 4:
        return Check(
            "memory",
            "note",
            f"{memory:.1f} GiB: small models and sizes only",
            "training.micro_batch=1 training.num_workers=1",
        )
    return Check("memory", "ok", f"{memory:.1f} GiB")


def _data(given: str | None) -> Check:
    folder = Path(given or os.environ.get("DATA_DIR") or "data").expanduser()
    fix = f"--data DIR or DATA_DIR; to try without data: python -m trainer sample-data {folder}"
    if not folder.is_dir():
        return Check("data", "note", f"{folder}: no such folder", fix)
    try:
        parts = layout.find(folder)
        for place in filter(None, (parts.train, parts.validation, parts.test)):
            next(os.scandir(place), None)
        if (why_not := layout.why_not_trainable(parts, "auto")) is None:
            return Check("data", "ok", str(folder))
    except OSError as error:
        return Check(
            "data", "missing", f"{error.filename}: cannot be read ({error.strerror})", "chmod -R u+rX, or --data DIR"
        )
    except DataError as error:
        return Check("data", "missing", str(error), "--data DIR")
    return Check("data", "note", f"{folder}: {why_not}", fix)


def _runs(root: Path) -> Check:
    parent = next(path for path in (root, *root.resolve().parents) if path.is_dir())
    free = shutil.disk_usage(parent).free / GIB
    try:
        tempfile.TemporaryFile(dir=parent).close()
    except OSError:
        return Check("runs", "missing", f"{parent}: cannot be written to", "--runs DIR, a folder that you may write to")
    if free < 20:
        return Check(
            "runs",
            "note",
            f"{root}: {free:.0f} GiB free; a run of convnext_base keeps about 2 GiB",
            "training.keep_top=1",
        )
    return Check("runs", "ok", f"{root}: {free:.0f} GiB free")


def _wandb() -> Check:
    mode = os.environ.get("WANDB_MODE", "")
    if mode in ("disabled", "offline"):
        return Check("wandb", "ok", mode)
    if os.environ.get("WANDB_API_KEY"):
        return Check("wandb", "ok", "a key is set; list WANDB_API_KEY under secrets: of a job")
    return Check("wandb", "ok", "off: no key is set")


def _mac() -> list[Check]:
    if sys.platform != "darwin":
        return []
    if shutil.which("caffeinate"):
        return [Check("sleep", "ok", "caffeinate keeps the Mac awake while runs train")]
    return [Check("sleep", "note", "caffeinate is not on PATH: the Mac may fall asleep", "export PATH=/usr/bin:$PATH")]
