"""Stands in for pynvml: the GPUs that $STUB_GPUS describes as JSON, some of them in MIG mode (`instances`)."""

# ruff: noqa: N802  # its names
import json
import os

NVML_DEVICE_MIG_ENABLE = 1
NVML_TEMPERATURE_GPU = 0
calls: list[str] = []


class NVMLError(Exception):
    pass


class _Memory:
    def __init__(self, gib: float, used: int) -> None:
        self.total, self.used = int(gib * 2**30), used


class _Process:
    def __init__(self, size: int | None) -> None:
        self.usedGpuMemory = size


def _gpus() -> list:
    return json.loads(os.environ.get("STUB_GPUS", "[]"))


def nvmlInit() -> None:
    calls.append("init")


def nvmlShutdown() -> None:
    pass


def nvmlDeviceGetCount() -> int:
    return len(_gpus())


def nvmlDeviceGetHandleByIndex(index: int) -> dict:
    gpu = _gpus()[index]
    if gpu.get("lost"):
        raise NVMLError("GPU is lost")
    return gpu


def nvmlDeviceGetHandleByUUID(uuid: str) -> dict:
    for gpu in _gpus():
        for device in (gpu, *(gpu.get("instances") or [])):
            if device["uuid"] == uuid:
                return device
    raise NVMLError("Not Found")


def nvmlDeviceGetName(handle: dict) -> str:
    return handle["name"]


def nvmlDeviceGetUUID(handle: dict) -> str:
    return handle["uuid"]


def nvmlDeviceGetMemoryInfo(handle: dict) -> _Memory:
    return _Memory(handle["gib"], handle.get("used", 0))


def nvmlDeviceGetUtilizationRates(handle: dict) -> None:
    raise NVMLError("Not Supported")


def nvmlDeviceGetTemperature(handle: dict, kind: int) -> None:
    raise NVMLError("Not Supported")


def nvmlDeviceGetMigMode(handle: dict) -> list:
    if "instances" not in handle:
        raise NVMLError("Not Supported")
    return [int(handle["instances"] is not None)] * 2


def nvmlDeviceGetMaxMigDeviceCount(handle: dict) -> int:
    return 7


def nvmlDeviceGetMigDeviceHandleByIndex(handle: dict, index: int) -> dict:
    if index % 2 or index // 2 >= len(handle["instances"]):  # positions need not be contiguous
        raise NVMLError("Not Found")
    return handle["instances"][index // 2]


def nvmlDeviceGetComputeRunningProcesses(handle: dict) -> list:
    return [_Process(size) for size in handle.get("processes", [])]
