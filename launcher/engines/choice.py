"""The choice of the engine for a job's runs, with its resources and the reason."""

from __future__ import annotations

import dataclasses

from launcher.base.errors import RunError
from launcher.engines import registry
from launcher.engines.base import Choice, UnofferedError, Want


def choose(wanted: str, want: Want) -> Choice:
    """The engine `wanted`, with its resources for the job; for `auto`, the first engine that accepts the job.

    Raises RunError if there is none, and JobError if no engine can run the job as written.
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
        said = f"{choice.said} (auto: {'; '.join(refused) or choice.why})"
        return dataclasses.replace(choice, said=said, refused=tuple(refused))
    raise RunError(f"no engine accepts the job: {'; '.join(refused)}")
