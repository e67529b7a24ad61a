"""GPUs of this host, read from NVIDIA's driver (NVML). Without a driver or NVML there are no GPUs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class GpuUse:
    """One GPU's use by NVML: percent of the time, bytes, degrees Celsius; None if the driver does not report it."""

    index: int
    name: str
    uuid: str
    use_percent: int | None
    memory_used: int | None
    memory_total: int | None
    temperature: int | None
    run: str | None = None
    """The holder of its lock, as `<submission>/<run>`."""


@contextmanager
def _library() -> Iterator[Any]:
    """The initialised NVML. Raises NVML's errors or import errors, which have no common base class."""
    import pynvml

    pynvml.nvmlInit()
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def inventory() -> list[tuple[int, str, int, str]]:
    """Index, name, memory in bytes and UUID of every GPU; empty if no driver answers. Raises NVML's errors if the
    driver answers first and fails later."""
    with ExitStack() as stack:
        try:
            nvml = stack.enter_context(_library())
        except Exception:
            return []
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        return [
            (
                index,
                _text(nvml.nvmlDeviceGetName(handle)),
                int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
                _text(nvml.nvmlDeviceGetUUID(handle)),
            )
            for index, handle in enumerate(handles)
        ]


def gpu_uses() -> list[GpuUse]:
    """Use of every GPU of this host, without its run. The list ends before a GPU that is lost (fallen off the bus)."""
    uses: list[GpuUse] = []
    with suppress(Exception), _library() as nvml:
        for index in range(nvml.nvmlDeviceGetCount()):
            uses.append(_gpu_use(nvml, index))
    return uses


def _gpu_use(nvml: Any, index: int) -> GpuUse:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)

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
    )


def memory_of_processes(index: int) -> int:
    """Bytes that compute processes use on the device `index`. 0 if the driver does not report it, since that is no
    reason to refuse a GPU."""
    with suppress(Exception), _library() as nvml:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        processes: Iterable[object] = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        return sum(int(getattr(process, "usedGpuMemory", 0) or 0) for process in processes)
    return 0


def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA version that the driver supports, as (major, minor); None without a driver."""
    with suppress(Exception), _library() as nvml:
        version = int(nvml.nvmlSystemGetCudaDriverVersion_v2())
        return version // 1000, version % 1000 // 10
    return None


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")
