"""A machine's cores, memory and accelerators: detected on this host, or read from a description of another machine."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.base.errors import MachineError, SizeError
from launcher.base.sizes import GIB, parse_size
from launcher.host import nvml
from trainer.base.cgroup import cpu_limit, memory_limit
from trainer.base.errors import nearest


@dataclass(frozen=True)
class Gpu:
    """One CUDA device. `memory` in bytes, None if unknown."""

    index: int
    name: str = "GPU"
    memory: int | None = None
    uuid: str = ""

    @property
    def lock_name(self) -> str:
        return self.uuid or f"gpu{self.index}"


@dataclass(frozen=True)
class Machine:
    """Cores, memory (bytes) and accelerators."""

    name: str
    cpus: float
    memory: int
    gpus: tuple[Gpu, ...] = ()
    mps: bool = False
    declared: bool = False
    """Read from a file or a built-in description, not detected on this host."""

    @property
    def devices(self) -> tuple[str, ...]:
        """Devices for runs: CUDA indices, or `mps`."""
        return tuple(str(gpu.index) for gpu in self.gpus) or (("mps",) if self.mps else ())

    def lock_name(self, device: str) -> str:
        """The name of the host-wide lock of a device."""
        return next((gpu.lock_name for gpu in self.gpus if str(gpu.index) == device), device)

    def describe(self) -> str:
        """One line."""
        named = ", ".join(sorted({gpu.name for gpu in self.gpus}))
        accelerators = f"{len(self.gpus)} GPU ({named})" if self.gpus else "MPS" if self.mps else "no GPU"
        return f"{self.name}: {accelerators}, {self.cpus:g} cores, {self.memory / GIB:.1f} GiB"


ASSUMED_GPU = Gpu(0, "NVIDIA GPU, 80 GiB assumed", 80 * GIB)
"""The manual does not say which GPU its server has. It trains convnext_base at batch 64 there, about 50 GB by its own
estimate. Among common cards, 80 GiB is the smallest size that fits this with a margin."""

# The manual's two environments, and the device in its older table.
BUILT_IN = {
    "cuda-server": Machine("cuda-server", 16, 128 * GIB, (ASSUMED_GPU,), declared=True),
    "mac-m4-pro": Machine("mac-m4-pro", 12, 24 * GIB, mps=True, declared=True),
    "mps-20gb": Machine("mps-20gb", 8, 20 * GIB, mps=True, declared=True),
}


def select(machine: str | None, gpus: str | None = None) -> Machine:
    """The machine called `machine` (a built-in name or a YAML file), else this host. `gpus` limits it to some of its
    GPUs (`0,1`, or UUIDs). Raises MachineError."""
    described = _described(machine) if machine else here()
    if gpus is None and not described.declared:
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
        where = "CUDA_VISIBLE_DEVICES"
    else:
        where = "--gpus"
    if gpus is None:
        return described
    words = [word.strip() for word in gpus.split(",") if word.strip() not in ("", "-1", "none", "NoDevFiles")]
    chosen = []
    for word in words:
        matching = [g for g in described.gpus if word == str(g.index) or (g.uuid and g.uuid.startswith(word))]
        if not matching:
            if where != "--gpus":  # a stale environment variable is not a request
                continue
            have = ", ".join(str(g.index) for g in described.gpus) or "none"
            raise MachineError(f"--gpus {gpus}: {described.name} has no GPU '{word}'; it has: {have}")
        if matching[0] not in chosen:
            chosen.append(matching[0])
    return Machine(
        described.name, described.cpus, described.memory, tuple(chosen), described.mps and not words, described.declared
    )


def here() -> Machine:
    """This host: GPUs by NVML, cores by affinity and control group, memory by control group."""
    import psutil

    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    memory = int(psutil.virtual_memory().total)
    mps = platform.system() == "Darwin" and platform.machine() == "arm64"
    return Machine(
        platform.node() or "this host",
        min(cores, cpu_limit() or cores),
        min(memory, memory_limit() or memory),
        tuple(Gpu(index, name, memory, uuid) for index, name, memory, uuid in nvml.inventory()),
        mps,
    )


def _described(name: str) -> Machine:
    if name in BUILT_IN:
        return BUILT_IN[name]
    path = Path(name)
    if not path.is_file():
        raise MachineError(f"--machine {name}: not a file and not a known machine; {nearest(name, BUILT_IN)}")
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise MachineError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise MachineError(f"{path}: write cpus:, memory: and gpus: or mps:")
    known = ("name", "cpus", "memory", "gpus", "mps")
    for key in content:
        if key not in known:
            raise MachineError(f"{path}: unknown field '{key}'; {nearest(str(key), known)}")
    return Machine(
        str(content.get("name", path.stem)),
        _positive(path, "cpus", content.get("cpus", 1)),
        _size(path, "memory", content.get("memory", "8g")),
        _gpus(path, content.get("gpus", 0)),
        bool(content.get("mps", False)),
        declared=True,
    )


def _gpus(path: Path, value: Any) -> tuple[Gpu, ...]:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 1024:
        return tuple(Gpu(index) for index in range(value))
    if not isinstance(value, list):
        raise MachineError(f"{path}: gpus: must be a number, or a list of {{name: …, memory: …}}, not {value!r}")
    gpus = []
    for index, entry in enumerate(value):
        if not isinstance(entry, dict) or not set(entry) <= {"name", "memory"}:
            raise MachineError(f"{path}: gpus: {index}: write {{name: …, memory: …}}, not {entry!r}")
        memory = _size(path, f"gpus: {index}: memory", entry["memory"]) if entry.get("memory") is not None else None
        gpus.append(Gpu(index, str(entry.get("name", "GPU")), memory))
    return tuple(gpus)


def _positive(path: Path, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise MachineError(f"{path}: {key}: must be a number above 0, not {value!r}")
    return float(value)


def _size(path: Path, key: str, value: Any) -> int:
    try:
        return parse_size(value)
    except SizeError as error:
        raise MachineError(f"{path}: {key}: {error}") from None
