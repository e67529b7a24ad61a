"""What runs and the machine use just now: memory, cores, GPUs. Only looks; a figure that cannot be had is None."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.host import gpu_locks
from launcher.record.journal import Status
from launcher.record.locks import is_locked
from launcher.record.states import ENDED
from trainer.base import cgroup

if TYPE_CHECKING:
    import psutil


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


def gpu_uses() -> list[GpuUse]:
    """Every GPU of this host; empty where no driver answers."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no driver, or no NVML: no GPUs
        return []
    found = []
    try:
        for index in range(pynvml.nvmlDeviceGetCount()):
            found.append(_gpu_use(pynvml, index))
    except Exception:  # NVML's errors: a GPU that fell off the bus takes the others' figures with it
        pass
    finally:
        with suppress(Exception):
            pynvml.nvmlShutdown()
    return found


def _gpu_use(pynvml: Any, index: int) -> GpuUse:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)

    def asked(question: Any, *more: Any) -> Any:
        with suppress(Exception):  # cards differ in what they tell
            return question(handle, *more)
        return None

    memory, rates = asked(pynvml.nvmlDeviceGetMemoryInfo), asked(pynvml.nvmlDeviceGetUtilizationRates)
    uuid = _text(asked(pynvml.nvmlDeviceGetUUID))
    return GpuUse(
        index=index,
        name=_text(asked(pynvml.nvmlDeviceGetName)) or "GPU",
        uuid=uuid,
        use_percent=None if rates is None else int(rates.gpu),
        memory_used=None if memory is None else int(memory.used),
        memory_total=None if memory is None else int(memory.total),
        temperature=asked(pynvml.nvmlDeviceGetTemperature, pynvml.NVML_TEMPERATURE_GPU),
        run=lock_holder(uuid or f"gpu{index}"),
    )


def lock_holder(lock_name: str) -> str | None:
    """The run that holds a GPU's lock, or None."""
    with suppress(OSError):
        return gpu_locks.holder(lock_name)
    return None


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")


class HostMemory:
    """Host memory of runs under way: the most that was seen, in bytes, since this watch began or the kernel counts.

    A native run is the process that executes it with all its descendants: see `resident`. A container is its control
    group: file caches count there.
    """

    def __init__(self) -> None:
        self._peaks: dict[tuple[Path, int], int] = {}
        self._files: dict[str, list[Path]] = {}

    def peak(self, run_dir: Path, status: Status) -> int | None:
        """Bytes; what the journal says once the run is over."""
        if status.state in ENDED:
            told = status.figures.get("peak_host_memory_bytes")
            return int(told) if told else None
        if status.state != "running":
            return None
        key = (run_dir, status.attempt)
        container = status.figures.get("container")
        now = self._of_container(str(container)) if container else _of_process(run_dir, status)
        if now is not None:
            self._peaks[key] = max(now, self._peaks.get(key, 0))
        return self._peaks.get(key)

    def _of_container(self, container: str) -> int | None:
        if container not in self._files:
            self._files[container] = []
            with suppress(Exception):  # no engine, or one on another host
                from launcher.engines.docker import client as containers

                client = containers.connect(timeout=3)
                pid = int(client.api.inspect_container(container)["State"]["Pid"])
                self._files[container] = cgroup.peak_files(pid)
        seen = [size for path in self._files[container] if (size := cgroup.number(path)) is not None]
        return max(seen, default=None)


def _of_process(run_dir: Path, status: Status) -> int | None:
    import os

    import psutil

    pid = status.figures.get("exec_pid")
    # Without the lock the process id may be another process's by now.
    if not pid or status.figures.get("host") != os.uname().nodename or not is_locked(run_dir / "exec.lock"):
        return None
    total = 0
    with suppress(psutil.Error):
        parent = psutil.Process(int(pid))
        for process in (parent, *parent.children(recursive=True)):
            with suppress(psutil.Error):
                total += resident(process)
    return total or None


def resident(process: psutil.Process) -> int:
    """Bytes of memory that the process has, with its part of the pages that it shares with others (PSS): those of a
    tree add up. Where the kernel does not count that (macOS), such pages count for each. Raises psutil.Error."""
    import psutil

    with suppress(psutil.Error, AttributeError):
        return int(process.memory_full_info().pss)
    return int(process.memory_info().rss)
