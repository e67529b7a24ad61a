"""Compose and check the typed configuration with Hydra. Does not import torch.

The user chooses a name for each of three groups (`model`, `data`, `training`). Every other key is a dotted override
such as `training.batch_size=32`. Trainer and launcher call `compose`.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from typing import Any

from trainer.base.brief import in_brief
from trainer.base.errors import ConfigError, nearest
from trainer.config.check import check, check_rest
from trainer.config.keys import GROUPS, OTHER_WORDS, keys, model_names, option_names
from trainer.config.merge import Value, merged
from trainer.config.plain import copied
from trainer.config.schema import Config


def compose(overrides: Sequence[str] = (), command: str = "train") -> Config:
    """The checked configuration of `overrides` (Hydra's grammar: `group=name`, `dotted.key=value`).

    Messages name `command`; it has no other use.

    Raises ConfigError with all errors, one per line, each with the nearest valid name.
    """
    config: Config = copied(compose_shared(overrides, command))
    return config


def compose_shared(overrides: Sequence[str] = (), command: str = "train") -> Config:
    """The same for thousands of configurations, which share what is equal. Do not change the result."""
    faults: list[str] = []
    groups: dict[str, str] = {}
    values: list[Value] = []
    if not all("=" in text for text in overrides):
        from trainer.config.words import misspelt

        faults, overrides = misspelt(overrides)
    for text in overrides:
        try:
            each = _override(text, command)
        except ConfigError as error:
            faults.append(str(error))
            continue
        if each.key in GROUPS:
            groups[each.key] = each.value
        else:
            values.append(each)
    chosen = tuple(groups.get(group, "") for group in GROUPS)
    if faults:
        raise ConfigError("\n".join([*faults, *_further(chosen, values, faults)]))
    try:
        config = merged(chosen, values)
    except ConfigError as error:
        lines = str(error).split("\n")
        right = [value for value in values if not any(line.startswith(f"{value.text}: ") for line in lines)]
        more = _further(chosen, right, lines) if len(right) < len(values) else []
        raise ConfigError("\n".join([*lines, *more])) from None
    if config.model.name != model_names().get(config.choices["model"]):
        config.choices["model"] = config.model.name  # records name the model that trains, not the group it began with
    sections = (id(config.model), id(config.data), id(config.training), config.choices["training"])
    faults = check_rest(config) if sections in _SOUND else check(config)
    if faults:
        raise ConfigError("\n".join(faults))
    if len(_SOUND) < MOST_KNOWN:
        _SOUND.setdefault(sections, config)
    return config


def own_transforms(config: Config) -> dict[str, list[Any]]:
    """train_transforms and val_transforms, if they are other than those of the data group."""
    group = compose([f"data={config.choices['data']}", f"data.img_size={config.data.img_size}"]).data
    lists = {"train_transforms": config.data.train_transforms, "val_transforms": config.data.val_transforms}
    return {name: entries for name, entries in lists.items() if entries != getattr(group, name)}


def _further(chosen: tuple[str, ...], values: Sequence[Value], faults: Sequence[str]) -> list[str]:
    """The errors of the values that can be set, beside the `faults` of the others. Without those that may follow from
    a fault, since they name its key or a value that nobody has given."""
    wrong = {fault.partition("=")[0].partition(":")[0] for fault in faults}
    right = [value for value in values if value.key not in wrong]
    given, lines = {value.key for value in right}, []
    try:
        lines = check(merged(chosen, right))
    except ConfigError as error:
        lines = str(error).split("\n")
        rest = [value for value in right if not any(line.startswith(f"{value.text}: ") for line in lines)]
        lines += _further(chosen, rest, [*faults, *lines]) if len(rest) < len(right) else []
    return [line for line in lines if (named := set(re.findall(_KEY, line))) and named <= given]


_KEY = re.compile(r"(?<![\w.])([a-z_]+(?:\.\w+)*)(?==)")
"""A key in a message."""
MOST_KNOWN = 10_000
_SOUND: dict[tuple[int | str, ...], Config] = {}
"""Configurations whose sections together have no error, by the identities of the sections, which live as long."""


@functools.cache
def _override(text: str, command: str) -> Value:
    """An override whose key exists. Raises ConfigError."""
    key, value = parse(text, command)
    if key in GROUPS:
        if value not in option_names(key):
            hint = nearest(str(value), option_names(key))
            more = " (any timm model: model.name=…)" if key == "model" else ""
            raise ConfigError(f"{text}: unknown {key} '{value}'; {hint}{more}")
    else:
        _check_key(text, key)
    return Value(text, key, value)


DEEPEST = 32
"""Most brackets in each other in an override."""


@functools.cache
def parse(text: str, command: str = "train") -> tuple[str, Any]:
    """Key and value of an override in Hydra's grammar. Raises ConfigError; the message names `command`."""
    if plain := _PLAIN.fullmatch(text):  # Hydra takes a fifth of a second for its import, and a millisecond for each
        return plain["key"], _plain_value(plain)
    from hydra.core.override_parser.types import OverrideType
    from hydra.errors import HydraException

    if text.startswith("-"):
        raise ConfigError(f"{text}: unknown option; `python -m trainer {command}` takes key=value")
    if "=" not in text:
        raise ConfigError(f"{text}: the value is missing; write {text}=VALUE")
    if _depth(text) > DEEPEST:
        raise ConfigError(f"{in_brief(text, 60)}: nested too deeply: more than {DEEPEST} brackets in each other")
    try:
        override = _hydra_parser().parse_override(text)
    except HydraException:
        raise ConfigError(f"{text}: cannot be parsed: {_how_to_write(text)}") from None
    except ValueError as error:  # a number of thousands of digits
        raise ConfigError(f"{in_brief(text, 60)}: cannot be parsed: {str(error).partition(';')[0]}") from None
    if override.type is not OverrideType.CHANGE or override.package:
        raise ConfigError(f"{text}: keys cannot be added, removed or moved; write key=value")
    if override.is_sweep_override() and re.search(r"\w\(", text):
        raise ConfigError(f"{text}: write the values themselves, separated by commas; each is a run of its own")
    if override.is_sweep_override():
        raise ConfigError(f"{text}: several values need several runs; start them with `launcher submit {text}`")
    return override.key_or_group, override.value()


def _how_to_write(text: str) -> str:
    """What an override that Hydra's grammar does not take lacks."""
    key, _, value = text.partition("=")
    if value[:1] in ("[", "{", "'", '"'):
        return "a bracket, a comma or a quotation mark is missing, or one is too much"
    quoted = value.replace("'", "\\'")
    return f"this value needs quotation marks, and the shell takes away the outer ones: \"{key}='{quoted}'\""


def _depth(text: str) -> int:
    """How many brackets stand in each other outside quotes. Hydra's parser needs seconds for thousands of them."""
    depth = deepest = 0
    quote = ""
    for character in re.findall(r"\\.|['\"\[\](){}]", text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "[({":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "])}":
            depth -= 1
    return deepest


_INTEGER = "(?:0|[1-9][0-9]{0,17})"
_PLAIN = re.compile(
    r"(?P<key>[a-z_]+(?:\.[a-z_]+)*)=(?:"
    rf"(?P<whole>{_INTEGER})|(?P<real>{_INTEGER}(?:\.[0-9]{{1,17}})?(?:e-?[0-9]{{1,2}})?)|(?P<word>[A-Za-z_][\w-]*))",
    re.ASCII,
)
"""A key, and a whole number, another number or a word. Hydra's parser reads these the same way."""
_WORDS = {"null": None, "true": True, "false": False, "nan": math.nan, "inf": math.inf}


def _plain_value(plain: re.Match[str]) -> Any:
    if plain["whole"]:
        return int(plain["whole"])
    return float(plain["real"]) if plain["real"] else _WORDS.get(plain["word"].lower(), plain["word"])


@functools.cache
def _hydra_parser() -> Any:
    """One parser for all calls: it has no state."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create()


def _check_key(text: str, key: str) -> None:
    known = keys()
    if key == "choices" or key.startswith("choices."):
        raise ConfigError(f"{text}: the trainer sets choices; use model=NAME, data=NAME or training=NAME")
    if key in known or key.startswith(("data.train_transforms.", "data.val_transforms.")):
        return
    import difflib

    leaf = key.rsplit(".", 1)[-1]
    like = difflib.get_close_matches(leaf, OTHER_WORDS, n=1, cutoff=0.85)
    leaf = OTHER_WORDS[like[0]] if like else leaf
    same_leaf = [name for name in known if name.rsplit(".", 1)[-1] == leaf]
    hint = f"did you mean '{same_leaf[0]}'?" if same_leaf else nearest(key, [*known, *GROUPS])
    raise ConfigError(f"{text}: unknown key '{key}'; {hint}")
