"""Reads and checks a job. Reports every error at once, with file, line and the most similar valid name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from launcher.base.errors import JobError
from launcher.job import folds
from launcher.job.document import COMMAND_LINE, MOST_FAULTS, Document, assign, in_order, parse_bytes, read_bytes
from launcher.job.matrix import MOST_STEPS
from launcher.job.schema import NAME, FromSpec, JobSpec, ResourcesSpec, RetrySpec, SectionSpec, StepSpec, with_sections
from trainer.base.errors import nearest
from trainer.base.files import to_bytes
from trainer.base.names import METHODS, OPTIMISED, VIEWS, WEIGHTS
from trainer.config import check

ARG_WORDS = {
    "method": METHODS,
    "tta": VIEWS,
    "weights": WEIGHTS,
    "device": check.choices()["device"],
    "precision": check.choices()["training.precision"],
}
"""Options of the steps. They are checked here, so that an error shows before hours of training and not after."""
ARG_NUMBERS = {"batch_size": (1, 65_536), "num_workers": (0, 256)}
MATRIX_FIELDS = {"matrix", "exclude", "include", "overrides"}
PRIORITY = "priority"
"""Key in entries of include: for the scheduler, not a setting of the run."""
PRIORITY_HINT = "set it in an entry of include, like {model: resnet34, priority: 10}"
STEP_ARGS = {
    "ensemble": ("method", "weights", "tta", "batch_size", "num_workers", "device", "precision"),
    "predict": ("tta", "batch_size", "num_workers", "device", "precision"),
    "analyze": (),
}


Sections = Mapping[str, type[SectionSpec]]
"""The engines' sections of the job file, by their names."""
NO_SECTIONS: Sections = {}


class Job:
    """A checked job with its document (for places in messages) and the words of the command line.

    A `key=value` word replaces the axis `key` of the matrix if there is one. `key=a,b` is always an axis. Every other
    word is an override of all runs.
    """

    def __init__(
        self, spec: JobSpec, document: Document, words: Sequence[str] = (), source: bytes = b"",
        sections: Sections = NO_SECTIONS,
    ) -> None:  # fmt: skip
        self.axes: dict[str, list[str]] = {}
        self.overrides: list[str] = []
        for word in words:
            key, _, text = word.partition("=")
            values = split_values(text)
            if key in spec.matrix or len(values) > 1:
                self.axes[key] = values
            else:
                self.overrides.append(word)
        self.matrix: dict[str, list[Any]] = {**spec.matrix, **self.axes}
        self.spec = spec
        self.sections = sections
        self.document = document
        self.source = source
        """The job file, byte for byte."""

    def section(self, engine: str) -> SectionSpec | None:
        """The job's section for this engine; None if the engine has no section."""
        section: SectionSpec | None = getattr(self.spec, engine, None) if engine in self.sections else None
        return section


def load(
    path: Path, overrides: Sequence[str] = (), settings: Sequence[str] = (), source: bytes | None = None,
    sections: Sections = NO_SECTIONS,
) -> Job:  # fmt: skip
    """The job in a file; `settings` are `path=value` of --set. Raises JobError with every error.

    `source` is the file's content if the file is on another machine and `path` is only its name. `sections` are the
    engines' sections.
    """
    source = read_bytes(path) if source is None else source
    document = parse_bytes(source, str(path))
    for setting in settings:
        document = assign(document, setting)
    if "name" not in document.content and NAME.fullmatch(path.stem):
        document.content["name"] = path.stem
    document, overrides = folds.spread(document, overrides)
    return _job(document, overrides, source, sections)


def from_overrides(words: Sequence[str], settings: Sequence[str] = (), sections: Sections = NO_SECTIONS) -> Job:
    """The job of `key=value` words; `a,b` is an axis of the matrix. Raises JobError."""
    import yaml

    typed = words
    for position, word in enumerate(words):
        key, separator, _ = word.partition("=")
        if not separator:
            hint = "for example jobs/quickstart.yaml or model=resnet34"
            raise JobError(f"{word}: not a job file and not key=value; {hint}")
        if key in [other.partition("=")[0] for other in words[:position]]:
            raise JobError(f"{word}: '{key}' is given twice")
    _, words = folds.spread(Document(COMMAND_LINE, {}), words)
    axes = {
        key: values for key, _, text in (word.partition("=") for word in words) if len(values := split_values(text)) > 1
    }
    document = Document(COMMAND_LINE, {"name": "multirun" if axes else "run"})
    for setting in settings:
        document = assign(document, setting)
    single = dict(word.split("=", 1) for word in words if word.partition("=")[0] not in axes)
    text = yaml.safe_dump({**document.content, "matrix": axes, "overrides": single}, sort_keys=False)
    source = to_bytes(f"# launcher submit {' '.join(typed)}\n{text}")
    return _job(document, words, source, sections)


def _job(document: Document, words: Sequence[str], source: bytes, sections: Sections) -> Job:
    try:
        return Job(_validate(document, sections), document, words, source, sections)
    except JobError as error:
        sound = Job(error.sound, document, words, source, sections) if error.sound is not None else None
        raise JobError(str(error), sound) from None


