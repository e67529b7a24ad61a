"""Convert a configuration to plain values and back: dicts, YAML, copies."""

from __future__ import annotations

import dataclasses
from typing import Any

from trainer.base.errors import ConfigError
from trainer.config.schema import Config, DataConfig, ModelConfig, TrainingConfig


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as plain dicts, lists, strings and numbers."""
    return view(copied(config))


def view(config: Config) -> dict[str, Any]:
    """The same as `to_dict` without a copy. Do not change it."""
    return {key: vars(value) if dataclasses.is_dataclass(value) else value for key, value in vars(config).items()}


def copied(value: Any) -> Any:
    """A deep copy of a configuration or of a part of it. Much faster than copy.deepcopy."""
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
    """The whole configuration as YAML. `from_dict(yaml.safe_load(text))` reads it."""
    import yaml

    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True, width=120)


def from_dict(plain: dict[str, Any]) -> Config:
    """The inverse of `to_dict`. Raises ConfigError if `plain` does not match the schema."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), plain))
    except OmegaConfBaseException as error:
        raise ConfigError(f"not a configuration of this trainer: {first_line(error)}") from None
    assert isinstance(config, Config)
    return config


def first_line(error: BaseException) -> str:
    """The first line of an error message. The other lines of OmegaConf and Hydra do not help a user."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
