"""The device of a run: its precision, its memory layout, its limits."""

from __future__ import annotations

import functools
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from trainer.base import cores
from trainer.base.errors import ConfigError, TrainerError
from trainer.config.schema import Config

if TYPE_CHECKING:
    from lightning_fabric import Fabric

FABRIC_PRECISION = {"bf16": "bf16-mixed", "fp16": "16-mixed", "fp32": "32-true"}


VARIABLES = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
"""Variables that assign GPUs: to a process, and to a container."""
NO_GPU = ("", "-1", "none", "NoDevFiles", "void", "all")
"""Their words that assign no particular GPU. `all` is a default of CUDA's images."""


def choose(asked: str) -> str:
    """`asked` (cuda, mps, cpu or auto) → cuda, mps or cpu. auto takes the first available one.

    Raises ConfigError if the device is not available, and TrainerError if CUDA sees fewer GPUs than were assigned.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    variable = next((name for name in VARIABLES if name in os.environ), VARIABLES[0])
    assigned = [word for word in os.environ.get(variable, "").split(",") if word.strip() not in NO_GPU]
    if asked == "auto":
        chosen = next(name for name, present in there.items() if present)
        if chosen == "cpu" and assigned:
            print(f"note: {_unseen(variable, assigned)}; this runs on the CPU", file=sys.stderr)
        return chosen
    if asked == "cuda" and assigned and torch.cuda.device_count() < len(assigned):
        raise TrainerError(f"device=cuda: {_unseen(variable, assigned)}")
    if not there[asked]:
        have = ", ".join(name for name, present in there.items() if present)
        raise ConfigError(f"device={asked}: not available on this machine (available: {have}); use device=auto")
    return asked


def _unseen(variable: str, assigned: Sequence[str]) -> str:
    """That CUDA sees fewer GPUs than assigned, and the likely cause."""
    if torch.version.cuda is None:
        cause = "this PyTorch is built without CUDA"
    elif len(assigned) > 1 and any(word.startswith("MIG-") for word in assigned):
        cause = "a process can use one MIG instance only"
    else:
        cause = f"check nvidia-smi, and that the driver supports CUDA {torch.version.cuda}"
    seen = torch.cuda.device_count()
    return f"{variable}={','.join(assigned)}, but CUDA sees {seen or 'no'} GPU{'s' * (seen > 1)}: {cause}"


def fabric(device: str, precision: str, devices: int = 1) -> Fabric:
    """Fabric on `device` (cuda, mps or cpu) in `precision` (bf16, fp16 or fp32). Fabric starts one process per device.

    By default Fabric expects that Slurm starts these processes, and waits for them without end. Outside a job it prints
    a warning about it if Slurm is installed. Raises ConfigError if srun has started several processes.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment

    started = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if started != "1" and "LOCAL_RANK" not in os.environ:
        raise ConfigError(
            f"srun has started {started} processes, but the run starts one process per device itself; use srun "
            "--ntasks=1, and devices=N for several devices"
        )
    return Fabric(
        accelerator={"cuda": "gpu"}.get(device, device),
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        precision=FABRIC_PRECISION[precision],  # type: ignore[arg-type]
        plugins=LightningEnvironment(),
    )


def count(config: Config, device: str) -> int:
    """The number of devices of the run. Raises ConfigError if it does not divide the batch size."""
    visible = torch.cuda.device_count() if device == "cuda" else 1
    devices = config.devices or visible
    if device == "cuda" and devices > visible:
        raise ConfigError(f"devices={devices}: only {visible} GPU{'s' * (visible != 1)} visible")
    if device == "mps" and devices > 1:
        raise ConfigError(f"devices={devices}: there is one MPS device")
    micro = config.training.micro_batch or config.training.batch_size
    for key, size in (("batch_size", config.training.batch_size), ("micro_batch", micro)):
        if size % devices:
            below, above = size - size % devices, size - size % devices + devices
            raise ConfigError(
                f"training.{key}={size} is not a multiple of {devices} devices; "
                f"use training.{key}={above if below < devices else below}, or fewer devices with devices=N"
            )
    return devices


