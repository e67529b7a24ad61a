"""Predict the memory of training: trace one optimizer step with fake tensors.

Fake tensors have a shape, a type and a lifetime, but no data. A trace takes seconds, little memory and no GPU. It
counts the sum of all live storages, for an allocator without fragmentation. The device's context and the workspaces of
its libraries are not included.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from trainer.base.errors import TrainerError
from trainer.config.compose import compose
from trainer.config.keys import option_names
from trainer.config.schema import Config
from trainer.models import build, losses, optimizers
from trainer.training import device
from trainer.training import teachers as teaching
from trainer.training.step import network

CLASSES = 17
PRECISIONS = ("fp32", "bf16")
TABLE_SIZES = (384, 512, 768)
TABLE_STEP = 32
TABLE_DEVICES = ("cuda", "mps")
_BATCHES = (2, 8)
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


@dataclass(frozen=True)
class Estimate:
    """A step's peak as a line, `fixed + per_image * micro_batch`, and its parts. Bytes per device."""

    weights: int
    """Parameters and buffers."""
    ema: int
    """Moving average of the weights, if there is one."""
    teachers: int
    """Weights of the teachers. Their activations are not included."""
    gradients: int
    optimizer: int
    """State of the optimizer, from the second step on."""
    activations_per_image: int
    fixed: int
    """The line for several micro-batches, with kept gradients."""
    per_image: int
    spared: int
    """How much lower the line is with one micro-batch. For large micro-batches slightly more, which is ignored."""
    update: int
    """The minimum for any step: weights, their copies, gradients, optimizer state and temporaries."""

    def at(self, micro_batch: int, accumulates: bool = True) -> int:
        """The peak, bytes, with `micro_batch` images per pass. `accumulates`: a step has several micro-batches."""
        line = self.fixed + self.per_image * micro_batch - (0 if accumulates else self.spared)
        return max(line, self.update)


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


def kind(config: Config) -> str:
    """The device of the prediction: cuda, mps or cpu. auto means cuda. This machine needs no such device."""
    return "cuda" if config.device == "auto" else config.device


def estimate(config: Config, classes: int = CLASSES, precisions: tuple[str, ...] = PRECISIONS) -> dict[str, Estimate]:
    """The line of each precision (fp32, and bf16 for bf16 and fp16) for the configuration's model, size and optimizer.

    The memory depends on the device: MPS has no fused attention with gradients, so a step keeps attention matrices. The
    optimizer is fused and has no temporaries, with one exception: on CUDA with fp16 and training.gradient_clip they are
    as large as the weights. Savings of training.compile are not included. Two traces at different micro-batches give
    one line.

    Raises ConfigError for an unknown model or a wrong size, TrainerError for a model that fails with fake tensors.
    """
    net, optimizer, mode = _fake(config, classes)
    small, large = _BATCHES
    found = {}
    weights = sum(t.untyped_storage().nbytes() for t in (*net.parameters(), *net.buffers()))
    ema = weights if config.training.ema_decay is not None else 0
    members = [member.state_dict for _, member, _ in teaching.read(config.training.teachers)]
    teachers = sum(tensor.nbytes for state in members for tensor in state.values())
    for precision in precisions:
        low, high = (trace(config, net, optimizer, mode, precision, batch, classes) for batch in _BATCHES)
        per_image = (high.further - low.further) // (large - small)
        image = 3 * config.data.img_size**2
        found[precision] = Estimate(
            weights=weights,
            ema=ema,
            teachers=teachers,
            gradients=sum(p.untyped_storage().nbytes() for p in net.parameters() if p.requires_grad),
            optimizer=sum(t.untyped_storage().nbytes() for t in _state(optimizer)),
            activations_per_image=per_image - image,
            fixed=high.further - per_image * large + ema + teachers,
            per_image=per_image,
            spared=min(low.further - low.one, high.further - high.one),
            update=high.update + ema + teachers,
        )
    return found


def _fake(config: Config, classes: int) -> tuple[build.Normalized, torch.optim.Optimizer, FakeTensorMode]:
    """The network with fake weights, and its optimizer with fake state, as after a first step."""
    net = network(
        config, classes, device.channels_last(config.training.channels_last, kind(config)), load_weights=False
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
                group["foreach"] = kind(config) == "cuda"  # torch's default: only on CUDA
            for parameter in group["params"]:
                parameter.grad = torch.empty_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
    net.train()
    return net, optimizer, mode


def _state(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, torch.Tensor))


