"""Predict the memory of a training step: a line over the micro-batch, with its parts, as text and as JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from trainer.config.schema import Config
from trainer.memory import trace
from trainer.training import teachers as teaching

CLASSES = 17
PRECISIONS = ("fp32", "bf16")
_BATCHES = (2, 8)


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


def estimate(config: Config, classes: int = CLASSES, precisions: tuple[str, ...] = PRECISIONS) -> dict[str, Estimate]:
    """The line of each precision (fp32, and bf16 for bf16 and fp16) for the configuration's model, size and optimizer.

    The memory depends on the device: MPS has no fused attention with gradients, so a step keeps attention matrices. The
    optimizer is fused and has no temporaries, with one exception: on CUDA with fp16 and training.gradient_clip they are
    as large as the weights. Savings of training.compile are not included. Two traces at different micro-batches give
    one line.

    Raises ConfigError for an unknown model or a wrong size, TrainerError for a model that fails with fake tensors.
    """
    net, optimizer, mode = trace.fake_network(config, classes)
    small, large = _BATCHES
    estimates = {}
    weights = sum(t.untyped_storage().nbytes() for t in (*net.parameters(), *net.buffers()))
    ema = weights if config.training.ema_decay is not None else 0
    members = [part.checkpoint.state_dict for _, part, _ in teaching.read(config.training.teachers)]
    teachers = sum(tensor.nbytes for state in members for tensor in state.values())
    for precision in precisions:
        low, high = (trace.peaks(config, net, optimizer, mode, precision, batch, classes) for batch in _BATCHES)
        per_image = (high.further - low.further) // (large - small)
        image = 3 * config.data.img_size**2
        estimates[precision] = Estimate(
            weights=weights,
            ema=ema,
            teachers=teachers,
            gradients=sum(p.untyped_storage().nbytes() for p in net.parameters() if p.requires_grad),
            optimizer=sum(t.untyped_storage().nbytes() for t in trace.state_tensors(optimizer)),
            activations_per_image=per_image - image,
            fixed=high.further - per_image * large + ema + teachers,
            per_image=per_image,
            spared=min(low.further - low.one, high.further - high.one),
            update=high.update + ema + teachers,
        )
    return estimates


def as_json(config: Config, estimates: dict[str, Estimate], classes: int) -> dict[str, Any]:
    """The stable format of `estimate --json`. Sizes are in bytes."""
    return {
        "model": config.model.name,
        "img_size": config.data.img_size,
        "optimizer": config.training.optimizer,
        "classes": classes,
        "device": trace.device_type(config),
        "precisions": {name: dataclasses.asdict(line) for name, line in estimates.items()},
    }


def as_text(config: Config, estimates: dict[str, Estimate]) -> str:
    """The same as text, in GiB, with the total at the configuration's micro-batch."""
    training = config.training
    micro = training.micro_batch or training.batch_size
    rows = [("GiB", *estimates)]
    for label, key in (
        ("weights", "weights"),
        *((label, key) for label, key in (("moving average", "ema"), ("teachers", "teachers")) if _any(estimates, key)),
        ("gradients", "gradients"),
        (f"{training.optimizer} state", "optimizer"),
        ("activations per image", "activations_per_image"),
    ):
        rows.append((label, *(_gib(getattr(line, key)) for line in estimates.values())))
    totals = [line.at(micro, micro < training.batch_size) for line in estimates.values()]
    rows.append((f"peak at micro-batch {micro}", *map(_gib, totals)))
    lines = [f"{label:{max(len(r[0]) for r in rows)}}" + "".join(f"{v:>9}" for v in values) for label, *values in rows]
    where = f"batch {training.batch_size}, one step on {trace.device_type(config)}"
    head = f"{config.model.name}, {config.data.img_size} px, {where}"
    return "\n".join([head, *lines, "GiB per device, without the device's context and library workspaces"])


def _any(estimates: dict[str, Estimate], key: str) -> bool:
    return any(getattr(line, key) for line in estimates.values())


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"
