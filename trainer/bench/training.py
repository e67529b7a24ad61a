"""Training speed: the trainer's step compared with timm's."""

from __future__ import annotations

import contextlib
import functools
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import timm
import torch
from timm.loss import LabelSmoothingCrossEntropy  # type: ignore[attr-defined]
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]

from trainer.bench.steps import GPU_SETUPS, QUICK, SIZE, Row, environment, fast_kernels, fitting
from trainer.config.compose import compose
from trainer.models import build, compiling
from trainer.training import device
from trainer.training.step import learner, set_up, take

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
CLASSES = 17
SETUPS = (
    ("resnet34", 16), ("efficientnet_b4", 8), ("resnet50", 8),
    ("convnext_base", 4), ("swin_base_384", 4), ("deit_base_384", 4),
)  # fmt: skip
"""The manual's models (the trainer's names) with the batch size on the CPU. It is small, so that it takes minutes."""
GPU_STEPS = 10
"""Steps per turn on the CPU."""


def measure(quick: bool = False) -> list[Row]:
    """Training images/s on this machine's CPU and (if present) its GPU, one row per model: {device, model, size, batch,
    precision, images_per_s, timm, ratio, timm_defaults, ratio_defaults}.

    `images_per_s` is for the step of `trainer.training.step` with uint8 images. `timm` is for timm with the best flags
    of its script (channels last, autocast if the device has bf16, AdamW, fused). `timm_defaults` is for the defaults of
    that script (SGD, float32, contiguous). All run eagerly. On a GPU each step copies its images from pinned memory and
    normalises them, like timm's PrefetchLoader; on the CPU timm's images are normalised before. The measurements
    alternate. A value is the median over turns, and a ratio is the median of the ratios within a turn. `quick`: two
    models, fewer turns.
    """
    rounds = 5 if quick else 7
    setups = [("cpu", name, SIZE, batch) for name, batch in SETUPS]
    if torch.cuda.is_available():
        setups += [("cuda", *setup) for setup in GPU_SETUPS]
    rows = []
    for on, name, size, batch in setups:
        if not quick or name in QUICK:
            with fast_kernels(on):
                rows.append(fitting(lambda n, o=on, m=name, s=size: _compare(m, s, n, rounds, o), batch))  # type: ignore[misc]
    return rows


def _compare(name: str, size: int, batch: int, rounds: int, on: str = "cpu") -> Row:
    precision = device.precision("auto", on)
    channels_last = device.channels_last(None, on)
    best = timm_step(name, size, batch, channels_last, precision, "adamw", on, fused=True)
    steps = [trainer_step(name, size, batch, on=on), best, timm_step(name, size, batch, False, "fp32", "sgd", on)]
    times = GPU_STEPS if on == "cuda" else 1
    seconds = take_turns([repeated(step, times, on) for step in steps], rounds)
    own, with_flags, plain = (times * batch / statistics.median(rounds) for rounds in seconds)
    return {
        "device": on,
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


def repeated(step: Callable[[], None], times: int, on: str) -> Callable[[], None]:
    """Run `times` steps and wait until the device has finished."""

    def all_of_them() -> None:
        for _ in range(times):
            step()
        compiling.wait(torch.device(on))

    return all_of_them


def compile_gains(quick: bool = False) -> list[Row]:
    """Time saved by torch.compile in a forward and backward pass on a GPU, one row per model: {model, size, batch,
    eager_ms, compiled_ms, saves (the share), seconds (of compiling, without a cache)}. Empty without a GPU."""
    if not torch.cuda.is_available():
        return []
    rows = []
    for name, size, batch in GPU_SETUPS:
        if not quick or name in QUICK:
            with fast_kernels("cuda"):
                rows.append(fitting(lambda n, m=name, s=size: _compiled(m, s, n), batch))  # type: ignore[misc]
    return rows


def _compiled(name: str, size: int, batch: int) -> Row:
    precision = device.precision("auto", "cuda")
    fabric = device.fabric("cuda", precision)
    own = compose([f"model={name}", "model.pretrained=false"]).model
    net = build.Normalized(build.create(own, CLASSES, size), *build.mean_std(own.name), True).to("cuda")
    images = torch.zeros(batch, 3, size, size, dtype=torch.uint8, device="cuda")
    eager = compiling.seconds(net, fabric, images, GPU_STEPS)
    with tempfile.TemporaryDirectory() as folder, environment("TORCHINDUCTOR_CACHE_DIR", folder):
        started = time.perf_counter()
        net.model.compile(dynamic=False)
        compiling.seconds(net, fabric, images, steps=0)
        spent = time.perf_counter() - started
        compiled = compiling.seconds(net, fabric, images, GPU_STEPS)
    torch.compiler.reset()
    return {
        "model": name,
        "size": size,
        "batch": batch,
        "eager_ms": round(eager * 1e3, 2),
        "compiled_ms": round(compiled * 1e3, 2),
        "saves": round(1 - compiled / eager, 3),
        "seconds": round(spent, 1),
    }


def _ratio(reference: list[float], own: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(reference, own, strict=True)), 3)


