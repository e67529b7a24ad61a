"""The job file's JSON schema, for editors: what the launcher refuses for its form alone, the schema refuses, too.

It says more than the fields' types: the trainer's keys below `matrix`, `include`, `exclude` and `overrides`, and the
options of steps. It cannot say what joins several fields, for example that a step needs one that is there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from launcher.job import folds
from launcher.job.schema import JobSpec, SectionSpec, any_case, with_sections
from launcher.job.spec import ARG_NUMBERS, ARG_WORDS, PRIORITY, STEP_ARGS
from trainer.base.files import json_text
from trainer.base.names import OPTIMISED
from trainer.config import check, keys

DIALECT = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]
_REFERENCE: Schema = {"type": "string", "pattern": r"\$\{"}
"""A value that names another one: `${data.img_size}`."""
_NULL: Schema = {"type": "string", "pattern": f"^{any_case('null')}$"}
_LISTS = "data.train_transforms", "data.val_transforms"


class _Untitled(GenerateJsonSchema):
    """pydantic's titles say what the fields' names say."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """See pydantic."""
        return False


def job_schema(sections: Mapping[str, type[SectionSpec]]) -> Schema:
    """The schema of a job file with these sections of engines."""
    made = with_sections(sections).model_json_schema(by_alias=True, schema_generator=_Untitled)
    definitions: Schema = made.pop("$defs")
    for part in definitions.values():
        part.pop("title", None)
    _complete_step(definitions["StepSpec"])
    values = {key: _value(key, kind, text) for key, kind, text in keys.describe()}
    groups = {name: _group(name) for name in keys.GROUPS}
    definitions |= {"transform": _transform(), **groups, **values}
    fields: Schema = made["properties"]
    known = [*groups, *values]
    single = _mapping({key: _at(key) for key in known}, True)
    whole = {"type": "integer", "minimum": -100, "maximum": 100, "description": "higher starts first; the default is 0"}
    included = _mapping({key: _at(key) for key in known} | {PRIORITY: whole}, True)
    axes = {key: {"type": "array", "minItems": 1, "items": _at(key)} for key in known}
    axes[folds.AXIS] = {"anyOf": [{"const": folds.ALL}, axes[folds.AXIS]]}
    described = {key: {"description": definitions[key]["description"], **axis} for key, axis in axes.items()}
    fields["overrides"] |= single
    fields["matrix"] |= _mapping(described, {"type": "array", "minItems": 1})
    definitions |= {"combination": single, "included": included}
    fields["exclude"]["items"], fields["include"]["items"] = _at("combination"), _at("included")
    return {
        "$schema": DIALECT,
        "title": "job file",
        "description": JobSpec.__doc__,
        **{key: value for key, value in made.items() if key not in ("title", "description")},
        "$defs": definitions,
    }


def as_text(value: Any, indent: int = 0) -> str:
    """JSON with everything in one line that has room there: a schema is long, and people read its changes."""
    line = json_text(value)
    if indent + len(line) <= 116 or not (value and isinstance(value, dict | list)):
        return line
    inner = " " * (indent + 2)
    if isinstance(value, list):
        parts, ends = [as_text(item, indent + 2) for item in value], "[]"
    else:
        named = [(f"{json_text(key)}: ", item) for key, item in value.items()]
        parts, ends = [key + as_text(item, indent + 2) for key, item in named], "{}"
    return f"{ends[0]}\n{inner}" + f",\n{inner}".join(parts) + f"\n{' ' * indent}{ends[1]}"


def _at(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def _mapping(properties: Schema, of_step: Schema | bool) -> Schema:
    """A mapping with these keys, and keys of one step of a list of transforms, whose values are `of_step`."""
    steps = rf"^({'|'.join(name.replace('.', r'[.]') for name in _LISTS)})[.]"
    return {
        "type": "object",
        "properties": properties,
        "patternProperties": {steps: of_step},
        "additionalProperties": False,
    }


def _group(name: str) -> Schema:
    return {"description": f"the {name} configuration", "enum": list(keys.option_names(name))}


def _value(key: str, kind: str, text: str) -> Schema:
    """The value of a key of the configuration, as YAML has it or as text that the trainer reads as such a value."""
    plain, _, optional = kind.partition(" | ")
    of_type = [*_of_type(key, plain), _REFERENCE]
    return {"description": text, "anyOf": [*of_type, {"type": "null"}, _NULL] if optional else of_type}


def _of_type(key: str, plain: str) -> list[Schema]:
    if key in check.choices():
        return [{"enum": list(check.choices()[key])}]
    if plain.startswith("list"):
        return [{"type": "array", "items": _at("transform")} if key in _LISTS else {"type": "array"}]
    if plain == "bool":
        words = any_case("true|false|yes|no|on|off|y|n")
        return [{"type": ["boolean", "integer"]}, {"type": "string", "pattern": rf"^(\s*[-+]?\d[\d_]*\s*|{words})$"}]
    if plain == "int":
        text: Schema = {"type": "string", "pattern": r"^\s*[-+]?\d[\d_]*\s*$"}
        return [{"type": "integer", **_range(key)}, text]
    if plain == "float":
        text = {"type": "string", "pattern": r"^\s*[-+]?[\d_]*\.?[\d_]*([eE][-+]?[\d_]+)?\s*$"}
        return [{"type": "number", **_range(key)}, text]
    return [{"type": ["string", "number", "boolean"]}]


def _range(key: str) -> Schema:
    low, high, closed = check.RANGES.get(key, (-math.inf, math.inf, True))
    names = ("minimum", "maximum") if closed else ("exclusiveMinimum", "exclusiveMaximum")
    return {name: end for name, end in zip(names, (low, high), strict=True) if math.isfinite(end)}


def _transform() -> Schema:
    """A step of a list of transforms: its name, or its name with its arguments."""
    named: dict[str, Schema] = {
        name: {"type": ["object", "null"], "properties": dict.fromkeys(arguments, True), "additionalProperties": False}
        for name, arguments in check.transforms().items()
    }
    for arguments in named.values():
        if "p" in arguments["properties"]:
            probability = {"type": "number", "minimum": 0, "maximum": 1}
            arguments["properties"]["p"] = {"anyOf": [probability, {"type": ["boolean", "null"]}, _REFERENCE]}
    with_arguments = {
        "type": "object", "properties": named, "additionalProperties": False, "minProperties": 1, "maxProperties": 1
    }  # fmt: skip
    return {"anyOf": [{"enum": list(named)}, _REFERENCE, with_arguments]}


def _complete_step(step: Schema) -> None:
    """Add the options of each step, and that it has an input."""
    branches = []
    for name, options in STEP_ARGS.items():
        args = {"properties": {option: _argument(option) for option in options}, "additionalProperties": False}
        then: Schema = {"properties": {"args": args}}
        if name == "ensemble":
            then |= {"required": ["from"], "properties": {"args": args, "from": {"type": "object"}}}
        branches.append({"if": {"properties": {"step": {"const": name}}}, "then": then})
    has_from = {"required": ["from"], "properties": {"from": {"type": "object"}}}
    has_needs = {"required": ["needs"], "properties": {"needs": {"minItems": 1}}}
    step["allOf"] = [{"anyOf": [has_from, has_needs]}, *branches]


def _argument(option: str) -> Schema:
    if option in ARG_NUMBERS:
        low, high = ARG_NUMBERS[option]
        return {"type": "integer", "minimum": low, "maximum": high}
    words: Schema = {"enum": list(ARG_WORDS[option])}
    if option != "weights":
        return words
    weight = {"type": "number", "minimum": 0}
    numbers = [{"type": "number", "exclusiveMinimum": 0}, {"type": "array", "minItems": 1, "items": weight}]
    return {"anyOf": [words, *numbers, {"const": OPTIMISED, "deprecated": True}]}
