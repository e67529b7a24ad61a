"""Checkpoints of PyTorch Lightning, such as those of the manual's implementation: a timm model inside a module.

They say which model they are, but not how its images were prepared. So the validation transforms are those of
data=baseline_aug, which does the same as the manual's, with ImageNet's normalisation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from trainer.base.errors import ConfigError, nearest
from trainer.base.plural import counted
from trainer.config.compose import compose
from trainer.models import build, pretrained

VERSION = "pytorch-lightning_version"
NAMES = (
    "model_name",
    "timm_model",
    "backbone_name",
    "backbone",
    "encoder_name",
    "arch",
    "architecture",
    "model",
    "name",
)
"""Hyperparameters that may hold timm's name of the model, the likeliest first."""
SIZES = ("img_size", "image_size", "input_size")
MANUAL_SIZE = 768
"""The image size of the manual's CNNs, which their checkpoints do not hold."""
_BESIDE_MODEL = re.compile(
    r"criterion|loss|metric|(^|_|\.)(f1|acc|accuracy|auroc|confmat|confusion|precision|recall|mean|std)(_|\.|$)"
    r"|class_weight|ema|average",
    re.I,
)
"""Tensors of a module that are no layers between the image and the classes."""
_ADVICE = (
    "fine-tune its weights here instead (model.weights=FILE of a plain state dict), or export them where they trained"
)


class StandIn:
    """Takes the place of any class that a checkpoint names. It holds the state, and runs no code of that class."""

    def __new__(cls, *_arguments: Any, **_named: Any) -> StandIn:
        return super().__new__(cls)

    def __init__(self, *_arguments: Any, **_named: Any) -> None:
        """Takes what the other class takes."""

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {})


def read_objects(path: Path, mapped: bool) -> Any:
    """The content of a checkpoint with objects that weights_only refuses, as stand-ins. Raises whatever a damaged file
    raises."""
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    with torch.serialization.safe_globals([(StandIn, name) for name in names]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def is_lightning(content: Any) -> bool:
    """Whether a file has weights and hyperparameters as Lightning names them, whoever saved it."""
    return (
        isinstance(content, dict)
        and isinstance(content.get("state_dict"), dict)
        and (VERSION in content or "hyper_parameters" in content)
    )


def fields(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """The fields of our `Checkpoint` for the content of a Lightning checkpoint.

    Raises ConfigError if timm does not know the model, or if the module is more than a timm model.
    """
    if not is_lightning(content):
        raise ConfigError(f"{path}: a checkpoint of Lightning without weights; give one with a state_dict")
    settings = _plain(content.get("hyper_parameters", {}))
    name = _name(path, settings)
    state = {key: value for key, value in content["state_dict"].items() if isinstance(value, torch.Tensor)}
    size, source = _size(path, name, [settings, _plain(content.get("datamodule_hyper_parameters", {}))])
    with torch.device("meta"):
        wanted = timm.create_model(name, **build.size_arguments(name, size)).state_dict()
    prefix = pretrained.prefix_of(state, wanted)
    if prefix is None:
        raise ConfigError(f"{path}: its module is not timm's {name} alone: the layers have other names; {_ADVICE}")
    weights = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    weights = {key: value for key, value in weights.items() if key in wanted}
    odd = [key for key in state if key.removeprefix(prefix) not in wanted and not _BESIDE_MODEL.search(key)]
    if odd:
        raise ConfigError(f"{path}: its module has more layers than timm's {name}: {', '.join(odd[:3])}; {_ADVICE}")
    classes = _classes(path, name, weights, wanted)
    config = compose([f"model.name={name}", "model.pretrained=false", f"data.img_size={size}"])
    print(
        f"note: {path}: {name} of Lightning with {counted(classes, 'class')}; images are prepared as by "
        f"data=baseline_aug at {size} px ({source}), and its classes are called 0 to {classes - 1}"
    )
    return {
        "state_dict": weights,
        "class_names": [str(number) for number in range(classes)],
        "labels": [str(number) for number in range(classes)],
        "config": {"model": asdict(config.model), "data": asdict(config.data)},
        "preprocessing": {
            "img_size": size,
            "mean": list(IMAGENET_DEFAULT_MEAN),
            "std": list(IMAGENET_DEFAULT_STD),
            "transforms": config.data.val_transforms,
            "fast": config.data.fast,
        },
        "versions": {"lightning": str(content.get(VERSION, "unknown"))},
    }


def _plain(value: Any) -> Any:
    """Hyperparameters without stand-ins: OmegaConf keeps values in `_content` and `_val`."""
    if isinstance(value, StandIn):
        inside = vars(value)
        return _plain(inside.get("_content", inside.get("_val", inside)))
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _values(settings: Any, key: str) -> Iterator[Any]:
    """All values of `key`, however deep, the outer ones first."""
    if isinstance(settings, dict) and key in settings:
        yield settings[key]
    inside = settings.values() if isinstance(settings, dict) else settings if isinstance(settings, list) else ()
    for inner in inside:
        yield from _values(inner, key)


def _name(path: Path, settings: Any) -> str:
    """timm's name of the model."""
    texts = [value for key in NAMES for value in _values(settings, key) if isinstance(value, str)]
    known = [text.removeprefix("timm/") for text in texts if timm.is_model(text.removeprefix("timm/"))]
    if known:
        return known[0]
    if not texts:
        raise ConfigError(f"{path}: a checkpoint of Lightning whose hyperparameters do not name a model; {_ADVICE}")
    raise ConfigError(
        f"{path}: a checkpoint of Lightning of {texts[0]}, which timm does not know "
        f"({nearest(texts[0], timm.list_models())}); {_ADVICE}"
    )


def _size(path: Path, name: str, settings: list[Any]) -> tuple[int, str]:
    """The image size, and where it comes from."""
    try:
        beside = json.loads((path.parent / "experiment_info.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        beside = {}
    for where, source in ((settings, "from its hyperparameters"), ([beside], "from experiment_info.json")):
        # The manual's implementation takes the size from its list of augmentations, not from img_size.
        for key in ("max_size", *SIZES):
            found = [value for each in where for value in _values(each, key)]
            numbers = [value for value in found if isinstance(value, int) and 16 <= value <= 4096]
            if numbers:
                return max(numbers), source
    cfg = timm.get_pretrained_cfg(name)
    if cfg is not None and cfg.fixed_input_size:
        return int(cfg.input_size[-1]), "the size of the model"
    return MANUAL_SIZE, "the manual's size, because the file has none"


def _classes(path: Path, name: str, weights: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> int:
    """The number of classes, from the classifier's bias or weight. Raises ConfigError if another tensor differs."""
    sizes = {key: value.shape for key, value in weights.items() if value.shape != wanted[key].shape}
    heads = pretrained.classifier_names(timm.get_pretrained_cfg(name))
    odd = [key for key in sizes if not key.startswith(heads)]
    if odd:
        raise ConfigError(f"{path}: its {odd[0]} is of another size than that of timm's {name}; {_ADVICE}")
    counts = {int(value.shape[0]) for key, value in weights.items() if key.startswith(heads) and value.ndim}
    if len(counts) != 1:
        raise ConfigError(f"{path}: the number of its classes is not clear from its layers; {_ADVICE}")
    return counts.pop()
