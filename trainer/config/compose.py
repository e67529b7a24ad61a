"""The configuration: typed, composed by Hydra, checked before anything else happens. Imports no torch.

Three groups (`model`, `data`, `training`) are chosen by name; every other key is a dotted override such as
`training.batch_size=32`. `compose` is what the trainer and the launcher call.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

from trainer.base.errors import ConfigError, nearest
from trainer.config.check import check
from trainer.config.keys import GROUPS, keys, option_names
from trainer.config.merge import merged
from trainer.config.plain import first_line
from trainer.config.schema import Config


def compose(overrides: Sequence[str] = (), command: str = "train") -> Config:
    """The configuration that `overrides` (Hydra's grammar: `group=name`, `dotted.key=value`) ask for, checked.

    `command` is only named in messages.

    Raises ConfigError: one line per fault, all of them at once, each with the nearest valid name.
    """
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

    config = merged(tuple(groups.get(group, "") for group in GROUPS), values)
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
