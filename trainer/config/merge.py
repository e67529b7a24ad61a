"""Merge groups and values into one configuration. Thousands of runs of a matrix share what is equal: a section
(`model`, `data`, `training`) is composed once for each option, and a value is converted once for each distinct text."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from trainer.base.errors import ConfigError
from trainer.config.keys import CONF_DIR, GROUPS, keys
from trainer.config.plain import first_line
from trainer.config.schema import Config, DataConfig, ModelConfig, TrainingConfig

_SECTIONS: dict[str, type] = {"model": ModelConfig, "data": DataConfig, "training": TrainingConfig}
_LISTS = ("data.train_transforms", "data.val_transforms")
_WRONG = object()


@dataclass(frozen=True)
class Value:
    """An override as text, its dotted key, and its parsed value. Equal texts have equal keys and values."""

    text: str
    key: str
    value: Any = field(compare=False)

    @functools.cached_property
    def section(self) -> str:
        """The group of the key; empty if it is in none."""
        first, dot, _ = self.key.partition(".")
        return first if dot and first in GROUPS else ""

    @functools.cached_property
    def is_plain(self) -> bool:
        """Whether it sets one key to a value without structure, whatever the other values are."""
        if self.key.count(".") != bool(self.section) or self.key in _LISTS:
            return False
        if isinstance(self.value, str):
            return "${" not in self.value and self.value != "???"  # OmegaConf's words for a reference and for no value
        return self.value is None or isinstance(self.value, bool | int | float)

    @functools.cached_property
    def references(self) -> frozenset[str] | None:
        """The keys that it refers to. None if one is in another section, or if a reference is more than a plain key."""
        return _references(self.value, self.section)


def merged(chosen: tuple[str, ...], values: Sequence[Value]) -> Config:
    """The unchecked configuration of group names (in the order of GROUPS; empty: the default) and values. It shares
    parts with other configurations: do not change it.

    Raises ConfigError that lists every value that cannot be set.
    """
    config = fast(chosen, values)
    if config is None and (faults := quick_faults(values)):
        raise ConfigError("\n".join(faults))
    return config or slow(chosen, values)


def slow(chosen: tuple[str, ...], values: Sequence[Value]) -> Config:
    """The same as `merged`, composed by OmegaConf as a whole, which needs tens of milliseconds."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    tree = _composed(*chosen).copy()
    faults = [fault for value in values if (fault := _set(tree, value)) is not None]
    if faults:
        raise ConfigError("\n".join(faults))
    try:
        config = OmegaConf.to_object(tree)
    except OmegaConfBaseException as error:
        missing = re.search(r"key '([^']*)' not found", first_line(error))
        what = f"no key '{missing[1]}'" if missing else first_line(error)
        raise ConfigError(f"the configuration has a wrong ${{reference}}: {what}") from None
    assert isinstance(config, Config)
    return config


def quick_faults(values: Sequence[Value]) -> list[str]:
    """The errors of `slow` in some microseconds, for thousands of runs with the same error. Empty if there is none, or
    if a value is not plain."""
    return [fault for value in values if (fault := _fault(value))] if all(value.is_plain for value in values) else []


@functools.cache
def _fault(value: Value) -> str | None:
    return _set(_schema(), value)


