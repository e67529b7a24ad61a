"""Full memory in every wording of torch and its libraries, and advice that names something smaller."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trainer.base.errors import DeviceMemoryError, TrainerError
from trainer.config.compose import compose
from trainer.training import device, full_memory

Train = Callable[..., int]

DEVICE = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …"),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported …"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
    RuntimeError("NCCL error in: …: unhandled cuda error. Last error: Cuda failure 2 'out of memory'"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("cuda runtime error (2) : out of memory at THCStorage.cu:66"),
    RuntimeError("HIP out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError(
        "MPS backend out of memory (MPS allocated: 6.04 GB, other allocations: 1.04 GB, max allowed: 6.77 GB)"
    ),
    RuntimeError("Invalid buffer size: 9.75 GB"),
    RuntimeError("Invalid buffer size: 19.38 GiB"),
    RuntimeError("Failed to allocate private MTLBuffer for size 1073741824"),
    RuntimeError("Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)"),
]
PERHAPS = [
    "GET was unable to find an engine to execute this computation",
    "FIND was unable to find an engine to execute this computation",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
]
GIB = 2**30


@pytest.mark.parametrize("error", DEVICE, ids=lambda error: str(error)[:40])
def test_every_wording_of_full_device_memory_ends_with_75(error: RuntimeError) -> None:
    with pytest.raises(DeviceMemoryError) as raised, full_memory.memory_errors(compose(["training.batch_size=16"])):
        raise error
    assert raised.value.exit_code == 75
    assert str(raised.value).splitlines()[-1].startswith("try, in this order: training.micro_batch=8")


@pytest.mark.parametrize("text", PERHAPS)
@pytest.mark.parametrize(
    ("free", "reserved", "full"), [(70, 5, False), (2, 5, True), (70, 76, True)], ids=["free", "others", "own"]
)
def test_a_library_that_only_failed_is_out_of_memory_if_the_device_is_full(
    monkeypatch: pytest.MonkeyPatch, text: str, free: int, reserved: int, full: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: reserved * GIB)
    assert full_memory.is_full(RuntimeError(text)) == full


def test_a_device_that_answers_nothing_more_is_not_called_full(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> tuple[int, int]:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", broken)
    assert not full_memory.is_full(RuntimeError(PERHAPS[0]))


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: device-side assert triggered",
        "CUDA error: an illegal memory access was encountered",
        "mat1 and mat2 shapes cannot be multiplied",
        "MPS backend: the operator is not implemented",
    ],
)
def test_another_error_stays_what_it_is(text: str) -> None:
    with pytest.raises(RuntimeError) as raised, full_memory.memory_errors(compose([])):
        raise RuntimeError(text)
    assert str(raised.value) == text


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:116] . DefaultCPUAllocator: can't allocate memory: you tried …"),
        RuntimeError("Caught AcceleratorError in pin memory thread for device 0.\nCUDA error: out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
        MemoryError("Unable to allocate 8.00 GiB for an array"),
        MemoryError(),
    ],
    ids=lambda error: str(error)[:30],
)
def test_full_host_memory_is_no_reason_for_a_retry(error: Exception) -> None:
    with pytest.raises(TrainerError, match="out of host memory") as raised, full_memory.memory_errors(compose([])):
        raise error
    assert raised.value.exit_code == 1 and "training.micro_batch" in str(raised.value)


def advice(*words: str) -> str:
    with pytest.raises(DeviceMemoryError) as raised, full_memory.memory_errors(compose(list(words))):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    return str(raised.value).splitlines()[-1]


def test_the_advice_divides_the_batch_and_is_smaller_than_what_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "training.micro_batch=5 (same effective batch)" in advice("training.batch_size=15")
    assert "training.micro_batch=6 " in advice("training.batch_size=12")
    assert "training.micro_batch=3 " in advice("training.batch_size=12", "training.micro_batch=6")
    one = ["training.batch_size=1", "data.img_size=384"]
    for name in ("test_resnet", "resnet34"):
        assert advice(f"model.name={name}", *one).startswith("nothing smaller to try here"), name
    for name in ("resnet50", "efficientnet_b4"):
        assert advice(f"model.name={name}", *one) == "try, in this order: model=resnet34", name
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    assert "training.micro_batch=12 " in advice("training.batch_size=24")
    assert "training.micro_batch=4 " in advice("training.batch_size=12", "training.micro_batch=12")


def test_a_prediction_is_told_of_its_own_options() -> None:
    for batch, said in ((16, "try --batch_size 8"), (1, "try --device cpu")):
        with pytest.raises(DeviceMemoryError) as raised, full_memory.memory_errors(compose([]), predicting=batch):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        assert f"at batch {batch}," in str(raised.value)
        assert str(raised.value).splitlines()[-1].startswith(said)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (torch.AcceleratorError("CUDA error: out of memory"), 75, "error: out of device memory: CUDA error"),
        (MemoryError(), 1, "error: out of host memory: no message"),
        (RuntimeError("something else"), 1, "error: unexpected RuntimeError: something else"),
    ],
)
def test_memory_that_is_full_before_the_first_step_has_its_code_too(
    tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception,
    code: int, said: str,
) -> None:  # fmt: skip
    """Such as a GPU that others have filled, when CUDA starts."""

    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr(device, "limit_memory", full)
    assert train(tmp_path / "run") == code
    assert said in capsys.readouterr().err
