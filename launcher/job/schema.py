"""The job file's fields: types, defaults and descriptions; also as a table for docs/job-file.md."""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping
from functools import cache, partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, create_model, model_validator

from launcher.base.errors import SizeError
from launcher.base.sizes import DURATION_PATTERN, SIZE_PATTERN, parse_duration, parse_size

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.I)
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
OWN_VARIABLES = frozenset(
    "CACHE_DIR CUDA_DEVICE_ORDER CUDA_VISIBLE_DEVICES DATA_DIR DEVICE_MEMORY_LIMIT NO_ALBUMENTATIONS_UPDATE "
    "NVIDIA_VISIBLE_DEVICES OMP_NUM_THREADS PYTHONUNBUFFERED RUN_DIR SECRETS_DIR TORCHINDUCTOR_CACHE_DIR "
    "TRITON_CACHE_DIR".split()
)
"""Variables that the launcher sets for its runs. The host's values would contradict the run's devices and folders."""
_PART = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
IMAGE = re.compile(
    rf"(?:(?:[A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(?::[0-9]+)?/)?{_PART}(?:/{_PART})*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@[a-z0-9+._-]+:[0-9a-fA-F]{32,128})?|sha256:[0-9a-f]{6,64}"
)
"""Docker's grammar of a reference, or the id of an image."""
MEMORY_MIN = 6 * 2**20
"""Bytes. Docker refuses a lower limit."""


def _size(value: Any) -> Any:
    return value if value in ("auto", None) else _convert(parse_size, value)


def _memory(value: Any) -> Any:
    size = _size(value)
    if isinstance(size, int) and size < MEMORY_MIN:
        raise ValueError(f"{value!r} is too little: a container needs at least 6m (6 MiB)")
    return size


def _convert(parser: Any, value: Any) -> Any:
    try:
        return parser(value)
    except SizeError as error:
        raise ValueError(str(error)) from None


def _name(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, str | int) or not NAME.fullmatch(str(value)):
        raise ValueError(f"{value!r}: a name has letters from a to z, digits, '.', '_' and '-', at most 64")
    return str(value)


def _variable(value: Any) -> Any:
    if not isinstance(value, str) or not VARIABLE.fullmatch(value):
        raise ValueError(f"{value!r} is not a name of an environment variable (write names here, never values)")
    if value in OWN_VARIABLES or value.startswith("LAUNCHER_"):
        choose = "; --gpus chooses GPUs" if value.endswith("_VISIBLE_DEVICES") else ""
        raise ValueError(f"{value}: the launcher itself sets this variable for each run; remove it here{choose}")
    return value


def _image(value: Any) -> Any:
    if isinstance(value, str) and not (len(value) <= 500 and IMAGE.fullmatch(value)):
        raise ValueError(
            f"{value!r} is not the name of an image: write auto, cpu, cuda, or a reference in lower case like "
            "server:5000/team/name:tag"
        )
    return value


def _plain_variable(value: Any) -> Any:
    if SECRET_NAME.search(_variable(value)):
        raise ValueError(f"{value} looks like a secret: list it under secrets:, which passes it as a file")
    return value


def _axis(value: Any) -> Any:
    if isinstance(value, list) and value:
        return value
    raise ValueError("must be a list of at least one value, like [resnet34, resnet50]")


def _cores(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"must be a number, or auto, not {value!r}")
    return value


def any_case(words: str) -> str:
    """A regular expression of plain words for capital and small letters: patterns of a JSON schema have no flags.

    >>> any_case("key|On")
    '[Kk][Ee][Yy]|[Oo][Nn]'
    """
    return re.sub("[A-Za-z]", lambda letter: f"[{letter[0].upper()}{letter[0].lower()}]", words)


def _text(pattern: str) -> dict[str, Any]:
    return {"type": "string", "pattern": f"^(?:{pattern})$"}


def _size_schema(least: int) -> WithJsonSchema:
    number = {"type": "number", "minimum": least, "exclusiveMaximum": 2**60}
    return WithJsonSchema({"anyOf": [{"const": "auto"}, _text(SIZE_PATTERN), number]})


