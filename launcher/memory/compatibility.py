"""The manual's compatibility table: its own memory estimate for each combination."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

ENVIRONMENTS = ("cuda-server", "mac-m4-pro", "mps-20gb")
NOTE = "The figures are the manual's own estimates; they were not measured."
_KEYS = ("model", "data", "batch_size", "img_size")


@cache
def _all() -> tuple[dict[str, Any], ...]:
    import yaml

    text = (Path(__file__).parent / "compatibility.yaml").read_text(encoding="utf-8")
    return tuple(yaml.safe_load(text))


def table(environment: str) -> list[dict[str, Any]]:
    """The rows of one of `ENVIRONMENTS`."""
    return [row for row in _all() if row["environment"] == environment]


def environment_of(mps: bool, gpus: int, memory: int) -> str:
    """The manual's environment that is most like the machine (`memory` in bytes)."""
    if mps:
        return "mac-m4-pro" if memory >= 22 * 2**30 else "mps-20gb"
    return "cuda-server"


def manual_memory(config: dict[str, Any], environment: str) -> float | None:
    """The manual's figure in GB for a run's model, data, batch and size; None if the manual has none."""
    return _memory(environment).get(tuple(config.get(key) for key in _KEYS))


@cache
def _memory(environment: str) -> dict[tuple[Any, ...], float]:
    memory: dict[tuple[Any, ...], float] = {}
    for row in table(environment):
        memory.setdefault(tuple(row[key] for key in _KEYS), float(row["memory_gb"]))
    return memory