def take_turns(steps: list[Callable[[], None]], rounds: int) -> list[list[float]]:
    """Seconds of each of the steps in each round. Each round starts with another step. There is one warm-up round."""
    seconds: list[list[float]] = [[] for _ in steps]
    for turn in range(-1, rounds):
        for place in range(len(steps)):
            which = (turn + place) % len(steps)
            started = time.perf_counter()
            steps[which]()
            if turn >= 0:
                seconds[which].append(time.perf_counter() - started)
    return seconds


def trainer_step(name: str, size: int, batch: int, *words: str, on: str = "cpu") -> Callable[[], None]:
    """A step of `trainer.training.step` on the device `on`, with random images instead of a loader. `words` are
    overrides."""
    own = ["model.pretrained=false", f"device={on}", "training.class_weights=false"]
    config = compose([f"model={name}", f"data.img_size={size}", f"training.batch_size={batch}", *own, *words])
    precision = device.precision(config.training.precision, on)
    channels_last = device.channels_last(config.training.channels_last, on)
    net, optimizer = learner(config, CLASSES, torch.device(on), precision, channels_last)
    fabric = device.fabric(on, precision)
    own_step = set_up(config, fabric, net, optimizer, [1.0] * CLASSES, steps_per_epoch=100)
    own_step.net.train()
    batch_of_bytes, numbers = drawn(size, batch, on), itertools.count()

    def one_more() -> None:
        take(own_step, [batch_of_bytes], next(numbers))

    return one_more


def drawn(size: int, batch: int, on: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 3, H, W) uint8, channels last, and targets (N), as from a loader for the device `on`."""
    chance = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, generator=chance).permute(0, 3, 1, 2)
    targets = torch.randint(0, CLASSES, (batch,), generator=chance)
    return (images.pin_memory(), targets.pin_memory()) if on == "cuda" else (images, targets)


def timm_step(
    name: str, size: int, batch: int, channels_last: bool, precision: str, optimizer: str, on: str = "cpu", **more: Any
) -> Callable[[], None]:
    """A step as in timm's train script: its model, loss and optimizer (`more` are optimizer arguments). On the CPU the
    images are normalised before; on a GPU they come as from timm's PrefetchLoader."""
    own = compose([f"model={name}"]).model.name
    net = timm.create_model(own, num_classes=CLASSES, **build.size_arguments(own, size)).train().to(on)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net = net.to(memory_format=layout)
    update = create_optimizer_v2(net, opt=optimizer, lr=1e-3, weight_decay=0.05, momentum=0.9, **more)
    loss_of = LabelSmoothingCrossEntropy(0.1)  # type: ignore[no-untyped-call]
    taken = (
        contextlib.nullcontext if precision == "fp32" else functools.partial(torch.autocast, on, AUTOCAST[precision])
    )
    scaler = torch.amp.GradScaler(on) if precision == "fp16" else None
    loaded, targets = drawn(size, batch, on)
    mean, std = (torch.tensor(v, device=on).view(1, 3, 1, 1) * 255 for v in build.mean_std(own))
    ready = torch.randn(batch, 3, size, size).contiguous(memory_format=layout)

    def step() -> None:
        images, wanted = ready, targets
        if on != "cpu":
            images = loaded.to(on, non_blocking=True).float().sub_(mean).div_(std).contiguous(memory_format=layout)
            wanted = targets.to(on, non_blocking=True)
        with taken():
            loss = loss_of(net(images), wanted)
        if scaler is None:
            loss.backward()
            update.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(update)
            scaler.update()
        update.zero_grad()

    return step
