"""Check the values of a configuration: choices, ranges and conflicts between keys."""

from __future__ import annotations

import functools
import json
import math
import operator
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from trainer.base import figures
from trainer.base.errors import nearest
from trainer.config.keys import CONF_DIR, OTHER_VALUES, file_names, own_augmentations
from trainer.config.schema import Config

_CHOICES = {
    "data.format": ("auto", "csv", "imagefolder"),
    "data.val_corruption": ("document", "none"),
    "training.optimizer": file_names("models/optimizers"),
    "training.scheduler": ("cosine", "constant"),
    "training.precision": ("auto", "bf16", "fp16", "fp32"),
    "training.loss": file_names("models/losses"),
    "device": ("auto", "cuda", "mps", "cpu"),
}
# key: (lowest, highest, whether the range includes both)
RANGES: dict[str, tuple[float, float, bool]] = {
    "data.img_size": (16, 4096, True),
    "data.val_fraction": (0, 1, False),
    "data.cache_gb": (0, 1e9, True),
    "model.drop_path": (0, 0.9, True),
    "data.split_seed": (0, 2**32 - 1, True),
    "data.folds": (2, 1000, True),
    "data.fold": (0, 999, True),
    "training.epochs": (1, 100_000, True),
    "training.batch_size": (1, 65_536, True),
    "training.micro_batch": (1, 65_536, True),
    "training.num_workers": (0, 256, True),
    "training.lr": (0, 100, False),
    "training.weight_decay": (0, 100, True),
    "training.warmup_epochs": (0, 100_000, True),
    "training.warmup_start": (0, 1, True),
    "training.min_lr": (0, 100, True),
    "training.gradient_clip": (0, math.inf, False),
    "training.focal_gamma": (0, 10, True),
    "training.label_smoothing": (0, 0.9, True),
    "training.mixup": (0, 10, True),
    "training.cutmix": (0, 10, True),
    "training.mix_probability": (0, 1, True),
    "training.ema_decay": (0, 1, False),
    "training.layer_decay": (0, 1, False),
    "training.distill_weight": (0, 1, True),
    "training.distill_temperature": (0, 100, False),
    "training.patience": (0, 100_000, True),
    "training.validate_per_epoch": (1, 100, True),
    "training.keep_top": (1, 100, True),
    "training.max_steps": (1, 10**9, True),
    "seed": (0, 2**32 - 1, True),
    "devices": (1, 1024, True),
}


_SOUND: set[str] = set()
"""Lists of augmentations without an error."""


@functools.cache
def transforms() -> dict[str, list[str]]:
    """Every available augmentation with its arguments: those of the pinned albumentations, and our own."""
    table: dict[str, list[str]] = json.loads((CONF_DIR / "transforms.json").read_text(encoding="utf-8"))
    return table | {name: own.arguments for name, own in own_augmentations().items()}


def range_in_words(low: float, high: float, closed: bool) -> str:
    """`closed`: the range includes both ends."""
    lowest, highest = (str(end) if isinstance(end, int) else f"{end:g}" for end in (low, high))
    if closed:
        return f"from {lowest} to {highest}"
    return f"more than {lowest}" + ("" if math.isinf(high) else f" and less than {highest}")


def choices() -> dict[str, tuple[str, ...]]:
    """The allowed values of each key that has a fixed list of them."""
    return {**_CHOICES, "training.monitor": tuple(figures.columns())}


def check_rest(config: Config) -> list[str]:
    """The errors in values outside the sections (seed, device, …). No rule connects them with others."""
    return [*_check_values(config, *_outside())]


@functools.cache
def _outside() -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[float, float, bool]]]:
    return (
        {key: allowed for key, allowed in choices().items() if "." not in key},
        {key: limits for key, limits in RANGES.items() if "." not in key},
    )


