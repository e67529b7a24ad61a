"""What NVIDIA's driver says of this host's GPUs. Without a driver, or without NVML, there are none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class GpuUse:
    """One GPU as NVML sees it: percent of the time, bytes, degrees Celsius; None where the driver does not say."""

    index: int
    name: str
    uuid: str
    use_percent: int | None
    memory_used: int | None
    memory_total: int | None
    temperature: int | None
    run: str | None = None
    """Who holds its lock, as `<submission>/<run>`."""


@contextmanager
def _library() -> Iterator[Any]:
    """The initialised NVML. Raises its own errors, or those of its import: they share no base."""
    import pynvml

    pynvml.nvmlInit()
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def inventory() -> list[tuple[int, str, int, str]]:
    """Index, name, memory in bytes and UUID of every GPU; empty where no driver answers. Raises NVML's errors where one
    answers and then fails."""
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
    """Every GPU of this host, without the runs that hold them; those before one that fell off the bus."""
    uses: list[GpuUse] = []
    with suppress(Exception), _library() as nvml:
        for index in range(nvml.nvmlDeviceGetCount()):
            uses.append(_gpu_use(nvml, index))
    return uses


def _gpu_use(nvml: Any, index: int) -> GpuUse:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)

    def answer(question: Any, *more: Any) -> Any:
        with suppress(Exception):  # cards differ in what they tell
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
    """Bytes that compute processes hold on the device `index`; 0 where the driver does not say: that is no reason to
    refuse a GPU."""
    with suppress(Exception), _library() as nvml:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        processes: Iterable[object] = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        return sum(int(getattr(process, "usedGpuMemory", 0) or 0) for process in processes)
    return 0


def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA that the driver serves, as (major, minor); None without a driver."""
    with suppress(Exception), _library() as nvml:
        version = int(nvml.nvmlSystemGetCudaDriverVersion_v2())
        return version // 1000, version % 1000 // 10
    return None


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")
