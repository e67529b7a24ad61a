"""How fast this trains: the trainer's own step against timm's own pieces, and where the time of a run's steps goes."""

from __future__ import annotations

import contextlib
import gc
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.loss import LabelSmoothingCrossEntropy  # type: ignore[attr-defined]
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]

from trainer import data, device, loop, model
from trainer.config import compose
from trainer.progress import Reporter
from trainer.sample_data import write_sample_data
from trainer.stop import Stop
from trainer.tracking import Tracking
from trainer.train import train

CLASSES = 17
SIZE = 224
SETUPS = (
    ("resnet34", 16), ("efficientnet_b4", 8), ("resnet50", 8),
    ("convnext_base", 4), ("swin_base_384", 4), ("deit_base_384", 4),
)  # fmt: skip
"""The manual's models (the trainer's names) with the images of a step: small, so that the bench takes minutes."""
QUICK = ("resnet34", "efficientnet_b4")
PARTS = ("data", "transfer", "forward", "backward", "optimizer", "rest")
"""Of a step, in order: waiting for the loader; bytes to the device and mixing; model and loss; gradients; the update
with clipping; averages of the weights, progress and checkpoints."""


def measure(quick: bool = False) -> list[dict[str, Any]]:
    """Training images/s on this CPU, a row a model: {model, size, batch, precision, images_per_s, timm, ratio,
    timm_defaults, ratio_defaults}.

    `images_per_s` is `trainer.loop`'s own step on bytes; `timm` are timm's pieces with the flags of its train script
    that are best here (channels last, autocast where the CPU has bf16, AdamW, fused), on images that are normalised
    already; `timm_defaults` the same with that script's defaults (SGD, float32, contiguous). All eager. They take
    turns; a figure is the median of its turns, a ratio that of the ratios within a turn. `quick`: two models, fewer
    turns.
    """
    rows = []
    for name, batch in SETUPS:
        if not quick or name in QUICK:
            rows.append(_compare(name, SIZE, batch, rounds=5 if quick else 7))
            gc.collect()
    return rows


def _compare(name: str, size: int, batch: int, rounds: int) -> dict[str, Any]:
    precision = device.precision("auto", "cpu")
    channels_last = device.channels_last(None, "cpu")
    best = timm_step(name, size, batch, channels_last, precision == "bf16", "adamw", fused=True)
    steps = [trainer_step(name, size, batch), best, timm_step(name, size, batch, False, False, "sgd")]
    seconds = take_turns(steps, rounds)
    own, with_flags, plain = (batch / statistics.median(each) for each in seconds)
    return {
        "model": name,
        "size": size,
        "batch": batch,
        "precision": precision,
        "images_per_s": round(own, 2),
        "timm": round(with_flags, 2),
        "ratio": _ratio(seconds[1], seconds[0]),
        "timm_defaults": round(plain, 2),
        "ratio_defaults": _ratio(seconds[2], seconds[0]),
    }


def _ratio(reference: list[float], own: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(reference, own, strict=True)), 3)


def take_turns(steps: list[Callable[[], None]], rounds: int) -> list[list[float]]:
    """Seconds of each of the steps in each round; in each it is another's turn to begin. One round before does not
    count."""
    seconds: list[list[float]] = [[] for _ in steps]
    for turn in range(-1, rounds):
        for place in range(len(steps)):
            which = (turn + place) % len(steps)
            started = time.perf_counter()
            steps[which]()
            if turn >= 0:
                seconds[which].append(time.perf_counter() - started)
    return seconds


def trainer_step(name: str, size: int, batch: int, *words: str) -> Callable[[], None]:
    """A step as the trainer does it (`trainer.loop`), on drawn bytes in place of a loader; `words` are overrides."""
    own = ["model.pretrained=false", "device=cpu", "training.class_weights=false"]
    config = compose([f"model={name}", f"data.img_size={size}", f"training.batch_size={batch}", *own, *words])
    precision = device.precision(config.training.precision, "cpu")
    fabric = device.fabric("cpu", precision)
    bare = model.create(config.model, CLASSES, size)
    channels_last = device.channels_last(config.training.channels_last, "cpu")
    net = model.Normalized(bare, *model.mean_std(config.model.name), channels_last)
    wrapped, optimizer = fabric.setup(net, model.make_optimizer(config.training, net, precision))
    nothing = cast(Any, None)  # what only the loop around a step needs
    job = loop.Job(
        config=config,
        run_dir=Path(),
        table=data.Table([], [], [], [str(k) for k in range(CLASSES)], []),
        split=nothing,
        fabric=fabric,
        net=wrapped,
        optimizer=optimizer,
        class_weights=torch.ones(CLASSES),
        loader=nothing,
        val_batches=nothing,
        sampler=nothing,
        steps_per_epoch=100,
        accumulate=1,
        device="cpu",
        precision=precision,
        channels_last=channels_last,
        stop=Stop(),
        progress=loop.Progress(),
        reporter=cast(Reporter, None),
        tracking=cast(Tracking, None),
        loss_sum=torch.zeros(()),
    )
    wrapped.train()
    chance = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, generator=chance).permute(0, 3, 1, 2)
    targets = torch.randint(0, CLASSES, (batch,), generator=chance)

    def step() -> None:
        loop._step(job, [(images, targets)])
        job.progress.step += 1

    return step


