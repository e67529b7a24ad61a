"""The memory that training needs, before anything is trained: one optimiser step traced with fake tensors.

Fake tensors have a shape, a type and a lifetime, and no data: a trace takes seconds, little memory and no GPU. What is
counted is the sum of all storages that are alive at once, as an allocator without fragmentation would hand them out. A
device's context and its libraries' workspaces are not in it.
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
# What CUDA's autocast computes in float32 and the CPU's does not (torch.amp's documentation, "CUDA Ops that can
# autocast to float32"). Attention and normalisation keep more memory by it.
_FLOAT32_OPS = frozenset(
    "__pow__ __rdiv__ __rpow__ __rtruediv__ acos asin cosh cosine_similarity cross_entropy cumprod cumsum dist erfinv "
    "exp expm1 group_norm layer_norm log log10 log_softmax log1p log2 nll_loss norm normalize pow prod reciprocal "
    "rsqrt sinh softmax softmin softplus sum tan".split()
)


@dataclass(frozen=True)
class Peaks:
    """The peaks of one optimiser step at one micro-batch, bytes on one device."""

    one: int
    """Forward and backward where the step has one micro-batch: gradients come into being as activations go."""
    further: int
    """The same where it has several: the gradients of those before are there all the time."""
    update: int
    """While the optimiser changes the weights."""


@dataclass(frozen=True)
class Estimate:
    """A step's peak as a line, `fixed + per_image * micro_batch`, and what it is made of. Bytes on one device."""

    weights: int
    """Parameters and buffers."""
    ema: int
    """Their moving average, where there is one."""
    teachers: int
    """The weights of those of a distillation. What they compute for an image at a time is not counted."""
    gradients: int
    optimizer: int
    """Its state, from the second step on."""
    activations_per_image: int
    fixed: int
    """With gradients that are kept from one micro-batch to the next."""
    per_image: int
    spared: int
    """How much lower the line is where the step has one micro-batch. A little more in large ones, which is left out."""
    update: int
    """The least that any step needs: weights, their copies, gradients, state and temporaries of the optimiser."""

    def at(self, micro_batch: int, accumulates: bool = True) -> int:
        """The peak, bytes, with `micro_batch` images at a time; `accumulates` where a step has several of those."""
        line = self.fixed + self.per_image * micro_batch - (0 if accumulates else self.spared)
        return max(line, self.update)


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's base class has none
    """The bytes of all tensors that are alive, of those that it was shown or that were made under it."""

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
        """The highest sum since the last call."""
        peak, self.peak = self.peak, self.now
        return peak


class _GpuAutocast(TorchFunctionMode):
    """Has `_FLOAT32_OPS` computed in float32, as a GPU's autocast has, though the trace is one of the CPU's."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _FLOAT32_OPS and torch.is_autocast_enabled("cpu"):
            args = tree_map_only(torch.Tensor, lambda t: t.float() if t.is_floating_point() else t, args)
        return func(*args, **(kwargs or {}))


def kind(config: Config) -> str:
    """The device that a step is traced for: cuda, mps or cpu. auto counts as cuda: here need be none of them."""
    return "cuda" if config.device == "auto" else config.device


def estimate(config: Config, classes: int = CLASSES, precisions: tuple[str, ...] = PRECISIONS) -> dict[str, Estimate]:
    """The line of each precision (fp32; bf16, which fp16 equals) for the configuration's model, size and optimiser.

    The device decides what a step keeps: MPS has no fused attention where gradients are needed, so that attention
    matrices are kept there. The optimiser is fused and has no temporaries, but where fp16 and training.gradient_clip
    meet: on CUDA they are as large as the weights then. What training.compile saves is not counted. Two traces at
    different micro-batches give each line.

    Raises ConfigError: a model or size that cannot be had. TrainerError: a model that fake tensors cannot go through.
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
    """The network with fake weights, and its optimiser with fake state, as after a first step."""
    net = network(
        config, classes, device.channels_last(config.training.channels_last, kind(config)), load_weights=False
    )
    mode = FakeTensorMode()
    swapped: dict[int, torch.Tensor] = {}  # weights that two modules share stay shared
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
                group["foreach"] = kind(config) == "cuda"  # torch's own default: there, and nowhere else
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
    """Two micro-batches of `batch` images and an update, as `trainer.training.step` takes them."""
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
        except Exception as error:  # whatever a model does that needs data, or that fake tensors lack
            raise TrainerError(
                f"model.name={config.model.name}: its memory cannot be predicted: fake tensors do not go through it "
                f"({type(error).__name__}: {' '.join(str(error).split())[:160]})"
            ) from None
    one, further = peaks
    return Peaks(one, further, live.take_peak())


def as_json(config: Config, found: dict[str, Estimate], classes: int) -> dict[str, Any]:
    """The stable form of `estimate --json`; sizes in bytes."""
    return {
        "model": config.model.name,
        "img_size": config.data.img_size,
        "optimizer": config.training.optimizer,
        "classes": classes,
        "device": kind(config),
        "precisions": {name: dataclasses.asdict(line) for name, line in found.items()},
    }


def as_text(config: Config, found: dict[str, Estimate]) -> str:
    """The same for people, in GiB, with the total at the configuration's micro-batch."""
    training = config.training
    micro = training.micro_batch or training.batch_size
    rows = [("GiB", *found)]
    for label, key in (
        ("weights", "weights"),
        *((label, key) for label, key in (("their average", "ema"), ("teachers", "teachers")) if _any(found, key)),
        ("gradients", "gradients"),
        (f"{training.optimizer} state", "optimizer"),
        ("activations of an image", "activations_per_image"),
    ):
        rows.append((label, *(_gib(getattr(line, key)) for line in found.values())))
    totals = [line.at(micro, micro < training.batch_size) for line in found.values()]
    rows.append((f"peak at micro-batch {micro}", *map(_gib, totals)))
    lines = [f"{label:{max(len(r[0]) for r in rows)}}" + "".join(f"{v:>9}" for v in values) for label, *values in rows]
    head = f"{config.model.name}, {config.data.img_size} px, batch {training.batch_size}, one step on {kind(config)}"
    return "\n".join([head, *lines, "on each device; its context and its libraries' workspaces come on top"])


def _any(found: dict[str, Estimate], key: str) -> bool:
    return any(getattr(line, key) for line in found.values())


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"


def table(sizes: tuple[int, ...] = TABLE_SIZES, models: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:
    """Rows for every model that has a name of its own (or `models`), device, size and precision, with AdamW.

    A convolution's memory follows the square of the size, so that a few sizes tell the rest. Attention's does not:
    windows are padded (swin, up to 15 % beside that line), attention matrices kept. Models of a fixed input size, which
    have attention, get a row every `TABLE_STEP` pixels.
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
    """The table as the launcher reads it."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
