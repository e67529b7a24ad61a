"""The `slurm:` section of the job file."""

from __future__ import annotations

import difflib
import re
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from launcher.engines.slurm.request import MANAGED
from launcher.job.schema import SectionSpec
from trainer.base.errors import nearest


class SlurmSpec(SectionSpec):
    """How Slurm runs them; what is not listed here is an option of sbatch."""

    model_config = ConfigDict(extra="allow")
    description: ClassVar[str] = (
        "for the slurm engine. Further keys are options of sbatch: {constraint: a100, nice: 100, exclusive: true}"
    )

    runtime: Literal["native", "docker"] = Field(
        "native", description="on the node: native (a process of `slurm.python`) or docker (a container of the image)"
    )
    partition: str | None = Field(None, description="also --partition of submit; null: Slurm's default")
    account: str | None = Field(None, description="also --account of submit")
    qos: str | None = Field(None, description="also --qos of submit")
    gpu_type: str | None = Field(None, description="a kind of GPU, as Slurm calls it: --gres=gpu:TYPE:N")
    python: str | None = Field(
        None, description="the Python on the nodes that has the launcher; null: the one that submits"
    )

    def errors(self) -> list[tuple[str, str]]:
        """What is wrong with the options of sbatch."""
        errors = []
        for key, value in (self.model_extra or {}).items():
            name, fields = str(key).replace("_", "-"), list(SlurmSpec.model_fields)
            near = difflib.get_close_matches(str(key), fields, 1, 0.75)
            if name in MANAGED:
                errors.append((key, f"is not for the job file; {MANAGED[name]}"))
            elif not re.fullmatch(r"[a-z][a-z0-9-]+", name):
                errors.append((key, "is no option of sbatch; write it like constraint or mail-type"))
            elif near:
                errors.append((key, f"there is no such field; {nearest(str(key), fields)}"))
            elif not (value is None or isinstance(value, str | int | float)) or "\n" in str(value):
                errors.append((key, f"must be a text, a number, true or false, not {_short(value)}"))
        return errors


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
