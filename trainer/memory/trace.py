"""Trace one optimizer step with fake tensors, and count its memory.

Fake tensors have a shape, a type and a lifetime, but no data. A trace takes seconds, little memory and no GPU. It
counts the sum of all live storages, for an allocator without fragmentation. The device's context and the workspaces of
its libraries are not included.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from trainer.base.brief import in_brief
from trainer.base.errors import TrainerError
from trainer.config.schema import Config
from trainer.models import build, losses, optimizers
from trainer.training import device
from trainer.training.step import network

# CUDA's autocast computes these in float32, the CPU's does not (torch.amp's documentation, "CUDA Ops that can autocast
# to float32"). Attention and normalisation therefore keep more memory.
_FLOAT32_OPS = frozenset(
    "__pow__ __rdiv__ __rpow__ __rtruediv__ acos asin cosh cosine_similarity cross_entropy cumprod cumsum dist erfinv "
    "exp expm1 group_norm layer_norm log log10 log_softmax log1p log2 nll_loss norm normalize pow prod reciprocal "
    "rsqrt sinh softmax softmin softplus sum tan".split()
)


@dataclass(frozen=True)
class Peaks:
    """The peaks of one optimizer step at one micro-batch size, bytes per device."""

    one: int
    """Forward and backward pass of a step with one micro-batch. Gradients appear while activations disappear."""
    further: int
    """The same with several micro-batches: the gradients exist all the time."""
    update: int
    """During the optimizer's update."""


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's base class has none
    """The bytes of all live tensors that it has seen or that were created inside its context."""

    def __init__(self, *known: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        for tensor in known:
            self._add(tensor)

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._storages:
            return

        def gone(_: Any) -> None:
            del self._storages[key]
            self.now -= size

        self._storages[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._add, result)
        return result

    def take_peak(self) -> int:
        """The highest sum of bytes since the last call."""
        peak, self.peak = self.peak, self.now
        return peak


class _GpuAutocast(TorchFunctionMode):
    """Compute `_FLOAT32_OPS` in float32, like a GPU's autocast. The trace itself runs on the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _FLOAT32_OPS and torch.is_autocast_enabled("cpu"):
            args = tree_map_only(torch.Tensor, lambda t: t.float() if t.is_floating_point() else t, args)
        return func(*args, **(kwargs or {}))


def device_type(config: Config) -> str:
    """The device of the prediction: cuda, mps or cpu. auto means cuda. This machine needs no such device."""
    return "cuda" if config.device == "auto" else config.device


def fake_network(config: Config, classes: int) -> tuple[build.Normalized, torch.optim.Optimizer, FakeTensorMode]:
    """The network with fake weights, and its optimizer with fake state, as after a first step."""
    net = network(
        config, classes, device.channels_last(config.training.channels_last, device_type(config)), load_weights=False
    )
    mode = FakeTensorMode()
    swapped: dict[int, torch.Tensor] = {}  # keep shared weights shared
    for module in net.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    if id(tensor) not in swapped:
                        fake: torch.Tensor = mode.from_tensor(tensor.detach())
                        is_weight = isinstance(tensor, nn.Parameter)
                        swapped[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if is_weight else fake
                    tensors[name] = swapped[id(tensor)]  # type: ignore[assignment]
    with mode:
        optimizer = optimizers.create(config.training, net, config.training.precision)
        for group in optimizer.param_groups:
            if not group["fused"]:
                group["foreach"] = device_type(config) == "cuda"  # torch's default: only on CUDA
            for parameter in group["params"]:
                parameter.grad = torch.empty_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
    net.train()
    return net, optimizer, mode


def state_tensors(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, torch.Tensor))


def peaks(
    config: Config,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    mode: FakeTensorMode,
    precision: str,
    batch: int,
    classes: int,
) -> Peaks:
    """Run two micro-batches of `batch` images and an update, like `trainer.training.step`."""
    size = config.data.img_size
    with mode, contextlib.ExitStack() as stack:
        images = torch.empty(batch, 3, size, size, dtype=torch.uint8)
        wanted, weights = torch.empty(batch, classes), torch.empty(classes)
        live = _Live(*net.parameters(), *net.buffers(), *state_tensors(optimizer), images, wanted, weights)
        if device_type(config) == "mps":
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if device_type(config) != "cpu":
            stack.enter_context(_GpuAutocast())
        stack.enter_context(live)
        passes = []
        try:
            for _ in range(2):
                with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                    logits = net(images)
                terms = losses.by_class(logits, wanted, config.training)
                loss = (terms * weights).sum() / batch
                loss.backward()  # type: ignore[no-untyped-call]
                passes.append(live.take_peak())
                del logits, terms, loss
            optimizer.step()
            optimizer.zero_grad()
        except Exception as error:  # the model needs data, or something that fake tensors cannot do
            raise TrainerError(
                f"model.name={config.model.name}: cannot predict its memory, because it fails with fake tensors "
                f"({type(error).__name__}: {in_brief(str(error), 160)})"
            ) from None
    one, further = passes
    return Peaks(one, further, live.take_peak())