def _set(tree: Any, value: Value) -> str | None:
    """Set a value in a tree of OmegaConf. Returns the error if that is not possible."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        OmegaConf.update(tree, value.key, value.value, merge=False)
    except OmegaConfBaseException as error:
        return f"{value.text}: {_must_be(value) or first_line(error)}"
    except (IndexError, TypeError, ValueError, AttributeError, KeyError, OverflowError) as error:
        return f"{value.text}: cannot be set: {first_line(error)}"
    return None


_TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}
"""The types of the schema in words."""


def _must_be(value: Value) -> str:
    """What type a value that OmegaConf does not take must have; empty if it is no key of the schema itself."""
    kind, _, optional = keys().get(value.key, "").partition(" | ")
    if kind.startswith("list"):
        plain = not isinstance(value.value, dict | list)
        return f"must be a list: write {value.key}=[{value.value}]" if plain else "must be a list"
    if kind not in _TYPES:
        return ""
    return f"must be {_TYPES[kind]}" + (", or null" if optional else "")


def fast(chosen: tuple[str, ...], values: Sequence[Value]) -> Config | None:
    """The result of `slow` in some microseconds. None if a value is wrong, or if a section cannot be composed alone.
    Configurations of equal words for a section have the same object as their section."""
    defaults = _default_options()
    if defaults is None:
        return None
    own: dict[str, list[Value]] = {group: [] for group in ("", *GROUPS)}
    for value in values:
        own[value.section].append(value)
    names = {group: name or defaults[group] for group, name in zip(GROUPS, chosen, strict=True)}
    sections = {group: _section(group, name, tuple(own[group])) for group, name in names.items()}
    typed = [(value.key, _typed(value) if value.is_plain else _WRONG) for value in own[""]]
    model, data, training = (sections[group] for group in GROUPS)
    if model is None or data is None or training is None or any(each is _WRONG for _, each in typed):
        return None
    config = Config(model, data, training, choices=names)
    vars(config).update(typed)
    return config


@functools.cache
def _section(group: str, name: str, values: tuple[Value, ...]) -> Any | None:
    """The typed section of an option with these values. None if something is wrong, or refers to another section.

    A value that is not plain, or that another one refers to, takes part in the composition by OmegaConf. Any other
    value only replaces a field.
    """
    bound: set[str] = set()
    for value in values:
        if not value.is_plain:
            if value.references is None:
                return None
            bound |= {value.key, *value.references}
    referred = _option_references(group, name)
    if referred is None:
        return None
    bound |= referred
    section = _resolved(group, name, tuple(value for value in values if not value.is_plain or value.key in bound))
    typed = [(value.key.rpartition(".")[2], _typed(value)) for value in values if value.key not in bound]
    if section is None or any(each is _WRONG for _, each in typed):
        return None
    copied = object.__new__(type(section))
    vars(copied).update(vars(section) | dict(typed))
    return copied


@functools.cache
def _typed(value: Value) -> Any:
    """A plain value in the type of the schema, or _WRONG."""
    if type(value.value) is int and keys().get(value.key) in ("int", "int | None"):
        return value.value
    if type(value.value) is float and keys().get(value.key) in ("float", "float | None"):
        return value.value
    from omegaconf import OmegaConf

    tree = _schema()
    return _WRONG if _set(tree, value) is not None else OmegaConf.select(tree, value.key)


@functools.cache
def _schema() -> Any:
    """A scratch tree of the schema. Values from earlier calls do no harm."""
    from omegaconf import OmegaConf

    return OmegaConf.structured(Config)


@functools.cache
def _resolved(group: str, name: str, values: tuple[Value, ...]) -> Any | None:
    """The section of an option with these values, by OmegaConf. None if something is wrong with it."""
    from omegaconf import OmegaConf

    try:
        tree: Any = OmegaConf.merge({group: OmegaConf.structured(_SECTIONS[group])}, {group: _option(group, name)})
        for value in values:
            OmegaConf.update(tree, value.key, value.value, merge=False)
        section = OmegaConf.to_object(tree[group])
    except Exception:  # `slow` has the words for it
        return None
    return section if type(section) is _SECTIONS[group] else None


# -- the files


@functools.cache
def _default_options() -> dict[str, str] | None:
    """The option of each group that nobody has chosen. None if config.yaml does more than to name them."""
    from omegaconf import OmegaConf

    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(CONF_DIR / "config.yaml"), resolve=False)
        listed = [entry for entry in content.pop("defaults") if entry != "_self_"]
        names = {group: str(name) for entry in listed for group, name in entry.items()}
    except Exception:  # `slow` has the words for it
        return None
    return names if not content and sorted(names) == sorted(GROUPS) else None


@functools.cache
def _option(group: str, name: str) -> dict[str, Any]:
    """What Hydra reads from an option's file and from the options of the same group in its `defaults`. Raises an error
    of any type if the file has more of Hydra's words than these."""
    from omegaconf import OmegaConf

    path = CONF_DIR / group / f"{name}.yaml"
    if "@" in path.read_text(encoding="utf-8"):
        raise ValueError(f"{path}: may set keys of another group")  # `# @package _global_`
    own: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    defaults = own.pop("defaults", ["_self_"])
    if defaults.count("_self_") != 1 or any(re.search(r"\W", entry) for entry in defaults):
        raise ValueError(f"{path}: its defaults are not only options of its group")
    parts = [own if entry == "_self_" else _option(group, entry) for entry in defaults]
    whole: Any = OmegaConf.to_container(OmegaConf.merge(*parts), resolve=False)
    return dict(whole)


@functools.cache
def _option_references(group: str, name: str) -> frozenset[str] | None:
    """See `Value.references`. None also if the option cannot be composed alone."""
    try:
        return _references(_option(group, name), group)
    except Exception:  # `slow` has the words for it
        return None


def _references(content: Any, section: str) -> frozenset[str] | None:
    found = set()
    for text in _texts(content):
        if "${" in text:
            match = re.fullmatch(r"\$\{([\w.]+)\}", text)
            if match is None or match[1] not in keys() or match[1] in _LISTS:
                return None
            if not match[1].startswith(f"{section}."):
                return None
            found.add(match[1])
    return frozenset(found)


def _texts(content: Any) -> Iterator[str]:
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, str):
            yield value


@functools.cache
def _composed(model: str, data: str, training: str) -> Any:
    """The tree before value overrides."""
    from omegaconf import OmegaConf

    plain, choices = _from_files(model, data, training) or _by_hydra(model, data, training)
    tree = OmegaConf.merge(OmegaConf.structured(Config), plain)
    tree.choices = choices
    return tree


def _from_files(*chosen: str) -> tuple[dict[str, Any], dict[str, str]] | None:
    """What `_by_hydra` returns. None if the files have more of Hydra's words than `_option` reads."""
    defaults = _default_options()
    if defaults is None:
        return None
    names = {group: name or defaults[group] for group, name in zip(GROUPS, chosen, strict=True)}
    try:
        return {group: _option(group, name) for group, name in names.items()}, names
    except Exception:  # Hydra has the words for it
        return None


def _by_hydra(*chosen: str) -> tuple[dict[str, Any], dict[str, str]]:
    """What Hydra composes, and the name that each group has. It needs a tenth of a second."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    words = [f"{group}={name}" for group, name in zip(GROUPS, chosen, strict=True) if name]
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        composed = hydra.compose("config", words, return_hydra_config=True)
        choices = {group: composed.hydra.runtime.choices[group] for group in GROUPS}
    plain: Any = OmegaConf.to_container(composed, resolve=False)
    plain.pop("hydra")
    return plain, choices
