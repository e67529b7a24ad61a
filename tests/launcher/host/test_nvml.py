"""What the driver says of other processes on a GPU."""

from __future__ import annotations

import json
import sys

import pytest

from launcher.host import gpu_locks, nvml
from tests.launcher.host import stub_nvml

GIB = 2**30


def one_gpu(monkeypatch: pytest.MonkeyPatch, **more: object) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", stub_nvml)
    monkeypatch.setenv("STUB_GPUS", json.dumps([{"name": "A100", "gib": 80, "uuid": "GPU-a", **more}]))


@pytest.mark.parametrize(
    ("processes", "used", "expected"),
    [
        ([], 9 * GIB, 0),
        ([GIB, 2 * GIB], 9 * GIB, 3 * GIB),
        ([GIB, None], 9 * GIB, 9 * GIB),
        ([None], 9 * GIB, 9 * GIB),
        ([2**64 - 1], 9 * GIB, 9 * GIB),  # as older versions of pynvml say it
        ([None], 0, 0),
    ],
)
def test_a_process_of_unknown_size_uses_what_is_in_use(
    monkeypatch: pytest.MonkeyPatch, locks: None, processes: list[int | None], used: int, expected: int
) -> None:
    one_gpu(monkeypatch, processes=processes, used=used)
    assert nvml.memory_of_processes(0, "GPU-a") == expected
    why = f"{expected / GIB:.1f} GiB in use by other processes" if expected else None
    assert gpu_locks.why_taken("GPU-a", 0) == why


def test_a_process_on_a_device_of_unknown_use_is_in_the_way(monkeypatch: pytest.MonkeyPatch, locks: None) -> None:
    one_gpu(monkeypatch, processes=[None])
    monkeypatch.delattr(stub_nvml, "nvmlDeviceGetMemoryInfo")
    assert gpu_locks.why_taken("GPU-a", 0) == "in use by other processes, which use an unknown amount of memory"


def test_the_driver_is_opened_once_for_all_questions(monkeypatch: pytest.MonkeyPatch, locks: None) -> None:
    one_gpu(monkeypatch)
    stub_nvml.calls.clear()
    with nvml.session():
        for _ in range(8):
            assert gpu_locks.why_taken("GPU-a", 0) is None
    assert stub_nvml.calls == ["init"]
    assert nvml.memory_of_processes(0) == 0 and len(stub_nvml.calls) == 2, "a closed session is not used"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with nvml.session():
        assert nvml.memory_of_processes(0) == 0
