"""Which device a run uses, in which precision and memory layout, and what to do when its memory is full."""

from __future__ import annotations

import functools
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from trainer.base.errors import ConfigError, DeviceMemoryError, TrainerError
from trainer.config.schema import Config

if TYPE_CHECKING:
    from lightning_fabric import Fabric

FABRIC_PRECISION = {"bf16": "bf16-mixed", "fp16": "16-mixed", "fp32": "32-true"}


def choose(asked: str) -> str:
    """`asked` (cuda, mps, cpu or auto) → cuda, mps or cpu. auto takes the first of the three that is there.

    Raises ConfigError where the one asked for is not.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if asked == "auto":
        return next(name for name, present in there.items() if present)
    if not there[asked]:
        have = ", ".join(name for name, present in there.items() if present)
        raise ConfigError(f"device={asked}: not there on this machine (there is: {have}); say device=auto")
    return asked


def fabric(device: str, precision: str, devices: int = 1) -> Fabric:
    """Fabric on `device` (cuda, mps or cpu) in `precision` (bf16, fp16 or fp32), which starts the processes of several
    devices itself.

    Left to choose, it takes a job of Slurm for one of which Slurm starts each process, and waits for those for ever;
    outside a job it warns of that wherever Slurm is installed. Raises ConfigError where srun has started several.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment

    started = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if started != "1" and "LOCAL_RANK" not in os.environ:
        raise ConfigError(
            f"srun has started {started} processes of this one run, which starts those of its devices itself; say "
            "srun --ntasks=1, and devices=N for several"
        )
    return Fabric(
        accelerator={"cuda": "gpu"}.get(device, device),
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        precision=FABRIC_PRECISION[precision],  # type: ignore[arg-type]
        plugins=LightningEnvironment(),
    )


def count(config: Config, device: str) -> int:
    """How many devices the run uses. Raises ConfigError where the batch does not divide among them."""
    visible = torch.cuda.device_count() if device == "cuda" else 1
    devices = config.devices or visible
    if device == "cuda" and devices > visible:
        raise ConfigError(f"devices={devices}: {visible} GPU{'s' * (visible != 1)} visible")
    if device == "mps" and devices > 1:
        raise ConfigError(f"devices={devices}: there is one MPS device")
    micro = config.training.micro_batch or config.training.batch_size
    for key, size in (("batch_size", config.training.batch_size), ("micro_batch", micro)):
        if size % devices:
            below, above = size - size % devices, size - size % devices + devices
            raise ConfigError(
                f"training.{key}={size} does not divide among {devices} devices; "
                f"say training.{key}={above if below < devices else below}, or fewer devices by devices=N"
            )
    return devices


def precision(asked: str, device: str) -> str:
    """bf16, fp16 or fp32; auto is what the device gains from. On MPS fp32: mixed precision is unproven there."""
    if asked == "fp16" and device == "cpu":
        raise ConfigError("training.precision=fp16: the CPU has no fast fp16; say bf16, fp32 or auto")
    if asked != "auto":
        return asked
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device == "cpu":
        features = torch.cpu.get_capabilities()
        return "bf16" if features.get("avx512_bf16") or features.get("amx_bf16") else "fp32"
    return "fp32"


def channels_last(asked: bool | None, device: str) -> bool:
    """Whether images and convolutions keep their channels last. By default where it measurably helps: CUDA and CPU."""
    return asked if asked is not None else device != "mps"


MANY_STEPS = 2000
"""Forward and backward passes from which measuring every convolution repays: for efficientnet_b4 at 768 px it takes an
H100 about a minute, and its steps take a quarter less time then; resnet34 has nothing from it. A rough figure."""


def allow_fast_kernels(device: str, steps: int) -> None:
    """On CUDA: TF32 where float32 is asked for; and in a run that has many `steps` to come, for each shape of a
    convolution the algorithm that is measured to be the fastest. Training has one shape, or one more for an epoch's
    last batch with training.drop_last=false, and validation two: each is measured once. Which wins may change from run
    to run, and with it a result's last bits."""
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = steps >= MANY_STEPS


def limit_memory(device: str) -> None:
    """Keep this process's allocator below $DEVICE_MEMORY_LIMIT (bytes), since no container engine can.

    Raises ConfigError when it is not a positive whole number.
    """
    text = os.environ.get("DEVICE_MEMORY_LIMIT", "").strip()
    if not text or device == "cpu":
        return
    if not text.isdigit() or int(text) == 0:
        raise ConfigError(f"DEVICE_MEMORY_LIMIT={text}: must be a number of bytes")
    if device == "cuda":
        for index in range(torch.cuda.device_count()):
            total = torch.cuda.get_device_properties(index).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, int(text) / total), index)
    else:
        torch.mps.set_per_process_memory_fraction(min(1.0, int(text) / torch.mps.recommended_max_memory()))


def memory_in_use(device: str) -> int:
    """The peak of what this process allocated on its device, bytes (on MPS: what it holds now; on the CPU: 0)."""
    if device == "cuda":
        return max(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count()))
    return int(torch.mps.driver_allocated_memory()) if device == "mps" else 0


_FALLBACK = r"The operator '([^']+)' is not currently supported on the MPS backend"


def name_fallbacks(device: str) -> None:
    """From now on have every operator that MPS lacks named in one line, the first time that it runs on the CPU."""
    if device == "mps":
        torch.set_warn_always(True)  # else torch warns of the first such operator alone
        listen_for_fallbacks()


@functools.cache  # an ensemble's members ask for it one after another
def listen_for_fallbacks() -> None:
    """Turn torch's warnings of operators that fall back to the CPU into notes, one for each operator."""
    show, named = warnings.showwarning, set[str]()

    def shown(message: Warning | str, *rest: Any, **more: Any) -> None:
        found = re.match(_FALLBACK, str(message))
        if found is None:
            show(message, *rest, **more)
        elif found[1] not in named:
            named.add(found[1])
            print(f"note: {found[1]} runs on the CPU: MPS lacks it, and each use costs a copy there and back")

    warnings.filterwarnings("always", message=_FALLBACK)
    warnings.showwarning = shown


@contextmanager
def memory_errors(config: Config) -> Iterator[None]:
    """Turn the device's out-of-memory errors into DeviceMemoryError with the manual's remedies, in its order, and
    the host's into a TrainerError, since a container engine has the last word on those."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "DataLoader worker" in text and "killed by signal" in text:
            raise TrainerError(
                f"a process that loads images was killed ({' '.join(text.split())[:120]}): the host's memory or "
                "/dev/shm is full; lower training.num_workers, or give containers more by --shm-size"
            ) from None
        if "DefaultCPUAllocator" in text:
            raise TrainerError(
                f"out of host memory: {' '.join(text.split())[-160:]}; lower training.micro_batch or data.img_size"
            ) from None
        if not (isinstance(error, torch.OutOfMemoryError) or "MPS backend out of memory" in text):
            raise
        micro = config.training.micro_batch or config.training.batch_size
        remedies = [f"training.micro_batch={micro // 2} (same effective batch)"] if micro > 1 else []
        remedies += [f"data.img_size={smaller}" for smaller in (512, 384) if smaller < config.data.img_size][:1]
        remedies.append("model=resnet34")
        raise DeviceMemoryError(
            f"out of device memory at micro-batch {micro}, {config.data.img_size} px: "
            f"{' '.join(text.split())[:200]}\ntry, in this order: {'; '.join(remedies)}"
        ) from None
