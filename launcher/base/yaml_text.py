"""YAML of a user: plain values as YAML 1.2 reads them, the line of each, and limits against files that take all memory.

PyYAML reads YAML 1.1, where `no` is false, `012` is 10, `1:30` is 90 and `1e-4` is text. What both versions read alike
is taken; what they read differently is an error with its line, except for numbers like 1e-4 and dates, which can be
meant in one way only.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable
from typing import Any

import yaml

from trainer.base.brief import in_brief

KeyPath = tuple[str | int, ...]
MOST_BYTES = 2**20
MOST_VALUES = 100_000
"""With the values that aliases repeat."""
DEEPEST = 32
_TAG = "tag:yaml.org,2002:"
_AMBIGUOUS = "!ambiguous"
_UNREADABLE = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError)
"""Errors that PyYAML raises for bad text."""
_WORDS = re.compile(r"(yes|Yes|YES|on|On|ON)|(no|No|NO|off|Off|OFF)")
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*|[1-9][0-9]{0,2}(_[0-9]{3})+|0x[0-9a-fA-F]+)")
_ZEROS = re.compile(r"[-+]?0o?[0-9]+")
_BINARY = re.compile(r"[-+]?0b[01_]+")
_SIXTIES = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
_UNDERSCORES = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?|0x[0-9a-fA-F_]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_LONGEST_NUMBER = 1000
"""Characters. Python refuses to read more than 4,300 digits."""


class YamlError(ValueError):
    """The text cannot be used. `faults` are its lines (from 1), each with what is wrong there."""

    def __init__(self, *faults: tuple[int, str]) -> None:
        super().__init__("; ".join(text for _, text in faults))
        self.faults = faults


def read(text: str) -> tuple[Any, dict[KeyPath, int]]:
    """The plain values of a document, and the line of every key and item by its path; (None, {}) if it is empty. Keys
    are always text. Raises YamlError."""
    try:
        _check_size(text)
        node = _composed(text)
        if node is None:
            return None, {}
        lines: dict[KeyPath, int] = {}
        faults: list[tuple[int, str]] = []
        _walk(node, (), lines, faults)
        if faults:
            raise YamlError(*sorted(dict.fromkeys(faults)))
        return _Loader("").construct_document(node), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise YamlError((line, f"not YAML: {' '.join(str(error.problem or error.context).split())}")) from None
    except YamlError:
        raise
    except _UNREADABLE as error:
        line = text[: getattr(error, "position", 0)].count("\n") + 1  # for a character that YAML does not allow
        raise YamlError((line, f"not YAML: {in_brief(str(error), 200)}")) from None


def _composed(text: str) -> yaml.Node | None:
    """The document's nodes, by the faster parser. Its errors are not used: see `_check_size`."""
    if _FastLoader is not None:
        with contextlib.suppress(yaml.YAMLError):
            return yaml.compose(text, Loader=_FastLoader)
    return yaml.compose(text, Loader=_Loader)


def _check_size(text: str) -> None:
    """See `_count`. libyaml, where PyYAML has it, is ten times faster; PyYAML's own parser has the better messages."""
    if len(text) > MOST_BYTES:
        raise YamlError((text.count("\n", 0, MOST_BYTES) + 1, f"larger than {MOST_BYTES // 2**20} MiB"))
    try:
        _count(yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", _Loader)))
    except yaml.YAMLError:
        _count(yaml.parse(text, Loader=_Loader))


def _count(events: Iterable[yaml.Event]) -> None:
    """Count the values that the document has when all its aliases are followed, and their depth, from its events alone:
    ten lines of aliases can name a billion values. Raises YamlError, yaml.YAMLError."""
    sizes: dict[str, tuple[int, int]] = {}
    """Of each anchor: the number of values, and their depth."""
    opened: list[tuple[str | None, int]] = []
    values, deepest = 0, [0]
    for event in events:
        assert event.start_mark is not None
        line = event.start_mark.line + 1
        if (tag := getattr(event, "tag", None)) not in (None, "!", f"{_TAG}str"):
            raise YamlError((line, f"the tag {str(tag).replace(_TAG, '!!')} is not allowed: write plain values"))
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                inside = any(anchor == event.anchor for anchor, _ in opened)
                fault = "an anchor that contains itself" if inside else f"there is no anchor &{event.anchor}"
                raise YamlError((line, fault))
            count, depth = sizes[event.anchor]
            values += count
            deepest[-1] = max(deepest[-1], depth)
        elif isinstance(event, yaml.ScalarEvent):
            values += 1
            if event.anchor:
                sizes[event.anchor] = (1, 0)
        elif isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, values))
            values += 1
            deepest.append(0)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            depth = deepest.pop() + 1
            deepest[-1] = max(deepest[-1], depth)
            if anchor:
                sizes[anchor] = (values - before, depth)
        if values > MOST_VALUES:
            aliases = ", with those that aliases (*) repeat" if sizes else ""
            raise YamlError((line, f"more than {MOST_VALUES:,} values{aliases}"))
        if len(opened) + deepest[-1] > DEEPEST:
            raise YamlError((line, f"nested too deeply: more than {DEEPEST} levels"))