def precision(asked: str, device: str) -> str:
    """bf16, fp16 or fp32. auto: bf16 or fp16 if the device is fast with it. MPS has fp32: others are untested there."""
    if asked == "fp16" and device == "cpu":
        raise ConfigError("training.precision=fp16: slow on a CPU; use bf16, fp32 or auto")
    if asked != "auto":
        return asked
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device == "cpu":
        features = torch.cpu.get_capabilities()
        return "bf16" if features.get("avx512_bf16") or features.get("amx_bf16") else "fp32"
    return "fp32"


def evaluation_precision(asked: str, device: str) -> str:
    """bf16, fp16 or fp32 for validation and prediction. auto is fp32: a page then gets the same class on every device
    and in an export. An asked precision is that of training."""
    return "fp32" if asked == "auto" else precision(asked, device)


@contextmanager
def full_float32() -> Iterator[None]:
    """Multiply float32 numbers as float32 on CUDA, not as TF32, whose products have 10 bits like fp16."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def channels_last(asked: bool | None, device: str) -> bool:
    """Whether to use channels-last memory layout. Default: on CUDA and CPU, which are faster with it."""
    return asked if asked is not None else device != "mps"


MANY_STEPS = 2000
"""From this number of forward and backward passes on, a benchmark of every convolution pays off. For efficientnet_b4 at
768 px it takes an H100 about a minute and makes steps 25 % faster; resnet34 gains nothing. A rough number."""


def allow_fast_kernels(device: str, steps: int) -> None:
    """On CUDA: use TF32 for float32. In a run with many `steps` left, also let cuDNN measure the fastest algorithm for
    each convolution shape. Training has one shape (two with training.drop_last=false), and validation has two. cuDNN
    measures each shape once. The fastest algorithm can differ between runs, and so can the last bits of a result."""
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = steps >= MANY_STEPS


def limit_memory(device: str, own: int | None = None) -> None:
    """Limit this process's allocator to $DEVICE_MEMORY_LIMIT (bytes). No container engine can limit GPU memory. `own`:
    the only GPU of a process beside others; to set a limit takes memory of a GPU. None: all visible ones.

    Raises ConfigError if the limit is not a positive whole number.
    """
    text = os.environ.get("DEVICE_MEMORY_LIMIT", "").strip()
    if not text or device == "cpu":
        return
    if not text.isdigit() or int(text) == 0:
        raise ConfigError(f"DEVICE_MEMORY_LIMIT={text}: must be a number of bytes")
    if device == "cuda":
        for index in range(torch.cuda.device_count()) if own is None else [own]:
            total = torch.cuda.get_device_properties(index).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, int(text) / total), index)
    else:
        torch.mps.set_per_process_memory_fraction(min(1.0, int(text) / torch.mps.recommended_max_memory()))


def limit_threads() -> None:
    """Limit this process's threads to the `available` cores, unless OMP_NUM_THREADS is set. Libraries count all cores
    of the machine: in a container with 2 of 64 cores they would start 64 threads."""
    import cv2

    cv2.setNumThreads(0)  # processes load images
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > cores.available():
        torch.set_num_threads(cores.available())


def memory_in_use(device: str) -> int:
    """Peak memory of this process on its device, bytes (MPS: current memory; CPU: 0)."""
    if device == "cuda":
        return max(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count()))
    return int(torch.mps.driver_allocated_memory()) if device == "mps" else 0


_FALLBACK = r"The operator '([^']+)' is not currently supported on the MPS backend"


def name_fallbacks(device: str) -> None:
    """From now on print one line for each operator that MPS does not have, when it first runs on the CPU."""
    if device == "mps":
        torch.set_warn_always(True)  # by default torch warns only about the first such operator
        listen_for_fallbacks()


@functools.cache  # each member of an ensemble calls it
def listen_for_fallbacks() -> None:
    """Turn torch's warnings about operators on the CPU into notes, one per operator."""
    show, named = warnings.showwarning, set[str]()

    def note_once(message: Warning | str, *rest: Any, **more: Any) -> None:
        match = re.match(_FALLBACK, str(message))
        if match is None:
            show(message, *rest, **more)
        elif match[1] not in named:
            named.add(match[1])
            print(f"note: {match[1]} runs on the CPU, because MPS does not have it; each call copies data both ways")

    warnings.filterwarnings("always", message=_FALLBACK)
    warnings.showwarning = note_once