def check(config: Config) -> list[str]:
    """One line per error in the values. Empty if there is none."""
    faults = [*_check_values(config, choices(), RANGES)]
    for name in ("train_transforms", "val_transforms"):
        entries = getattr(config.data, name)
        if not isinstance(entries, list):  # OmegaConf takes anything for a list[Any]
            faults.append(f"data.{name}={entries}: must be a list of augmentations, like [HorizontalFlip]")
            continue
        if (text := repr(entries)) in _SOUND:  # thousands of runs have the same list
            continue
        errors = [
            f for position, entry in enumerate(entries) for f in _check_transform(f"data.{name}.{position}", entry)
        ]
        faults += errors
        None if errors else _SOUND.add(text)
    if config.data.fold and config.data.fold >= (config.data.folds or 1):
        among = (
            f"data.folds={config.data.folds} has 0 to {config.data.folds - 1}"
            if config.data.folds
            else "there are no folds; add data.folds=5"
        )
        faults.append(f"data.fold={config.data.fold}: no such fold; {among}")
    allowed = config.data.allowed_leaks
    if not (isinstance(allowed, list) and all(isinstance(image_id, str) for image_id in allowed)):
        faults.append(f"data.allowed_leaks={allowed}: must be a list of IDs, like [a.jpg]; a number as \"['0123']\"")
    training = config.training
    if not isinstance(training.teachers, list) or not all(isinstance(path, str) for path in training.teachers):
        faults.append(f"training.teachers={training.teachers}: must be a list of files, like [best.ckpt]")
    elif config.choices.get("training") == "distill" and not training.teachers:
        faults.append("training=distill: no teacher given; add training.teachers=[best.ckpt]")
    monitored = figures.columns().get(training.monitor)
    if monitored and monitored.copy == "corrupted" and config.data.val_corruption == "none":
        faults.append(
            f"training.monitor={training.monitor}: data.val_corruption=none does not measure it; "
            f"use training.monitor={monitored.figure.column()}"
        )
    if training.micro_batch and training.batch_size % training.micro_batch:
        divisors = [n for n in range(1, training.batch_size + 1) if training.batch_size % n == 0]
        close = min(divisors, key=lambda n: abs(n - (training.micro_batch or 1)))
        faults.append(
            f"training.micro_batch={training.micro_batch}: training.batch_size={training.batch_size} is not a multiple "
            f"of it; the nearest divisor is {close}"
        )
    if training.compile and training.grad_checkpointing:
        faults.append(
            "training.compile=true: does not work well with training.grad_checkpointing=true; use one of them"
        )
    if training.balanced_sampling and training.class_weights:
        faults.append(
            "training.balanced_sampling=true: with training.class_weights=true rare classes would count twice; "
            "add training.class_weights=false"
        )
    if training.min_lr > training.lr:
        faults.append(f"training.min_lr={training.min_lr}: more than training.lr={training.lr}")
    return faults


def _check_values(
    config: Config, words: Mapping[str, tuple[str, ...]], ranges: Mapping[str, tuple[float, float, bool]]
) -> Iterator[str]:
    for key, allowed in words.items():
        value = _getter(key)(config)
        if value not in allowed:
            meant = OTHER_VALUES.get(str(value).lower())
            hint = f"did you mean '{meant}'?" if meant in allowed else nearest(str(value), allowed)
            yield f"{key}={value}: {hint}"
    for key, (low, high, closed) in ranges.items():
        value = _getter(key)(config)
        if value is None:
            continue
        if not (low <= value <= high if closed else low < value < high):
            yield f"{key}={value}: must be {range_in_words(low, high, closed)}"


def _check_transform(where: str, entry: Any) -> list[str]:
    if isinstance(entry, str):
        entry = {entry: {}}
    if not (isinstance(entry, dict) and len(entry) == 1):
        return [f"{where}: write one augmentation as `Name: {{argument: value}}`, not {entry!r}"]
    name, arguments = next(iter(entry.items()))
    known = transforms()
    if name not in known:
        return [f"{where}: there is no augmentation '{name}'; {nearest(str(name), known)}"]
    if arguments is None:
        return []
    if not isinstance(arguments, dict):
        return [f"{where}: the arguments of {name} must be a mapping, not {arguments!r}"]
    faults = [
        f"{where}: {name} has no argument '{argument}'; {nearest(str(argument), known[name])}"
        for argument in arguments
        if argument not in known[name]
    ]
    p = arguments.get("p")
    if p is not None and not (isinstance(p, int | float) and 0 <= p <= 1):
        faults.append(f"{where}: {name}: p={p!r}: a probability is a number from 0 to 1")
    return faults


@functools.cache
def _getter(key: str) -> Callable[[Config], Any]:
    return operator.attrgetter(key)


WITHOUT_EFFECT: tuple[tuple[str, Callable[[Config], bool], str], ...] = (
    ("training.focal_gamma", lambda c: c.training.loss != "focal", "without training.loss=focal"),
    (
        "training.mix_probability",
        lambda c: not (c.training.mixup or c.training.cutmix),
        "without training.mixup or training.cutmix",
    ),
    ("training.distill_weight", lambda c: not c.training.teachers, "without training.teachers"),
    ("training.distill_temperature", lambda c: not c.training.teachers, "without training.teachers"),
    ("training.warmup_start", lambda c: not c.training.warmup_epochs, "with training.warmup_epochs=0"),
    ("training.min_lr", lambda c: c.training.scheduler == "constant", "with training.scheduler=constant"),
    ("data.val_fraction", lambda c: bool(c.data.folds), "with data.folds"),
    ("data.cache_gb", lambda c: not c.data.fast, "with data.fast=false"),
    ("data.cache_gb", lambda c: not os.environ.get("CACHE_DIR"), "without $CACHE_DIR"),
)
"""Key, whether its value has no effect in a configuration, and why."""


def without_effect(config: Config, usual: Config) -> list[str]:
    """A line for each value other than that of `usual` (the groups' own values) that changes nothing."""
    lines: dict[str, str] = {}
    for key, is_idle, why in WITHOUT_EFFECT:
        value = _getter(key)(config)
        if value != _getter(key)(usual) and is_idle(config):
            lines.setdefault(key, f"{key}={value} has no effect {why}")
    return list(lines.values())
