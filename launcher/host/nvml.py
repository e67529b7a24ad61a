"""GPUs of this host, read from NVIDIA's driver (NVML). Without a driver or NVML there are no GPUs.

A GPU in MIG mode is divided into instances. CUDA can use only these, so each of them is a device of its own here, and
the GPU itself is none. All orders are NVML's, which is the order of the PCI bus. CUDA's own order is another one: the
fastest GPU first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

MIG = "MIG-"
"""Prefix of the UUID of a MIG instance."""
LOST = 15
"""NVML_ERROR_GPU_IS_LOST."""


@dataclass(frozen=True)
class Device:
    """A GPU or a MIG instance. `memory` in bytes. `instance` counts a GPU's MIG instances from 0 and is None for a
    whole GPU. `parent` is the UUID of the instance's GPU, else empty."""

    index: int
    name: str
    memory: int
    uuid: str
    instance: int | None = None
    parent: str = ""


def label(index: int, instance: int | None) -> str:
    """The name of a device for people: `1`, or `1:0` for a MIG instance."""
    return str(index) if instance is None else f"{index}:{instance}"


@dataclass(frozen=True)
class GpuUse:
    """A device's use by NVML: percent of the time, bytes, degrees Celsius; None if the driver does not report it."""

    index: int
    name: str
    uuid: str
    use_percent: int | None
    memory_used: int | None
    memory_total: int | None
    temperature: int | None
    run: str | None = None
    """The holder of its lock, as `<submission>/<run>`."""
    instance: int | None = None
    """Of a MIG instance, see `Device`."""

    @property
    def label(self) -> str:
        """See `label`."""
        return label(self.index, self.instance)


_open: Any = None
"""The initialised NVML of the `session` that this process is in."""


@contextmanager
def _library() -> Iterator[Any]:
    """The initialised NVML. Raises NVML's errors or import errors, which have no common base class."""
    if _open is not None:
        yield _open
        return
    import pynvml

    pynvml.nvmlInit()
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


@contextmanager
def session() -> Iterator[None]:
    """Within it, NVML is initialised once and not for each question. Without a driver it does nothing."""
    global _open
    with ExitStack() as stack:
        before = _open
        with suppress(Exception):
            _open = stack.enter_context(_library())
        try:
            yield
        finally:
            _open = before


@dataclass(frozen=True)
class Inventory:
    """The devices that can be used, and the driver's words on each GPU that cannot, by its index."""

    devices: list[Device]
    lost: dict[int, str]


def inventory() -> Inventory:
    """Every device; empty if no driver answers. A GPU that has fallen off the bus, for which every question fails, does
    not hide the others."""
    found = Inventory([], {})
    with suppress(Exception), _library() as nvml:
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                found.devices.extend(_inventory_of(nvml, index))
            except Exception as error:  # NVML's errors have no common base class
                found.lost[index] = str(error)
    return found


def _inventory_of(nvml: Any, index: int) -> list[Device]:
    return [
        Device(
            index,
            _text(nvml.nvmlDeviceGetName(handle)),
            int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
            _text(nvml.nvmlDeviceGetUUID(handle)),
            instance,
            _text(nvml.nvmlDeviceGetUUID(_handle(nvml, index))) if instance is not None else "",
        )
        for instance, handle in _devices(nvml, index)
    ]


def why_lost(index: int) -> str | None:
    """The driver's words if the GPU `index` has fallen off the bus; else None, also if no driver answers."""
    with suppress(Exception), _library() as nvml:
        try:
            nvml.nvmlDeviceGetMemoryInfo(_handle(nvml, index))
        except Exception as error:
            is_lost = getattr(error, "value", None) == LOST or "lost" in str(error).lower()
            return str(error) if is_lost else None
    return None


def divided_without_instances() -> list[int]:
    """Indices of the GPUs in MIG mode that have no MIG instance, so that CUDA cannot use them."""
    divided = []
    with suppress(Exception), _library() as nvml:
        for index in range(nvml.nvmlDeviceGetCount()):
            with suppress(Exception):  # a lost GPU
                divided += [] if _devices(nvml, index) else [index]
    return divided


def _handle(nvml: Any, index: int) -> Any:
    return nvml.nvmlDeviceGetHandleByIndex(index)


def _devices(nvml: Any, index: int) -> list[tuple[int | None, Any]]:
    """The devices of the GPU `index` with their handles: its MIG instances, or the GPU itself (None)."""
    handle = _handle(nvml, index)
    enabled = False
    with suppress(Exception):  # most cards have no MIG mode
        enabled = nvml.nvmlDeviceGetMigMode(handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE
    if not enabled:
        return [(None, handle)]
    instances: list[tuple[int | None, Any]] = []
    for position in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        with suppress(Exception):  # no instance at this position
            instances.append((len(instances), nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, position)))
    return instances


def gpu_uses() -> list[GpuUse]:
    """Use of every device of this host, without its run. Leaves out a GPU that is lost."""
    uses: list[GpuUse] = []
    with suppress(Exception), _library() as nvml:
        for index in range(nvml.nvmlDeviceGetCount()):
            with suppress(Exception):
                uses += [_gpu_use(nvml, index, instance, handle) for instance, handle in _devices(nvml, index)]
    return uses


def _gpu_use(nvml: Any, index: int, instance: int | None, handle: Any) -> GpuUse:
    def answer(question: Any, *more: Any) -> Any:
        with suppress(Exception):  # not every card reports every figure
            return question(handle, *more)
        return None

    memory, rates = answer(nvml.nvmlDeviceGetMemoryInfo), answer(nvml.nvmlDeviceGetUtilizationRates)
    return GpuUse(
        index=index,
        name=_text(answer(nvml.nvmlDeviceGetName)) or "GPU",
        uuid=_text(answer(nvml.nvmlDeviceGetUUID)),
        use_percent=None if rates is None else int(rates.gpu),
        memory_used=None if memory is None else int(memory.used),
        memory_total=None if memory is None else int(memory.total),
        temperature=answer(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
        instance=instance,
    )


def memory_of_processes(index: int, uuid: str = "") -> int | None:
    """Bytes that compute processes use on the GPU `index`, or on the MIG instance `uuid` of it. 0 if the driver does
    not report processes, since that is no reason to refuse a GPU.

    If it does not report how much one of them uses (from another PID namespace, in a container): the bytes in use on
    the device; None if they are not reported either.
    """
    with suppress(Exception), _library() as nvml:
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid) if uuid.startswith(MIG) else _handle(nvml, index)
        processes: Iterable[object] = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        sizes = [getattr(process, "usedGpuMemory", None) for process in processes]
        known = [size for size in sizes if isinstance(size, int) and 0 <= size < _UNKNOWN]
        return sum(known) if len(known) == len(sizes) else _memory_in_use(nvml, handle)
    return 0


_UNKNOWN = 2**63
"""Sizes from here on are NVML's words for "not available", in versions of pynvml that pass them on."""


def _memory_in_use(nvml: Any, handle: Any) -> int | None:
    """Bytes in use on the device, without what the driver reserves for itself if it says so; None if unknown."""
    with suppress(Exception):
        return int(nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2).used)
    with suppress(Exception):
        return int(nvml.nvmlDeviceGetMemoryInfo(handle).used)
    return None


def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA version that the driver supports, as (major, minor); None without a driver."""
    with suppress(Exception), _library() as nvml:
        version = int(nvml.nvmlSystemGetCudaDriverVersion_v2())
        return version // 1000, version % 1000 // 10
    return None


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")
