"""Full memory: recognise it in the errors of torch and its libraries, and say what to try."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import timm
import torch

from trainer.base.brief import in_brief
from trainer.base.errors import DeviceMemoryError, TrainerError
from trainer.config.schema import Config
from trainer.models import build

_DEVICE = re.compile(
    r"\b(cuda|hip|mps|xpu|device|driver)\b.{0,40}\bout of memory"  # allocators, runtimes, drivers, NCCL, Triton
    r"|(cudaErrorMemoryAllocation|hipErrorOutOfMemory|ErrorOutOfMemory)\b"
    r"|_ALLOC_FAILED\b|DEVICE_ALLOCATION_FAILED\b"  # CUDNN_STATUS_…, CUBLAS_STATUS_…, CUSOLVER_…, CUFFT_…
    r"|\bInvalid buffer size: [\d.]+ ?[KMGT]i?B|failed to allocate (private|shared) MTLBuffer|\bInsufficient Memory\b",
    re.I,
)
"""Messages of full device memory."""
_PERHAPS = re.compile(
    r"unable to find an engine to execute this computation|no valid execution plans"
    r"|CU(DNN|BLAS)_STATUS_(NOT_INITIALIZED|INTERNAL_ERROR|EXECUTION_FAILED|NOT_SUPPORTED)",
    re.I,
)
"""Messages of libraries that found no room for their workspace or handle, or that failed for another reason."""
_HOST = re.compile(r"DefaultCPUAllocator|HOST_ALLOCATION_FAILED|in pin memory thread.*out of memory", re.S | re.I)
MORE_SHARED = (
    "use a smaller training.num_workers, or give the container more: resources.shm in the launcher's job file, "
    "--shm-size in docker run"
)


@contextmanager
def memory_errors(config: Config, predicting: int | None = None) -> Iterator[None]:
    """Turn a device's out-of-memory error into DeviceMemoryError with the manual's remedies, in its order. Turn a
    host's out-of-memory error into TrainerError: a retry would not help.

    `predicting`: the images per batch of a prediction. None: the run trains."""
    try:
        yield
    except MemoryError as error:
        raise TrainerError(f"out of host memory: {_short(str(error), 160)}; {_less_host(predicting)}") from None
    except RuntimeError as error:
        text = str(error)
        if "DataLoader worker" in text and "killed by signal" in text:
            raise TrainerError(
                f"an image loading process was killed ({_short(text, 120)}): the host's memory or "
                f"{_shared_memory()} is full; {MORE_SHARED}"
            ) from None
        if "shared memory" in text and "No space left on device" in text:
            raise TrainerError(
                f"{_shared_memory()} is full: image loading processes leave their batches there; {MORE_SHARED}"
            ) from None
        if _HOST.search(text):
            raise TrainerError(
                f"out of host memory: {' '.join(text.split())[-160:]}; {_less_host(predicting)}"
            ) from None
        if not is_full(error):
            raise
        batch = predicting or config.training.micro_batch or config.training.batch_size
        what = "batch" if predicting else "micro-batch"
        advice = _advice_to_predict(batch) if predicting else _advice(config, batch)
        raise DeviceMemoryError(
            f"out of device memory at {what} {batch}, {config.data.img_size} px: {_short(text, 200)}\n{advice}"
        ) from None


def is_full(error: RuntimeError) -> bool:
    """Whether the error means that the device's memory is full. Some libraries say only that they failed: then the
    memory that is left decides."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or _DEVICE.search(text):
        return True
    return bool(_PERHAPS.search(text)) and _nearly_full()


def _nearly_full() -> bool:
    """Whether less than a tenth of the GPU, or of this process's limit, is free."""
    if not torch.cuda.is_available():
        return False
    try:
        free, total = torch.cuda.mem_get_info()
        limit = int(os.environ.get("DEVICE_MEMORY_LIMIT") or total)
        return free < total / 10 or torch.cuda.memory_reserved() > 0.9 * limit
    except (RuntimeError, ValueError):  # after some errors CUDA answers nothing more
        return False


def _short(text: str, most: int) -> str:
    return in_brief(text, most) or "no message"


def _less_host(predicting: int | None) -> str:
    return (
        "use a smaller --batch_size or --num_workers"
        if predicting
        else "use a smaller training.micro_batch, data.img_size or training.num_workers"
    )


def _shared_memory() -> str:
    """The folder of shared memory with its size."""
    try:
        status = os.statvfs("/dev/shm")
    except OSError:
        return "/dev/shm"
    return f"/dev/shm ({status.f_frsize * status.f_blocks / 2**20:,.0f} MiB)"


def _advice(config: Config, micro: int) -> str:
    """Smaller settings to try, in the manual's order, without those that the run has already."""
    batch, size = config.training.batch_size, config.data.img_size
    devices = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    half = next((n for n in range(micro // 2, 0, -1) if batch % n == 0 and n % devices == 0), None)
    smaller = [f"training.micro_batch={half} (same effective batch)"] if half else []
    smaller += [f"data.img_size={side}" for side in (512, 384) if side < size and outputs(config.model.name, side)][:1]
    own, manual = outputs(config.model.name, size), outputs("resnet34", size)
    smaller += ["model=resnet34"] if own and manual and manual < own else []
    return f"try, in this order: {'; '.join(smaller)}" if smaller else f"nothing smaller to try here{_free()}"


def _advice_to_predict(batch: int) -> str:
    return f"try --batch_size {batch // 2}" if batch > 1 else f"try --device cpu{_free()}"


def _free() -> str:
    if not torch.cuda.is_available():
        return "; use a device with more memory"
    free, total = (size / 2**30 for size in torch.cuda.mem_get_info())
    return f": this GPU has {free:.1f} GiB free of {total:.1f} GiB; use another GPU"


@functools.cache
def outputs(name: str, img_size: int) -> int | None:
    """How many numbers the layers of timm's model put out for one image of `img_size` pixels: a measure of the memory
    of training that needs no memory. None if the model cannot take this size."""
    total = 0

    def add(_layer: object, _inputs: object, output: object) -> None:
        nonlocal total
        total += output.numel() if isinstance(output, torch.Tensor) else 0

    try:
        with torch.device("meta"), torch.no_grad():
            model = timm.create_model(name, **build.size_arguments(name, img_size)).eval()
            for layer in model.modules():
                if not any(True for _ in layer.children()):
                    layer.register_forward_hook(add)
            model(torch.empty(1, 3, img_size, img_size))
    except Exception:  # whatever the model dislikes about this size or device
        return None
    return total