_SECONDS = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1e9}
_DURATION: list[dict[str, Any]] = [_text(DURATION_PATTERN), _SECONDS]
_VARIABLE: dict[str, Any] = {
    **_text(VARIABLE.pattern),
    "not": {"anyOf": [{"enum": sorted(OWN_VARIABLES)}, {"pattern": "^LAUNCHER_"}]},
}
_PLAIN_VARIABLE = {
    **_VARIABLE,
    "not": {"anyOf": [*_VARIABLE["not"]["anyOf"], {"pattern": any_case(SECRET_NAME.pattern)}]},
}
Size = Annotated[int | Literal["auto"], BeforeValidator(_size), _size_schema(2**20)]
Memory = Annotated[int | Literal["auto"], BeforeValidator(_memory), _size_schema(MEMORY_MIN)]
Name = Annotated[
    str,
    BeforeValidator(_name),
    WithJsonSchema({"anyOf": [_text(NAME.pattern), {"type": "integer", "minimum": 0}]}),
]
Axis = Annotated[list[Any], BeforeValidator(_axis)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ResourcesSpec(_Strict):
    """Resources of each run."""

    gpus: Annotated[int, Field(ge=0, le=64, strict=True)] | Literal["auto"] = Field(
        "auto", description="GPUs that no other run uses. auto: one if the machine has any (MPS counts), else none"
    )
    gpu_memory: Size = Field(
        "auto",
        description="limit of the run's allocator on each GPU; the GPU must have that much memory. auto: no limit",
    )
    share_gpu: Annotated[bool, Field(strict=True)] = Field(
        False,
        description="run several runs of the job on one GPU, as far as gpu_memory (auto: the predicted memory) allows; "
        "each allocator is limited to its part. A run of unknown need does not share its GPU",
    )
    memory: Memory = Field("auto", description="host memory; container engines enforce it. auto: no limit")
    cpus: Annotated[
        Annotated[float, Field(gt=0, le=4096)] | Literal["auto"],
        BeforeValidator(_cores),
        WithJsonSchema(
            {
                "anyOf": [
                    {"const": "auto"},
                    {"type": "number", "exclusiveMinimum": 0, "maximum": 4096},
                    _text(r"\s*\+?[0-9_.]+([eE][-+]?[0-9]+)?\s*"),
                ]
            }
        ),
    ] = Field(
        "auto",
        description="cores, and threads of torch. auto: the machine's cores divided by its GPUs; 4 on a CPU or a "
        "shared GPU",
    )
    shm: Size = Field(
        "auto",
        description="shared memory for loader workers; container engines enforce it. auto: what the loader fills at "
        "most (workers × prefetched batches × batch), at least half of memory and 1g",
    )


Retried = Literal["out_of_device_memory", "lost", "failed", "timed_out"]


class RetrySpec(_Strict):
    """The final states after which a run is attempted again."""

    attempts: Annotated[int, Field(ge=1, le=100, strict=True)] = Field(3, description="attempts of a run in all")
    on: list[Retried] = Field(
        default=["out_of_device_memory"],
        description="final states to retry: out_of_device_memory (with half the micro-batch and the same "
        "effective batch), lost, failed, timed_out. Bad configuration, bad data and lack of host memory are not",
    )
    backoff: Annotated[
        float,
        BeforeValidator(lambda v: 0.0 if v in (0, "0", "0s") and v is not False else _convert(parse_duration, v)),
        WithJsonSchema({"anyOf": [{"enum": [0, "0", "0s"]}, *_DURATION]}),
    ] = Field(
        30.0,
        description="seconds, or like 1m: wait before the second attempt, twice as long before each further one; "
        "no wait after out_of_device_memory",
    )


class SectionSpec(_Strict):
    """An engine's section of the job file, under the engine's name. The engine's folder defines the subclass."""

    description: ClassVar[str] = ""

    def errors(self) -> list[tuple[str, str]]:
        """Errors that the fields' types cannot express: pairs of a key and its problem."""
        return []


class FromSpec(_Strict):
    """The runs that a step works on."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": ["top"], "properties": {"top": {"type": "integer"}, "runs": {"enum": [None, []]}}},
                {
                    "required": ["runs"],
                    "properties": {"runs": {"minItems": 1, "type": "array"}, "top": {"const": None}},
                },
            ]
        }
    )
    top: Annotated[int, Field(ge=1, le=1000, strict=True)] | None = Field(
        None, description="the N best configurations by score, each with all its folds"
    )
    runs: list[str] | None = Field(None, description="names or patterns (globs) of runs, with or without the number")
    submission: str | None = Field(None, description="an earlier submission to take the runs from, instead of this one")

    @model_validator(mode="after")
    def _one(self) -> FromSpec:
        if (self.top is None) == (not self.runs):
            raise ValueError("write either top: N or runs: [names]")
        return self


class StepSpec(_Strict):
    """A step after the training runs. It is a run, too, with a directory, a state and a log."""

    name: Name = Field(description="the name of the step's run; needs: refers to it")
    step: Literal["ensemble", "predict", "analyze"] = Field(description="ensemble, predict or analyze")
    from_: FromSpec | None = Field(None, alias="from", description="the training runs it works on")
    needs: list[str] = Field(
        default_factory=list, description="steps to wait for; predict and analyze use their result"
    )
    args: dict[str, Any] = Field(default_factory=dict, description="options of the trainer's command, like method")


class JobSpec(_Strict):
    """A job file."""

    name: Name = Field("job", description="the submission's name starts with it")
    image: Annotated[str, BeforeValidator(_image), WithJsonSchema({**_text(IMAGE.pattern), "maxLength": 500})] = Field(
        "auto",
        description="for container engines: cpu or cuda (the project's own), or a reference. auto: cuda if the engine "
        "has GPUs, else cpu",
    )
    matrix: dict[str, Axis] = Field(
        default_factory=dict,
        description="axes: Hydra groups or dotted keys, each with its values. Every combination is a run",
    )
    exclude: list[dict[str, Any]] = Field(default_factory=list, description="combinations to leave out")
    include: list[dict[str, Any]] = Field(
        default_factory=list,
        description="values to add to matching combinations, else further combinations. The key priority is "
        "for the scheduler: -100 to 100, higher starts first (default 0)",
    )
    overrides: dict[str, Any] = Field(
        default_factory=dict, description="values for every run; the matrix takes precedence"
    )
    resources: ResourcesSpec = Field(
        default_factory=lambda: ResourcesSpec.model_validate({}), description="resources of each run"
    )
    network: Annotated[bool, Field(strict=True)] | Literal["auto"] = Field(
        "auto", description="whether containers have a network. auto: only for W&B or to download weights"
    )
    max_parallel: Annotated[int, Field(ge=1, strict=True)] | None = Field(
        None, description="largest number of runs at once. null: as many as fit"
    )
    timeout: (
        Annotated[float, BeforeValidator(lambda v: _convert(parse_duration, v)), WithJsonSchema({"anyOf": _DURATION})]
        | None
    ) = Field(
        None, description="time limit of a run, like 8h or 1h30m; a number without a unit is seconds. null: no limit"
    )
    retry: RetrySpec = Field(
        default_factory=lambda: RetrySpec.model_validate({}), description="further attempts of failed runs"
    )
    on_failure: Literal["continue", "stop"] = Field(
        "continue",
        description="when a run has failed for good. continue: the others continue; stop: runs that have not started "
        "are cancelled",
    )
    follows: str | None = Field(
        None, description="a submission (its name, or its job's name) to wait for before any run starts"
    )
    env: list[Annotated[str, BeforeValidator(_plain_variable), WithJsonSchema(_PLAIN_VARIABLE)]] = Field(
        default_factory=list, description="names of environment variables to pass on; never a secret"
    )
    secrets: list[Annotated[str, BeforeValidator(_variable), WithJsonSchema(_VARIABLE)]] = Field(
        default_factory=list,
        description="names of environment variables to pass as files that only the run's user can read",
    )
    after: list[StepSpec] = Field(default_factory=list, description="steps to run after the training runs")


def with_sections(sections: Mapping[str, type[SectionSpec]]) -> type[JobSpec]:
    """The job file's model, extended by the engines' sections under their names."""
    return _with_sections(tuple(sections.items()))


@cache
def _with_sections(sections: tuple[tuple[str, type[SectionSpec]], ...]) -> type[JobSpec]:
    fields: dict[str, Any] = {
        name: (model, Field(default_factory=partial(model.model_validate, {}), description=model.description))
        for name, model in sections
    }
    return create_model(JobSpec.__name__, __base__=JobSpec, __doc__=JobSpec.__doc__, **fields)


def reference(sections: Mapping[str, type[SectionSpec]]) -> str:
    """The job file's fields as a Markdown table, made from the schema."""
    lines = ["| field | default | meaning |", "| --- | --- | --- |"]

    def add(model: type[BaseModel], prefix: str) -> None:
        fields = dict(model.model_fields)
        if "after" in fields:  # sections come before the steps
            fields["after"] = fields.pop("after")
        for name, field in fields.items():
            key = prefix + (field.alias or name)
            parts: dict[str, type[BaseModel]] = {
                "resources": ResourcesSpec,
                "retry": RetrySpec,
                "from_": FromSpec,
                **sections,
            }
            inner = parts.get(name)
            default = "–" if field.is_required() or inner else _default(field.get_default(call_default_factory=True))
            lines.append(f"| `{key}` | {default} | {field.description} |")
            if inner is not None:
                add(inner, key + ".")
            elif name == "after":
                add(StepSpec, "after[].")

    add(with_sections(sections), "")
    return "\n".join(lines)


def _default(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return "null" if value is None else "none" if value == {} else f"{value}"


typing.get_type_hints(JobSpec)  # fail on import, not on the first job, if the schema cannot be resolved