class _Scalars:
    """The scalars of YAML 1.2, for a loader."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        """The tag of a value without one."""
        if kind is yaml.ScalarNode and implicit[0]:
            return _tag_of(value)
        return super().resolve(kind, value, implicit)  # type: ignore[misc, no-any-return]


class _Loader(_Scalars, yaml.SafeLoader):
    """PyYAML's own loader."""


_FastLoader: Any = None
if hasattr(yaml, "CSafeLoader"):

    class _LibyamlLoader(_Scalars, yaml.CSafeLoader):
        """libyaml's parser."""

    _FastLoader = _LibyamlLoader


def _tag_of(text: str) -> str:
    if text in ("", "~", "null", "Null", "NULL"):
        return f"{_TAG}null"
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return f"{_TAG}bool"
    if text == "<<":
        return f"{_TAG}merge"
    if text[0] in "-+.0123456789":
        if _INTEGER.fullmatch(text):
            return f"{_TAG}int"
        if any(pattern.fullmatch(text) for pattern in (_ZEROS, _BINARY, _SIXTIES)):
            return _AMBIGUOUS
        if _FLOAT.fullmatch(text):
            return f"{_TAG}float"
        if "_" in text and _UNDERSCORES.fullmatch(text):
            return _AMBIGUOUS
    return _AMBIGUOUS if _WORDS.fullmatch(text) else f"{_TAG}str"


def _ambiguity(text: str) -> str:
    """Why a value is ambiguous, and what to write instead."""
    quoted = f'"{text}" in quotes for the text'
    if match := _WORDS.fullmatch(text):
        word = "true" if match[1] else "false"
        return f"{text} is true or false to some programs, and text to others: write {word}, or {quoted}"
    if _SIXTIES.fullmatch(text):
        return f"{text} is a number in base 60 to some programs: write a number, a time like 90s or 1h30m, or {quoted}"
    sign, digits = ("-" if text[0] == "-" else ""), text.lstrip("+-").replace("_", "")
    base = {"0o": 8, "0b": 2}.get(digits[:2])
    if base is not None and re.fullmatch(r"0o[0-7]+|0b[01]+", digits):
        digits = str(int(digits, base))
    number = sign + (digits if digits[:2] == "0x" else digits.lstrip("0") or "0")
    return f"{text} is not the same number to all programs: write {number}, or {quoted}"


def _wrong(node: yaml.ScalarNode) -> str | None:
    """What is wrong with a scalar; None if nothing."""
    text = node.value
    if node.tag == _AMBIGUOUS:
        return _ambiguity(text)
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "a character that is only half of one (\\uD800 to \\uDFFF)"
    if node.tag in (f"{_TAG}int", f"{_TAG}float"):
        if len(text) > _LONGEST_NUMBER:
            return f"a number of {len(text)} characters"
        if node.tag.endswith("float") and text[-1].isdigit() and math.isinf(float(text)):
            return f"{text}: too large for a number"
    return None


def _walk(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], faults: list[tuple[int, str]]) -> None:
    line = node.start_mark.line + 1
    lines.setdefault(path, line)
    if isinstance(node, yaml.ScalarNode):
        if node.tag == f"{_TAG}merge":
            node.tag = f"{_TAG}str"
        if fault := _wrong(node):
            faults.append((line, fault))
        return
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _walk(item, (*path, index), lines, faults)
    elif isinstance(node, yaml.MappingNode):
        keys: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or not key.value.isprintable():
                faults.append((line, "a key must be a plain word"))
                continue
            merges = key.tag == f"{_TAG}merge"
            if not merges:
                key.tag = f"{_TAG}str"
                if fault := _wrong(key):
                    faults.append((line, fault))
            if key.value in keys and not merges:
                faults.append((line, f"'{key.value}' is already in line {keys[key.value]}"))
            keys[key.value] = line
            lines[(*path, key.value)] = line
            _walk(value, (*path, key.value), lines, faults)
