"""The configuration: typed, composed by Hydra, checked before anything else happens. Imports no torch.

Three groups (`model`, `data`, `training`) are chosen by name; every other key is a dotted override such as
`training.batch_size=32`. `compose` is what the trainer and the launcher call.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trainer.base.errors import ConfigError, nearest
from trainer.config import schema
from trainer.config.schema import Config, DataConfig, ModelConfig, TrainingConfig

CONF_DIR = Path(__file__).parent / "conf"
GROUPS = ("model", "data", "training")


_CHOICES = {
    "data.format": ("auto", "csv", "imagefolder"),
    "data.val_corruption": ("document", "none"),
    "training.optimizer": ("adamw", "sgd"),
    "training.scheduler": ("cosine", "constant"),
    "training.precision": ("auto", "bf16", "fp16", "fp32"),
    "training.loss": ("cross_entropy", "focal"),
    "training.monitor": ("val_f1", "val_f1_corrupted", "val_f1_mean"),
    "device": ("auto", "cuda", "mps", "cpu"),
}
# key: (lowest, highest, whether the ends themselves are allowed)
_RANGES: dict[str, tuple[float, float, bool]] = {
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


@functools.cache
def option_names(group: str) -> tuple[str, ...]:
    """The names that `group` (one of `GROUPS`) can be given, sorted."""
    return tuple(sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml")))


@functools.cache
def keys() -> dict[str, str]:
    """Every dotted key, with its type as written in the schema: `{"training.lr": "float", …}`."""
    return {key: f.type if isinstance(f.type, str) else f.type.__name__ for key, f in _fields(Config, "")}


def describe() -> list[tuple[str, str, str]]:
    """Every key with its type and its docstring, for `--help`."""
    docs: dict[str, str] = {}
    source = Path(schema.__file__).read_text(encoding="utf-8")
    prefixes = {"ModelConfig": "model.", "DataConfig": "data.", "TrainingConfig": "training.", "Config": ""}
    for name, body in re.findall(r"^@dataclass\nclass (\w+):\n(.*?)(?=\n\n\n|\Z)", source, re.S | re.M):
        for key, doc in re.findall(r'^    (\w+): [^\n]*\n    """(.*?)"""', body, re.S | re.M):
            docs[prefixes[name] + key] = doc
    return [(key, kind, docs.get(key, "")) for key, kind in keys().items() if key != "choices"]


def _fields(kind: type, prefix: str) -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    nested = {"model": ModelConfig, "data": DataConfig, "training": TrainingConfig}
    for f in dataclasses.fields(kind):
        if not prefix and f.name in nested:
            yield from _fields(nested[f.name], f.name + ".")
        else:
            yield prefix + f.name, f


def compose(overrides: Sequence[str] = (), command: str = "train") -> Config:
    """The configuration that `overrides` (Hydra's grammar: `group=name`, `dotted.key=value`) ask for, checked.

    `command` is only named in messages.

    Raises ConfigError: one line per fault, all of them at once, each with the nearest valid name.
    """
    from trainer.config import compose as composition

    faults: list[str] = []
    groups: dict[str, str] = {}
    values: list[tuple[str, str, Any]] = []
    for text in overrides:
        try:
            key, value = parse(text, command)
            if key in GROUPS:
                if value not in option_names(key):
                    hint = nearest(str(value), option_names(key))
                    more = " (any timm model: model.name=…)" if key == "model" else ""
                    raise ConfigError(f"{text}: there is no {key} called '{value}'; {hint}{more}")
                groups[key] = value
            else:
                _check_key(text, key)
                values.append((text, key, value))
        except ConfigError as error:
            faults.append(str(error))
    if faults:
        raise ConfigError("\n".join(faults))

    config = composition.composed(tuple(groups.get(group, "") for group in GROUPS), values)
    faults = check(config)
    if faults:
        raise ConfigError("\n".join(faults))
    return config


@functools.cache
def parse(text: str, command: str = "train") -> tuple[str, Any]:
    """Key and value of an override in Hydra's grammar. Raises ConfigError, in which `command` is named."""
    if whole := _WHOLE.fullmatch(text):  # a thousand seeds: Hydra's parser takes a millisecond for each
        return whole[1], int(whole[2])
    from hydra.core.override_parser.types import OverrideType
    from hydra.errors import HydraException

    if text.startswith("-"):
        raise ConfigError(f"{text}: there is no such option; `python -m trainer {command}` takes key=value")
    if "=" not in text:
        raise ConfigError(f"{text}: a value is missing; write {text}=…")
    try:
        override = _hydra_parser().parse_override(text)
    except HydraException as error:
        raise ConfigError(f"{text}: not understood: {first_line(error)}") from None
    if override.type is not OverrideType.CHANGE or override.package:
        raise ConfigError(f"{text}: write plain key=value: keys are neither added, removed nor moved")
    if override.is_sweep_override():
        raise ConfigError(f"{text}: several values are several runs; start them by `launcher submit {text}`")
    return override.key_or_group, override.value()


_WHOLE = re.compile(r"([a-z_]+(?:\.[a-z_]+)*)=(0|[1-9][0-9]{0,17})", re.ASCII)
"""Words that are a key and a whole number by Hydra's grammar, too."""


@functools.cache
def _hydra_parser() -> Any:
    """It keeps nothing of what it has parsed."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create()


def _check_key(text: str, key: str) -> None:
    known = keys()
    if key == "choices" or key.startswith("choices."):
        raise ConfigError(f"{text}: choices is filled in by the trainer; choose with model=, data= or training=")
    if key in known or key.startswith(("data.train_transforms.", "data.val_transforms.")):
        return
    leaf = key.rsplit(".", 1)[-1]
    leaf = {"learning_rate": "lr", "wd": "weight_decay", "workers": "num_workers"}.get(leaf, leaf)
    same_leaf = [name for name in known if name.rsplit(".", 1)[-1] == leaf]
    hint = f"did you mean '{same_leaf[0]}'?" if same_leaf else nearest(key, [*known, *GROUPS])
    raise ConfigError(f"{text}: there is no key '{key}'; {hint}")


def first_line(error: BaseException) -> str:
    """The first line of an error's message: OmegaConf and Hydra say more than helps."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


@functools.cache
def transforms() -> dict[str, list[str]]:
    """Every augmentation that can be named, with its arguments: a table made from the pinned albumentations."""
    table: dict[str, list[str]] = json.loads((CONF_DIR / "transforms.json").read_text(encoding="utf-8"))
    return table


def check(config: Config) -> list[str]:
    """What is wrong with the values, a line each; empty when nothing is."""
    faults = [*_check_values(config)]
    for name in ("train_transforms", "val_transforms"):
        entries = getattr(config.data, name)
        if not isinstance(entries, list):  # OmegaConf takes anything for a list[Any]
            faults.append(f"data.{name}={entries}: must be a list of augmentations, like [HorizontalFlip]")
            continue
        for position, entry in enumerate(entries):
            faults += _check_transform(f"data.{name}.{position}", entry)
    if config.data.fold and config.data.fold >= (config.data.folds or 1):
        among = (
            f"the {config.data.folds} folds count from 0" if config.data.folds else "there are none: say data.folds=5"
        )
        faults.append(f"data.fold={config.data.fold}: no such fold; {among}")
    allowed = config.data.allowed_leaks
    if not (isinstance(allowed, list) and all(isinstance(image_id, str) for image_id in allowed)):
        faults.append(f"data.allowed_leaks={allowed}: must be a list of IDs, like [a.jpg]; a number as \"['0123']\"")
    training = config.training
    if not isinstance(training.teachers, list) or not all(isinstance(path, str) for path in training.teachers):
        faults.append(f"training.teachers={training.teachers}: must be a list of files, like [best.ckpt]")
    elif config.choices.get("training") == "distill" and not training.teachers:
        faults.append("training=distill: no teacher is named; say training.teachers=[best.ckpt]")
    if training.monitor == "val_f1_corrupted" and config.data.val_corruption == "none":
        faults.append("training.monitor=val_f1_corrupted: data.val_corruption=none makes no such figure; say val_f1")
    if training.micro_batch and training.batch_size % training.micro_batch:
        divisors = [n for n in range(1, training.batch_size + 1) if training.batch_size % n == 0]
        close = min(divisors, key=lambda n: abs(n - (training.micro_batch or 1)))
        faults.append(
            f"training.micro_batch={training.micro_batch}: training.batch_size={training.batch_size} is not a multiple "
            f"of it; the nearest that divides it is {close}"
        )
    if training.compile and training.grad_checkpointing:
        faults.append(
            "training.compile=true: not with training.grad_checkpointing=true, which it would undo in part; say either"
        )
    if training.min_lr > training.lr:
        faults.append(f"training.min_lr={training.min_lr}: more than training.lr={training.lr}")
    return faults


def _check_values(config: Config) -> Iterator[str]:
    for key, allowed in _CHOICES.items():
        value = _get(config, key)
        if value not in allowed:
            yield f"{key}={value}: {nearest(str(value), allowed)}"
    for key, (low, high, closed) in _RANGES.items():
        value = _get(config, key)
        if value is None:
            continue
        if not (low <= value <= high if closed else low < value < high):
            words = f"from {low:g} to {high:g}" if closed else f"more than {low:g}"
            yield f"{key}={value}: must be {words}{'' if closed or math.isinf(high) else f' and less than {high:g}'}"


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


def _get(config: Config, key: str) -> Any:
    return functools.reduce(getattr, key.split("."), config)


def to_dict(config: Config) -> dict[str, Any]:
    """Plain dicts, lists, strings and numbers."""
    return view(copied(config))


def view(config: Config) -> dict[str, Any]:
    """`to_dict` without a copy: to look at, and not to change."""
    return {key: vars(value) if dataclasses.is_dataclass(value) else value for key, value in vars(config).items()}


def copied(value: Any) -> Any:
    """A copy that shares nothing with a configuration or a part of it; many times as fast as copy.deepcopy."""
    kind = type(value)
    if kind is dict:
        return {key: item if type(item) in _ATOMS else copied(item) for key, item in value.items()}
    if kind is list:
        return [item if type(item) in _ATOMS else copied(item) for item in value]
    if kind in _ATOMS:
        return value
    assert kind in (Config, ModelConfig, DataConfig, TrainingConfig)
    return kind(**{key: item if type(item) in _ATOMS else copied(item) for key, item in vars(value).items()})


_ATOMS = frozenset({str, int, float, bool, type(None)})


def to_yaml(config: Config) -> str:
    """The whole configuration as YAML, which `from_dict(yaml.safe_load(…))` reads back."""
    import yaml

    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True, width=120)


def from_dict(plain: dict[str, Any]) -> Config:
    """The inverse of `to_dict`. Raises ConfigError where the schema does not fit."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), plain))
    except OmegaConfBaseException as error:
        raise ConfigError(f"not a configuration of this trainer: {first_line(error)}") from None
    assert isinstance(config, Config)
    return config
