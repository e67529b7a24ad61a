"""The `slurm:` section of the job file."""

from __future__ import annotations

import difflib
import re
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from launcher.engines.slurm.request import MANAGED
from launcher.job.schema import SectionSpec
from trainer.base.errors import nearest

_OPTION = "[a-z][a-z0-9-]+"


def _options(schema: dict[str, Any]) -> None:
    """What `SlurmSpec.errors` says of the form of options, in the words of a JSON schema."""
    managed = sorted({name for option in MANAGED for name in (option, option.replace("-", "_"))})
    named = {"pattern": f"^{_OPTION.replace('-]', '_-]')}$", "not": {"enum": managed}}
    schema["propertyNames"] = {"anyOf": [{"enum": sorted(schema["properties"])}, named]}
    schema["additionalProperties"] = {"type": ["null", "string", "number", "boolean"], "pattern": r"^[^\n]*$"}


class SlurmSpec(SectionSpec):
    """How Slurm executes the runs. Fields that are not listed here are options of sbatch."""

    model_config = ConfigDict(extra="allow", json_schema_extra=_options)
    description: ClassVar[str] = (
        "for the slurm engine. Further keys are options of sbatch: {constraint: a100, nice: 100, exclusive: true}"
    )

    runtime: Literal["native", "docker"] = Field(
        "native", description="on the node: native (a process of `slurm.python`) or docker (a container of the image)"
    )
    partition: str | None = Field(None, description="also --partition of submit; null: Slurm's default")
    account: str | None = Field(None, description="also --account of submit")
    qos: str | None = Field(None, description="also --qos of submit")
    gpu_type: str | None = Field(None, description="Slurm's type of GPU: --gres=gpu:TYPE:N")
    python: str | None = Field(
        None, description="the Python with the launcher on the nodes; null: the Python that submits"
    )

    def errors(self) -> list[tuple[str, str]]:
        """Errors in the options of sbatch."""
        errors = []
        for key, value in (self.model_extra or {}).items():
            name, fields = str(key).replace("_", "-"), list(SlurmSpec.model_fields)
            near = difflib.get_close_matches(str(key), fields, 1, 0.75)
            if name in MANAGED:
                errors.append((key, f"is not allowed in the job file; {MANAGED[name]}"))
            elif not re.fullmatch(_OPTION, name):
                errors.append((key, "is not an option of sbatch; write it like constraint or mail-type"))
            elif near:
                errors.append((key, f"unknown field; {nearest(str(key), fields)}"))
            elif not (value is None or isinstance(value, str | int | float)) or "\n" in str(value):
                errors.append((key, f"must be a text, a number, true or false, not {_short(value)}"))
        return errors


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
