"""torch.compile for the training step, if it saves time. If it fails, the model runs eagerly.

The code compiles only the timm model, in place: the names in its state dict and its wrappers (Fabric, several devices,
moving average) stay the same. It compiles one shape, a whole training micro-batch. Everything else (the last, smaller
batch of an epoch, validation) runs eagerly.
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

from trainer.base.brief import in_brief
from trainer.models.build import Normalized

COMPILE_SECONDS = 120.0
"""Rough time to compile one of the manual's models. Not measured on a GPU."""
GAIN = 0.15
"""Assumed share of a step that compiling saves on a GPU. Not measured on a GPU."""
_STEPS = 5


def model_for(
    asked: bool | None, net: Normalized, fabric: Fabric, micro_batch: int, img_size: int, steps: int
) -> tuple[bool, str]:
    """Compile the model of `net`, which is on the device. `asked`: true, false, or None (only if it saves time within
    the `steps` remaining micro-batches). Returns whether the model is compiled, and a note for the user, perhaps empty.

    Weights, statistics and gradients do not change. With None it needs exactly one GPU and a C compiler (for triton).
    It compiles if `GAIN` of the remaining eager time is more than `COMPILE_SECONDS`, and keeps the result if it is
    faster.
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
        return False, "the model trains eagerly, because the compiled model needs too much memory"
    except Exception as error:  # dynamo, inductor, triton and C++ compilers have their own errors
        _revert(net)
        return False, f"torch.compile failed, so the model trains eagerly: {_reason(error)}"
    finally:
        torch.compiler.set_stance("eager_on_recompile")
    if asked is None and compiled >= eager:
        _revert(net)
        return False, f"the model trains eagerly: {eager:.3f} s per step, but {compiled:.3f} s if compiled"
    return True, ""


def _may_repay(fabric: Fabric) -> bool:
    compilers = (os.environ.get("CC"), "gcc", "clang", "cc")
    return fabric.device.type == "cuda" and fabric.world_size == 1 and any(c and shutil.which(c) for c in compilers)


def seconds(net: Normalized, fabric: Fabric, images: torch.Tensor, steps: int = _STEPS) -> float:
    """The mean time of a forward and backward pass, after one warm-up pass."""
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
    """Wait until the device has finished its work."""
    if on.type == "cuda":
        torch.cuda.synchronize(on)
    elif on.type == "mps":
        torch.mps.synchronize()


def _revert(net: nn.Module) -> None:
    net.model._compiled_call_impl = None  # type: ignore[union-attr]
    torch.compiler.reset()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the compilers' logs of a failure. The caller prints one line."""
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _reason(error: Exception) -> str:
    reason = in_brief(str(error), 200)
    return f"{type(error).__name__}: {reason}" if reason else type(error).__name__
