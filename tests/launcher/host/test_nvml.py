"""What the driver says of other processes on a GPU."""

from __future__ import annotations

import json
import sys

import pytest

from launcher.base.errors import MachineError
from launcher.host import checks, gpu_locks, machine, nvml
from launcher.job import remarks, spec
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


def several(monkeypatch: pytest.MonkeyPatch, *gpus: dict[str, object]) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", stub_nvml)
    monkeypatch.setenv("STUB_GPUS", json.dumps([{"name": "A100", "gib": 80, **gpu} for gpu in gpus]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


LOST: dict[str, object] = {"uuid": "GPU-b", "lost": True}
SAID = "GPU 1 cannot be used: the driver says: GPU is lost"


def test_a_lost_gpu_hides_no_other(monkeypatch: pytest.MonkeyPatch, locks: None) -> None:
    several(monkeypatch, {"uuid": "GPU-a"}, LOST, {"uuid": "GPU-c", "instances": None})
    host = machine.here()
    assert host.devices == ("0", "2") and host.lost == (SAID,)
    assert [use.uuid for use in nvml.gpu_uses()] == ["GPU-a", "GPU-c"]
    assert nvml.divided_without_instances() == []
    assert gpu_locks.why_taken("GPU-a", 0) is None
    assert gpu_locks.why_taken("GPU-b", 1) == "lost (the driver says: GPU is lost)", "it was lost after the start"
    with pytest.raises(MachineError, match=f"has no GPU '1'; it has: 0 .*; {SAID}"):
        machine.select(None, "1")


def test_doctor_and_notes_name_a_lost_gpu_once(monkeypatch: pytest.MonkeyPatch) -> None:
    several(monkeypatch, {"uuid": "GPU-a"}, LOST)
    levels = [(check.what, check.level) for check in checks._accelerator()]
    assert levels == [("gpu 0", "ok"), ("gpu 1", "note")]
    job = spec.from_overrides(("model=resnet34",), (), {})
    host = machine.here()
    notes = remarks.before_start(job, [], host)
    assert [note for note in notes if "lost" in note] == [f"note: {SAID}"]
    several(monkeypatch, LOST)
    (check,) = checks._accelerator()
    assert check.level == "missing" and "GPU 0 cannot be used" in check.said, "none is left"