def trace(
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
        live = _Live(*net.parameters(), *net.buffers(), *_state(optimizer), images, wanted, weights)
        if kind(config) == "mps":
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if kind(config) != "cpu":
            stack.enter_context(_GpuAutocast())
        stack.enter_context(live)
        peaks = []
        try:
            for _ in range(2):
                with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                    logits = net(images)
                terms = losses.by_class(logits, wanted, config.training)
                loss = (terms * weights).sum() / batch
                loss.backward()  # type: ignore[no-untyped-call]
                peaks.append(live.take_peak())
                del logits, terms, loss
            optimizer.step()
            optimizer.zero_grad()
        except Exception as error:  # the model needs data, or something that fake tensors cannot do
            raise TrainerError(
                f"model.name={config.model.name}: cannot predict its memory, because it fails with fake tensors "
                f"({type(error).__name__}: {' '.join(str(error).split())[:160]})"
            ) from None
    one, further = peaks
    return Peaks(one, further, live.take_peak())


def as_json(config: Config, found: dict[str, Estimate], classes: int) -> dict[str, Any]:
    """The stable format of `estimate --json`. Sizes are in bytes."""
    return {
        "model": config.model.name,
        "img_size": config.data.img_size,
        "optimizer": config.training.optimizer,
        "classes": classes,
        "device": kind(config),
        "precisions": {name: dataclasses.asdict(line) for name, line in found.items()},
    }


def as_text(config: Config, found: dict[str, Estimate]) -> str:
    """The same as text, in GiB, with the total at the configuration's micro-batch."""
    training = config.training
    micro = training.micro_batch or training.batch_size
    rows = [("GiB", *found)]
    for label, key in (
        ("weights", "weights"),
        *((label, key) for label, key in (("moving average", "ema"), ("teachers", "teachers")) if _any(found, key)),
        ("gradients", "gradients"),
        (f"{training.optimizer} state", "optimizer"),
        ("activations per image", "activations_per_image"),
    ):
        rows.append((label, *(_gib(getattr(line, key)) for line in found.values())))
    totals = [line.at(micro, micro < training.batch_size) for line in found.values()]
    rows.append((f"peak at micro-batch {micro}", *map(_gib, totals)))
    lines = [f"{label:{max(len(r[0]) for r in rows)}}" + "".join(f"{v:>9}" for v in values) for label, *values in rows]
    head = f"{config.model.name}, {config.data.img_size} px, batch {training.batch_size}, one step on {kind(config)}"
    return "\n".join([head, *lines, "GiB per device, without the device's context and library workspaces"])


def _any(found: dict[str, Estimate], key: str) -> bool:
    return any(getattr(line, key) for line in found.values())


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"


def table(sizes: tuple[int, ...] = TABLE_SIZES, models: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:
    """Rows for every model of the model group (or `models`), device, size and precision, with AdamW.

    The memory of a convolution grows with the square of the size, so a few sizes are enough. Attention is different:
    windows are padded (swin, up to 15 % beside that curve), and steps keep attention matrices. So models with a fixed
    input size, which have attention, get a row every `TABLE_STEP` pixels.
    """
    for name in models or option_names("model"):
        for where in TABLE_DEVICES:
            for size in _table_sizes(name, sizes):
                config = compose([f"model={name}", f"data.img_size={size}", f"device={where}"], "estimate")
                for precision, line in estimate(config).items():
                    yield {
                        "model": config.model.name,
                        "device": where,
                        "img_size": size,
                        "precision": precision,
                        "fixed_bytes": line.fixed,
                        "per_image_bytes": line.per_image,
                        "weights_bytes": line.weights,
                        "optimizer_bytes": line.optimizer,
                        "spared_bytes": line.spared,
                        "update_bytes": line.update,
                    }


def _table_sizes(name: str, sizes: tuple[int, ...]) -> list[int]:
    cfg = timm.get_pretrained_cfg(compose([f"model={name}"]).model.name)
    dense = range(min(sizes), max(sizes) + 1, TABLE_STEP) if cfg is not None and cfg.fixed_input_size else ()
    return sorted({*sizes, *dense})


def as_csv(rows: list[dict[str, Any]]) -> str:
    """The table in the launcher's format."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