def split_values(text: str) -> list[str]:
    """`a,b` → [a, b]; commas inside brackets, braces, parentheses or quotes do not separate."""
    values, depth, quote, start = [], 0, "", 0
    for position, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "[{(":
            depth += 1
        elif character in "]})":
            depth -= 1
        elif character == "," and depth == 0:
            values.append(text[start:position])
            start = position + 1
    return [value.strip() for value in [*values, text[start:]]]


def _validate(document: Document, sections: Sections = NO_SECTIONS) -> JobSpec:
    """The validated job. Raises JobError with the errors of all fields, and the valid part as a JobSpec."""
    model = with_sections(sections)
    after = document.content.get("after")
    if isinstance(after, list) and len(after) > MOST_STEPS:  # each of their errors would take time
        raise JobError(f"{document.place(('after',))}: after: {len(after):,} steps; a job has at most {MOST_STEPS:,}")
    errors: list[str] = []
    wrong: set[str] = set()
    try:
        spec: JobSpec | None = model.model_validate(document.content)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        wrong = {str(problem["loc"][0]) for problem in problems if problem["loc"]}
        shown = _joined(document, problems[:MOST_FAULTS])
        errors = [_error_text(document, problem, model) for problem in shown]
        spec = _without(document, wrong, model)
    except RecursionError:
        raise JobError(f"{document.path}: nested too deeply") from None
    if spec is not None and (broken := list(islice(_rules(spec, sections), MOST_FAULTS))):
        errors += [f"{document.place(path)}: {text}" for path, text in broken]
        wrong |= {str(path[0]) for path, _ in broken}
        # If some were not looked for, nobody knows which fields are valid.
        spec = _without(document, wrong, model) if len(broken) < MOST_FAULTS else None
    if errors:
        raise JobError(in_order(errors), spec)
    assert spec is not None
    return spec


def _without(document: Document, wrong: set[str], model: type[JobSpec]) -> JobSpec | None:
    """The job without the `wrong` fields. None if they belong to the matrix: without one of its fields it would be
    another matrix, and further errors would mislead."""
    if len(wrong) > MOST_FAULTS:
        return None
    for name in wrong - model.model_fields.keys():  # an unknown field may be a misspelt field of the matrix
        meant = difflib.get_close_matches(name.lower(), model.model_fields, n=1, cutoff=0.6)
        if not meant or meant[0] in MATRIX_FIELDS:
            return None
    if wrong & MATRIX_FIELDS:
        return None
    try:
        return model.model_validate({key: value for key, value in document.content.items() if key not in wrong})
    except ValidationError:  # an error of the whole job, not of a field
        return None


def _joined(document: Document, problems: Sequence[Any]) -> list[dict[str, Any]]:
    """The problems, with those of the branches of one field (like `int | "auto"`) joined to one."""
    fields: dict[tuple[str | int, ...], list[Any]] = {}
    for problem in problems:
        path = _path(document, problem)
        at = path if len(path) < len(problem["loc"]) else tuple(problem["loc"])
        fields.setdefault(at, []).append(problem)
    joined: list[dict[str, Any]] = []
    for same in fields.values():
        words = [word for p in same if p["type"] == "literal_error" for word in re.findall(r"'([^']*)'", p["msg"])]
        others = [p for p in same if p["type"] != "literal_error"]
        if len(same) > 1 and len(others) == 1 and words:
            joined.append({**others[0], "msg": f"{_must_be(others[0])}, or {' or '.join(words)}", "type": JOINED})
        else:
            joined += same
    return joined


def _path(document: Document, problem: Any) -> tuple[str | int, ...]:
    # Pydantic puts the branch of a union into the location; keep only keys that are in the file.
    path: list[str | int] = []
    for part in problem["loc"]:
        here = document.content if not path else _at(document.content, path)
        stands = part in here if isinstance(here, dict) else isinstance(here, list) and isinstance(part, int)
        if stands or (problem["type"] == "missing" and part == problem["loc"][-1]):
            path.append(part)
    return tuple(path)


def _error_text(document: Document, problem: Any, model: type[JobSpec]) -> str:
    path = _path(document, problem)
    field = ".".join(map(str, path)) or "the job"
    place = document.place(path)
    kind, message = problem["type"], problem["msg"]
    if kind == "extra_forbidden":
        if path[-1] == PRIORITY:
            return f"{place}: {field}: {PRIORITY_HINT}"
        return f"{place}: {field}: unknown field; {nearest(str(path[-1]), _fields_beside(path, model))}"
    if kind == "missing":
        return f"{place}: {field}: is missing"
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", message)
        value = problem["input"]
        return f"{place}: {field}: {value!r} is not allowed; {nearest(str(value), allowed)}"
    message = message.removeprefix("Value error, ") if kind in ("value_error", JOINED) else _must_be(problem)
    return f"{place}: {field}: {message}" + ("" if kind == "value_error" else f", not {_short(problem['input'])}")


