"""A machine's cores, memory and accelerators: detected on this host, or read from a description of another machine."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher.base.errors import MachineError, SizeError
from launcher.base.sizes import GIB, parse_size
from launcher.host import gpu_locks, nvml
from trainer.base.cgroup import cpu_limit, memory_limit
from trainer.base.errors import nearest
from trainer.base.plural import counted


@dataclass(frozen=True)
class Gpu:
    """One CUDA device: a GPU or a MIG instance. `memory` in bytes, None if unknown. `index` by NVML (PCI order)."""

    index: int
    name: str = "GPU"
    memory: int | None = None
    uuid: str = ""
    instance: int | None = None
    """Of a MIG instance: its number on the GPU. None for a whole GPU."""
    parent: str = ""
    """Of a MIG instance: the UUID of its GPU."""

    @property
    def label(self) -> str:
        """Its name for people and in journals: `1`, or `1:0` for a MIG instance."""
        return nvml.label(self.index, self.instance)

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
    ignored: str = ""
    """Which words of CUDA_VISIBLE_DEVICES name no GPU of this host, as a text for people; else empty."""
    lost: tuple[str, ...] = ()
    """GPUs of this host that the driver has lost, each as a text for people. The others can be used."""

    @property
    def devices(self) -> tuple[str, ...]:
        """Devices for runs: the labels of the GPUs, or `mps`."""
        return tuple(gpu.label for gpu in self.gpus) or (("mps",) if self.mps else ())

    def lock_name(self, device: str) -> str:
        """The name of the host-wide lock of a device."""
        return next((gpu.lock_name for gpu in self.gpus if gpu.label == device), device)

    def visible(self, devices: Sequence[str]) -> list[str]:
        """See `gpu_locks.visible`."""
        return gpu_locks.visible(devices, [self.lock_name(device) for device in devices])

    def index(self, device: str) -> int | None:
        """The index by NVML of a device's GPU; None if it is no GPU of this host."""
        return None if self.declared else next((gpu.index for gpu in self.gpus if gpu.label == device), None)

    def for_run_on(self, gpus: int) -> Machine:
        """The machine with the devices that a run on so many GPUs can use: CUDA cannot use a MIG instance together
        with another device."""
        if gpus <= 1:
            return self
        return replace(self, gpus=tuple(gpu for gpu in self.gpus if gpu.instance is None))

    def describe(self) -> str:
        """One line."""
        named = ", ".join(sorted({gpu.name for gpu in self.gpus}))
        accelerators = f"{len(self.gpus)} GPU ({named})" if self.gpus else "MPS" if self.mps else "no GPU"
        return f"{self.name}: {accelerators}, {counted(self.cpus, 'core')}, {self.memory / GIB:.1f} GiB"


ASSUMED_GPU = Gpu(0, "NVIDIA GPU, 80 GiB assumed", 80 * GIB)
"""The manual does not say which GPU its server has. It trains convnext_base at batch 64 there, about 50 GB by its own
estimate. Among common cards, 80 GiB is the smallest size that fits this with a margin."""

# The manual's two environments, and the device in its older table.
BUILT_IN = {
    "cuda-server": Machine("cuda-server", 16, 128 * GIB, (ASSUMED_GPU,), declared=True),
    "mac-m4-pro": Machine("mac-m4-pro", 12, 24 * GIB, mps=True, declared=True),
    "mps-20gb": Machine("mps-20gb", 8, 20 * GIB, mps=True, declared=True),
}


VARIABLE = "CUDA_VISIBLE_DEVICES"
NOTHING = ("", "-1", "none", "NoDevFiles", "void")
"""Words for no GPU in CUDA_VISIBLE_DEVICES: of CUDA, Slurm and container engines."""


def select(machine: str | None, gpus: str | None = None) -> Machine:
    """The machine called `machine` (a built-in name or a YAML file), else this host. `gpus` limits it to some of its
    GPUs (`0,1`, or UUIDs), else CUDA_VISIBLE_DEVICES does so for this host. Raises MachineError for a word of `gpus`
    that names no GPU. Such a word of CUDA_VISIBLE_DEVICES, which may be out of date, is in `Machine.ignored`."""
    described = _described(machine) if machine else here()
    if gpus is None:
        named = None if described.declared else os.environ.get(VARIABLE)
        return described if named is None else _limited(described, named)
    words = _words(gpus)
    chosen = [gpu for word in words for gpu in _named(word, described.gpus)]
    for word in words:
        if not _named(word, described.gpus):
            raise MachineError(f"--gpus {gpus}: {_no_such(described, [word])}")
    return replace(described, gpus=tuple(dict.fromkeys(chosen)), mps=False)


