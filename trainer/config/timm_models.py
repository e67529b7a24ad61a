"""The names of timm's models and of their weights, from a stored list: importing timm (with torch) takes seconds."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from trainer.base.errors import ConfigError, nearest
from trainer.config.keys import CONF_DIR

FILE = CONF_DIR / "timm_models.json"
"""Made by `python -m tests.timm_models`. Of each model: its weights' tags, the default first. A tag without weights
begins with `!`; `tag@owner/name` is a repository of the hub with another name than timm/<model>.<tag>. A model without
tags is an old name."""


def check(name: str) -> None:
    """Raises ConfigError with the nearest name if timm does not have the model or its weights' tag.

    Says nothing if another version of timm is installed than the one of the list: that one may have more models.
    """
    stored, models = _stored()
    if ":" in name:  # a repository of a hub, like hf-hub:owner/name
        return
    model, dot, tag = name.partition(".")
    if model in models and (not dot or tag in [_plain(word) for word in models[model]]):
        return
    installed = _installed()
    if installed not in (None, stored):
        return
    if model in models:
        known = [f"{model}.{_plain(word)}" for word in models[model] if _plain(word)]
        raise ConfigError(f"model.name={name}: timm {stored} has no weights of this name; {nearest(name, known)}")
    names = [model for model, tags in models.items() if tags]
    raise ConfigError(f"model.name={name}: timm {stored} does not have this model; {nearest(name, names)}")


def hub_repository(name: str) -> str | None:
    """The hub's repository of a model's weights (`timm/resnet34.a1_in1k`); None if it has none, or is not known."""
    model, dot, tag = name.partition(".")
    words = _stored()[1].get(model, ())
    word = next((word for word in words if not dot or _plain(word) == tag), None)
    if word is None or word.startswith("!"):
        return None
    return word.partition("@")[2] or f"timm/{model}.{_plain(word)}"


def has_weights(name: str) -> bool:
    """Whether timm has weights for a model of the list; True if the model is not in it."""
    return name.partition(".")[0] not in _stored()[1] or hub_repository(name) is not None


def _plain(word: str) -> str:
    return word.removeprefix("!").partition("@")[0].replace("~", "")


@functools.cache
def _stored() -> tuple[str, Mapping[str, list[str]]]:
    """The version of timm, and the tags of each model."""
    content = json.loads(FILE.read_text(encoding="utf-8"))
    return content["timm"], {model: tags.split() for model, tags in content["models"].items()}


@functools.cache
def _installed() -> str | None:
    try:
        return version("timm")
    except PackageNotFoundError:
        return None