JOINED = "joined"
"""Type of a problem of a field of several types."""
_TYPES = {
    "int": "must be a whole number",
    "float": "must be a number",
    "finite": "must be a finite number",
    "bool": "must be true or false",
    "string": "must be a text",
    "list": "must be a list",
    "dict": "must be a mapping",
    "model": "must be a mapping",
}
_BOUNDS = {
    "greater_than": ("gt", "must be more than"),
    "greater_than_equal": ("ge", "must be at least"),
    "less_than": ("lt", "must be less than"),
    "less_than_equal": ("le", "must be at most"),
}


def _must_be(problem: Any) -> str:
    """A problem of pydantic in our words."""
    kind, message = str(problem["type"]), str(problem["msg"])
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"{words} {problem['ctx'][name]:g}"
    said = _TYPES.get(kind.partition("_")[0])
    return said or message.removeprefix("Value error, ").removeprefix("Input ").partition(", unable to")[0]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _at(content: Any, path: Sequence[str | int]) -> Any:
    for part in path:
        content = content[part]
    return content


def _fields_beside(path: Sequence[str | int], job: type[JobSpec]) -> list[str]:
    models: dict[str, type[BaseModel]] = {
        "resources": ResourcesSpec,
        "retry": RetrySpec,
        "from": FromSpec,
        "after": StepSpec,
    }
    parents = [str(part) for part in path[:-1] if isinstance(part, str)]
    for name, field in job.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, SectionSpec):
            models[name] = field.annotation
    model = models.get(parents[-1], job) if parents else job
    return [field.alias or name for name, field in model.model_fields.items()]


def _rules(spec: JobSpec, sections: Sections) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Errors that the fields' types cannot express: names that refer to each other, options of steps."""
    names = [step.name for step in spec.after]
    first = {name: index for index, name in reversed([*enumerate(names)])}
    for index, step in enumerate(spec.after):
        at: tuple[str | int, ...] = ("after", index)
        if first[step.name] < index:
            yield (*at, "name"), f"after.{index}.name: another step has the name '{step.name}'"
        for need in step.needs:
            if need == step.name or need not in first:
                yield (*at, "needs"), f"after.{index}.needs: no step '{need}'; {nearest(need, names)}"
            elif first[need] > index:
                yield (*at, "needs"), f"after.{index}.needs: '{need}' comes later; move it before this step"
        if step.from_ is None and not step.needs:
            yield at, f"after.{index}: step '{step.name}' has no input; write from: {{top: 1}} or needs: [step]"
        if step.step == "ensemble" and step.from_ is None:
            yield at, f"after.{index}: an ensemble needs training runs; write from: {{top: 3}} or {{runs: [names]}}"
        for key, value in step.args.items():
            where = (*at, "args", key)
            if key not in STEP_ARGS[step.step]:
                hint = nearest(key, STEP_ARGS[step.step]) if STEP_ARGS[step.step] else "it has no options"
                yield where, f"after.{index}.args.{key}: unknown option of {step.step}; {hint}"
            elif key in ARG_WORDS and value not in ARG_WORDS[key] and not (key == "weights" and _has_weights(value)):
                hint = nearest(str(value), ARG_WORDS[key]) + (", or one number per member" if key == "weights" else "")
                yield where, f"after.{index}.args.{key}: {value!r} is not allowed; {hint}"
            elif key in ARG_NUMBERS and not _is_whole(value, *ARG_NUMBERS[key]):
                low, high = ARG_NUMBERS[key]
                text = f"must be a whole number from {low} to {high}, not {_short(value)}"
                yield where, f"after.{index}.args.{key}: {text}"
    for key, values in (("matrix", spec.matrix), ("overrides", spec.overrides)):
        if PRIORITY in values:
            yield (key, PRIORITY), f"{key}.{PRIORITY}: {PRIORITY_HINT}"
    for index, entry in enumerate(spec.include):
        value = entry.get(PRIORITY, 0)
        if isinstance(value, bool) or not isinstance(value, int) or abs(value) > 100:
            text = f"must be a whole number from -100 to 100, not {_short(value)}"
            yield ("include", index, PRIORITY), f"include.{index}.{PRIORITY}: {text}"
    for name in sections:
        section: SectionSpec = getattr(spec, name)
        yield from (((name, key), f"{name}.{key}: {text}") for key, text in section.errors())
    for index, entry in enumerate(spec.exclude):
        for key in entry:
            if key not in spec.matrix:
                yield ("exclude", index, key), f"exclude.{index}: '{key}' is not an axis; {nearest(key, spec.matrix)}"


def _is_whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _has_weights(value: Any) -> bool:
    """Whether it is one number per member, or the old name of a weighting. An ensemble of one configuration's folds has
    one member."""
    if value == OPTIMISED:
        return True
    numbers = value if isinstance(value, list) else [value]
    plain = all(isinstance(number, int | float) and not isinstance(number, bool) and number >= 0 for number in numbers)
    return plain and sum(numbers) > 0
