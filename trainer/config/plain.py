"""A configuration as plain values and back: dicts, YAML, copies."""

from __future__ import annotations

import dataclasses
from typing import Any

from trainer.base.errors import ConfigError
from trainer.config.schema import Config, DataConfig, ModelConfig, TrainingConfig


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


def first_line(error: BaseException) -> str:
    """The first line of an error's message: OmegaConf and Hydra say more than helps."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