def timm_step(
    name: str, size: int, batch: int, channels_last: bool, autocast: bool, optimizer: str, **more: Any
) -> Callable[[], None]:
    """A step as timm's train script does it: its model, loss and optimiser (`more` are arguments of that), on images
    that are normalised already."""
    own = compose([f"model={name}"]).model.name
    net = timm.create_model(own, num_classes=CLASSES, **model.size_arguments(own, size)).train()
    images, targets = torch.randn(batch, 3, size, size), torch.randint(0, CLASSES, (batch,))
    if channels_last:
        net, images = net.to(memory_format=torch.channels_last), images.contiguous(memory_format=torch.channels_last)
    update = create_optimizer_v2(net, opt=optimizer, lr=1e-3, weight_decay=0.05, momentum=0.9, **more)
    loss_of = LabelSmoothingCrossEntropy(0.1)  # type: ignore[no-untyped-call]

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = loss_of(net(images), targets)
        loss.backward()
        update.step()
        update.zero_grad()

    return step


@dataclass
class _Clock:
    """Keeps when each part of each step was over. On CUDA by events in its stream: what the device does, and not what
    it has been told to do."""

    on: str

    def __post_init__(self) -> None:
        self.marks: list[tuple[str, Any]] = []

    def lap(self, part: str) -> None:
        if self.on == "cuda":
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self.marks.append((part, event))
            return
        if self.on == "mps":
            torch.mps.synchronize()
        self.marks.append((part, time.perf_counter()))

    def spans(self) -> list[tuple[str, float]]:
        """Seconds of each part that was passed, in order."""
        if self.on == "cuda":
            torch.cuda.synchronize()
        pairs = zip(self.marks, self.marks[1:], strict=False)
        if self.on == "cuda":
            return [(part, before.elapsed_time(mark) / 1000) for (_, before), (part, mark) in pairs]
        return [(part, mark - before) for (_, before), (part, mark) in pairs]


def shares(spans: Iterable[tuple[str, float]], skip: int = 2) -> dict[str, float]:
    """The share of each of PARTS in the time of all steps but the first `skip`; validation is no part of a step."""
    steps: list[dict[str, float]] = [{}]
    for part, seconds in spans:
        if part in PARTS:
            steps[-1][part] = steps[-1].get(part, 0.0) + seconds
        if part == "rest":
            steps.append({})
    whole = [step for step in steps if len(step) == len(PARTS)][skip:]
    total = sum(sum(step.values()) for step in whole) or 1.0
    return {part: round(sum(step[part] for step in whole) / total, 4) for part in PARTS}


def where_time_goes(
    name: str = "resnet34", size: int = SIZE, batch: int = 8, steps: int = 12, workers: int = 1, on: str = "auto"
) -> dict[str, Any]:
    """A real run of `steps` steps over drawn documents: {model, size, batch, workers, device, seconds (of a step),
    shares, gpu_waits}. `shares` are those of PARTS, and add up to 1.

    `gpu_waits`, None but on CUDA, is the share of time in which the device has nothing to do because no batch is there:
    from the end of a step in its stream to the moment when the next batch comes. Gaps between kernels are not in it.
    Not verified: no GPU was at hand.
    """
    chosen = device.choose(on)
    clock = _Clock(chosen)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        root = Path(folder)
        write_sample_data(root / "data", 4, max(10, -(-batch * steps // 6)), 1)
        words = [
            f"model={name}", f"data.img_size={size}", f"data.root={root / 'data'}", "model.pretrained=false",
            f"training.batch_size={batch}", f"training.num_workers={workers}", f"training.max_steps={steps}",
            "training.epochs=4", "training.validate_per_epoch=1", "data.val_corruption=none", "training.monitor=val_f1",
            f"device={chosen}", "devices=1",
        ]  # fmt: skip
        config = compose(words)
        train(config, root / "run", Stop(), clock.lap)
    spans = clock.spans()
    found = shares(spans)
    return {
        "model": name,
        "size": size,
        "batch": batch,
        "workers": workers,
        "device": chosen,
        "seconds": round(sum(seconds for part, seconds in spans if part in PARTS) / steps, 4),
        "shares": found,
        "gpu_waits": found["data"] if chosen == "cuda" else None,
    }
