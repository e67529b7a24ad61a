"""torch.compile for the training step: where it repays, and eager where it fails.

Only the timm model is compiled, in place: neither the names in its state dict nor what wraps it (Fabric, several
devices, moving average) change. One shape is compiled, that of a whole micro-batch in training; all else (an epoch's
last, smaller batch, validation) runs eager.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning_fabric import Fabric
from torch import nn

from trainer.models.build import Normalized

COMPILE_SECONDS = 120.0
"""What compiling one of the manual's models takes, roughly. Not measured on a GPU."""
GAIN = 0.15
"""The share of a step that compiling is taken to save on a GPU. Not measured either."""
_STEPS = 5


def model_for(
    asked: bool | None, net: Normalized, fabric: Fabric, micro_batch: int, img_size: int, steps: int
) -> tuple[bool, str]:
    """Compile the model of `net` (which lies on the device) where `asked` (true, false, or None: where it repays within
    the `steps` micro-batches that are left); returns whether it was, and a note for the user or nothing.

    Weights, statistics and gradients are afterwards what they were. Not asked, it is tried on one GPU alone, with a C
    compiler at hand (triton needs one): where the eager steps still to come take so long that saving `GAIN` of them
    outweighs `COMPILE_SECONDS`; and it is kept where it turns out to be faster.
    """
    if asked is False or (asked is None and not _may_repay(fabric)):
        return False, ""
    images = torch.zeros(micro_batch, 3, img_size, img_size, dtype=torch.uint8, device=fabric.device)
    eager = seconds(net, fabric, images) if asked is None else 0.0
    if asked is None and steps * eager * GAIN < COMPILE_SECONDS:
        return False, ""
    torch.compiler.set_stance("default")
    net.model.compile(dynamic=False)
    try:
        with _quiet():
            compiled = seconds(net, fabric, images, steps=_STEPS if asked is None else 0)
    except torch.OutOfMemoryError:
        if asked:
            raise
        _revert(net)
        torch.cuda.empty_cache()
        return False, "the model trains eagerly: compiled, it needs more memory than there is"
    except Exception as error:  # dynamo, inductor, triton and C++ compilers each raise their own
        _revert(net)
        return False, f"the model is not compiled, and trains eagerly: {_reason(error)}"
    finally:
        torch.compiler.set_stance("eager_on_recompile")
    if asked is None and compiled >= eager:
        _revert(net)
        return False, f"the model trains eagerly: compiled, a step takes {compiled:.3f} s and not {eager:.3f} s"
    return True, ""


def _may_repay(fabric: Fabric) -> bool:
    compilers = (os.environ.get("CC"), "gcc", "clang", "cc")
    return fabric.device.type == "cuda" and fabric.world_size == 1 and any(c and shutil.which(c) for c in compilers)


def seconds(net: Normalized, fabric: Fabric, images: torch.Tensor, steps: int = _STEPS) -> float:
    """The mean time of a forward and backward pass, after one that does not count."""
    buffers = [(buffer, buffer.clone()) for buffer in net.buffers()]
    net.train()
    started = 0.0
    try:
        for step in range(steps + 1):
            with fabric.autocast():
                logits = net(images)
            logits.sum().backward()
            if step in (0, steps):
                wait(images.device)
            if step == 0:
                started = time.perf_counter()
        return (time.perf_counter() - started) / max(1, steps)
    finally:
        for buffer, value in buffers:
            buffer.copy_(value)
        for parameter in net.parameters():
            parameter.grad = None


def wait(on: torch.device) -> None:
    """Until the device has done what it was told to."""
    if on.type == "cuda":
        torch.cuda.synchronize(on)
    elif on.type == "mps":
        torch.mps.synchronize()


def _revert(net: nn.Module) -> None:
    net.model._compiled_call_impl = None  # type: ignore[union-attr]
    torch.compiler.reset()


@contextmanager
def _quiet() -> Iterator[None]:
    """What the compilers log of a failure is said in one line, by the caller."""
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:200]}" if lines else type(error).__name__