def _limited(host: Machine, variable: str) -> Machine:
    """The host with the GPUs that CUDA_VISIBLE_DEVICES names. MPS is not concerned."""
    words = _words(variable)
    chosen = [gpu for word in words for gpu in _named(word, host.gpus)]
    unknown = [word for word in words if not _named(word, host.gpus)]
    ignored = f"{VARIABLE}={variable}: {_no_such(host, unknown)}" if unknown and not host.mps else ""
    return replace(host, gpus=tuple(dict.fromkeys(chosen)), ignored=ignored)


def _words(text: str) -> list[str]:
    """The words in a list of GPUs. CUDA reads it to the first -1."""
    read = re.split(r"(?:^|,)\s*-1\s*(?:,|$)", text)[0]
    return [word.strip() for word in read.split(",") if word.strip() not in NOTHING]


def _named(word: str, gpus: Sequence[Gpu]) -> list[Gpu]:
    """The GPUs that a word of CUDA_VISIBLE_DEVICES or `--gpus` names: an index in PCI order, a label, or a UUID or the
    beginning of exactly one. A GPU in MIG mode stands for its instances."""
    exact = [gpu for gpu in gpus if word in (gpu.label, str(gpu.index), gpu.uuid, gpu.parent)]
    if exact or not word.startswith(("GPU-", nvml.MIG)):
        return exact
    uuids = {uuid for gpu in gpus for uuid in (gpu.uuid, gpu.parent) if uuid.startswith(word)}
    return [gpu for gpu in gpus if uuids & {gpu.uuid, gpu.parent}] if len(uuids) == 1 else []


def _no_such(machine: Machine, words: Sequence[str]) -> str:
    """That these words name no GPU, and which there are."""
    named = [f"{gpu.label} ({gpu.uuid})" if gpu.uuid else gpu.label for gpu in machine.gpus]
    uuids = [word for word in words if word.startswith(("GPU-", nvml.MIG))]
    several = [word for word in uuids if sum(gpu.uuid.startswith(word) for gpu in machine.gpus) > 1]
    if several:
        return f"'{several[0]}' is the beginning of several UUIDs; {machine.name} has: {', '.join(named)}"
    have = "; ".join([f"it has: {', '.join(named)}" if named else "it has none", *machine.lost])
    return f"{machine.name} has no GPU {' or '.join(repr(word) for word in words)}; {have}"


def here() -> Machine:
    """This host: GPUs by NVML, cores by affinity and control group, memory by control group."""
    import psutil

    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    memory = int(psutil.virtual_memory().total)
    mps = platform.system() == "Darwin" and platform.machine() == "arm64"
    inventory = nvml.inventory()
    return Machine(
        platform.node() or "this host",
        min(cores, cpu_limit() or cores),
        min(memory, memory_limit() or memory),
        tuple(Gpu(d.index, d.name, d.memory, d.uuid, d.instance, d.parent) for d in inventory.devices),
        mps,
        lost=tuple(f"GPU {index} cannot be used: the driver says: {words}" for index, words in inventory.lost.items()),
    )


def _described(name: str) -> Machine:
    if name in BUILT_IN:
        return BUILT_IN[name]
    path = Path(name)
    if not path.is_file():
        raise MachineError(f"--machine {name}: not a file and not a known machine; {nearest(name, BUILT_IN)}")
    from launcher.base import yaml_text

    try:
        with path.open("rb") as file:
            content = yaml_text.read(file.read(yaml_text.MOST_BYTES + 1).decode("utf-8-sig"))[0]
    except yaml_text.YamlError as error:
        raise MachineError("\n".join(f"{path}:{line}: {fault}" for line, fault in error.faults)) from None
    except (UnicodeDecodeError, OSError) as error:
        raise MachineError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
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
