"""Which engine executes a job's runs, on what of this machine; and why."""

from __future__ import annotations

import dataclasses

from launcher.base.errors import RunError
from launcher.engines import registry
from launcher.engines.base import Choice, UnofferedError, Want


def choose(wanted: str, want: Want) -> Choice:
    """The engine called `wanted`, with what it offers to the job; for `auto`, the first that takes the job.

    Raises RunError where there is none, and JobError where the job cannot be had on any engine as it is written.
    """
    if wanted != registry.AUTO:
        return registry.engine(wanted).offer(want)
    refused: list[str] = []
    for name in registry.ENGINES:
        try:
            choice = registry.engine(name).offer(dataclasses.replace(want, auto=True, refused=tuple(refused)))
        except UnofferedError as error:
            refused.append(str(error))
            continue
        return dataclasses.replace(choice, said=f"{choice.said} (auto: {'; '.join(refused) or choice.why})")
    raise RunError(f"no engine takes the job: {'; '.join(refused)}")
