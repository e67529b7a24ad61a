"""Merge groups and values into one configuration with OmegaConf. Runs of a matrix share the cached common part."""

from __future__ import annotations

import functools
import pickle
import re
from collections.abc import Iterable, Sequence
from typing import Any

from trainer.base.errors import ConfigError
from trainer.config.keys import CONF_DIR, GROUPS, keys, option_names
from trainer.config.plain import first_line
from trainer.config.schema import Config

Value = tuple[str, str, Any]
"""An override as text, its dotted key, and its parsed value. Equal texts have equal keys and values."""
_WRONG = object()
_LISTS = ("data.train_transforms", "data.val_transforms")


def merged(chosen: tuple[str, ...], values: Sequence[Value]) -> Config:
    """The unchecked configuration of group names (in the order of GROUPS; empty: the default) and values.

    Raises ConfigError that lists every value that cannot be set.
    """
    return fast(chosen, values) or slow(chosen, values)


def slow(chosen: tuple[str, ...], values: Sequence[Value]) -> Config:
    """The same as `merged`, without the cache. OmegaConf needs tens of milliseconds."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    faults = []
    tree = _compose_groups(*chosen).copy()
    for text, key, value in values:
        try:
            OmegaConf.update(tree, key, value, merge=False)
        except OmegaConfBaseException as error:
            reason = first_line(error)
            faults.append(
                f"{text}: must be a list: write {key}=[{value}]" if "ListConfig" in reason else f"{text}: {reason}"
            )
        except (IndexError, TypeError, ValueError, AttributeError, KeyError, OverflowError) as error:
            faults.append(f"{text}: cannot be set: {first_line(error)}")
    if faults:
        raise ConfigError("\n".join(faults))
    try:
        config = OmegaConf.to_object(tree)
    except OmegaConfBaseException as error:
        raise ConfigError(f"the configuration has a wrong ${{reference}}: {first_line(error)}") from None
    assert isinstance(config, Config)
    return config


def fast(chosen: tuple[str, ...], values: Sequence[Value]) -> Config | None:
    """The result of `slow` in less than a millisecond. None if a value is wrong or not plain.

    The cache holds one resolved configuration per choice of groups and of referenced values (data.img_size).
    OmegaConf converts every other value once per distinct text; a copy of the configuration gets it.
    """
    referred = _referred(chosen)
    if referred is None or not all(_is_plain(key, value) for _, key, value in values):
        return None
    typed = {}
    for text, key, value in values:
        typed[key] = _typed(text, key, value)
        if typed[key] is _WRONG:
            return None
    config: Config = pickle.loads(_resolved(chosen, tuple(value for value in values if value[1] in referred)))
    for key, value in typed.items():
        section, _, leaf = key.rpartition(".")
        setattr(getattr(config, section) if section else config, leaf, value)
    return config


def _is_plain(key: str, value: Any) -> bool:
    if key.startswith(_LISTS):
        return False
    if isinstance(value, str):
        return "${" not in value and value != "???"  # OmegaConf's syntax for a reference and for a missing value
    return value is None or isinstance(value, bool | int | float)


@functools.cache
def _referred(chosen: tuple[str, ...]) -> frozenset[str] | None:
    """The keys that values in the groups refer to. None if a reference is more than one plain key."""
    from omegaconf import OmegaConf

    references = set()
    waiting = [OmegaConf.to_container(_compose_groups(*chosen), resolve=False)]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, str) and "${" in value:
            match = re.fullmatch(r"\$\{([\w.]+)\}", value)
            if match is None or match[1] not in keys() or match[1].startswith(_LISTS):
                return None
            references.add(match[1])
    return frozenset(references)


@functools.cache
def _resolved(chosen: tuple[str, ...], values: tuple[Value, ...]) -> bytes:
    """The configuration as a pickle: the fastest way to many copies that share nothing."""
    return pickle.dumps(slow(chosen, values))


@functools.cache
def _typed(text: str, key: str, value: Any) -> Any:
    """The value in the type of the schema, or _WRONG."""
    if type(value) is int and keys().get(key) in ("int", "int | None"):
        return value
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    tree = _schema()
    try:
        OmegaConf.update(tree, key, value, merge=False)
        return OmegaConf.select(tree, key)
    except (OmegaConfBaseException, IndexError, TypeError, ValueError, AttributeError, KeyError, OverflowError):
        return _WRONG


@functools.cache
def _schema() -> Any:
    """A scratch tree of the schema. Values from earlier calls do no harm."""
    from omegaconf import OmegaConf

    return OmegaConf.structured(Config)


@functools.cache
def _compose_groups(model: str, data: str, training: str) -> Any:
    """The tree before value overrides. Cached, because a matrix of thousands of runs has few group combinations.

    Hydra needs a tenth of a second for each call. A process needs one combination, or many: for the second one Hydra
    composes all options of all groups in one call.
    """
    from omegaconf import OmegaConf

    named = {group: name for group, name in zip(GROUPS, (model, data, training), strict=True) if name}
    every = _every_option() if _compose_groups.cache_info().currsize else None
    if every is None:
        plain, choices = _by_hydra([f"{group}={name}" for group, name in named.items()])
    else:
        plain, choices = dict(every[0]), dict(every[1])
        for group, name in named.items():
            plain[group], choices[group] = plain[_OPTIONS][group][f"_{option_names(group).index(name)}"], name
        plain.pop(_OPTIONS)
    tree = OmegaConf.merge(OmegaConf.structured(Config), plain)
    tree.choices = choices
    return tree


_OPTIONS = "options"


@functools.cache
def _every_option() -> tuple[dict[str, Any], dict[str, str]] | None:
    """The default combination with its choices, and below `_OPTIONS` every option of every group. None if an option may
    set a key of another group, or if one cannot be read."""
    files = [CONF_DIR / group / f"{name}.yaml" for group in GROUPS for name in option_names(group)]
    try:
        # A package, or a default of another group: "# @package _global_", "- /data: x", "- override /data: x".
        if any(re.search(r"@|^\s*-\s+[a-z ]*/", file.read_text(encoding="utf-8"), re.M) for file in files):
            return None
        return _by_hydra(
            f"+{group}@{_OPTIONS}.{group}._{position}={name}"
            for group in GROUPS
            for position, name in enumerate(option_names(group))
        )
    except Exception:  # whatever is wrong, only the runs that use that option have it
        return None


def _by_hydra(words: Iterable[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """What Hydra composes, and the name that each group has."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        composed = hydra.compose("config", list(words), return_hydra_config=True)
        choices = {group: composed.hydra.runtime.choices[group] for group in GROUPS}
    plain: Any = OmegaConf.to_container(composed, resolve=False)
    plain.pop("hydra")
    return plain, choices
