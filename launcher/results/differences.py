"""Two runs beside each other: the configuration keys that differ, and their figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from launcher.record.request import RunRequest, read_request
from launcher.record.trainer_figures import Figures, read_metrics
from trainer.base import figures
from trainer.base.errors import ConfigError

OTHERS = ("best_epoch", "epochs", "seconds", "images_per_second", "params")
"""Figures of a run beside those of its validation."""


def compare(first: Path, second: Path) -> dict[str, Any]:
    """The stable form of `diff --json`. Raises RunError and OSError if a request cannot be read."""
    requests = [read_request(run_dir) for run_dir in (first, second)]
    measured = [read_metrics(run_dir) for run_dir in (first, second)]
    chance, why_not = _chance(first, second, measured)
    return {
        "runs": [f"{run_dir.parent.name}/{run_dir.name}" for run_dir in (first, second)],
        "configuration": [{"key": key, "values": list(values)} for key, *values in _differing(requests)],
        "figures": [*_figures(measured, chance)],
        "not_compared": why_not,
    }


def _differing(requests: Sequence[RunRequest]) -> Iterator[tuple[str, Any, Any]]:
    """Keys with their two values; None: the run has no such key."""
    first, second = (_settings(request) for request in requests)
    for key in dict.fromkeys([*first, *second]):
        if first.get(key) != second.get(key):
            yield key, first.get(key), second.get(key)


def _settings(request: RunRequest) -> dict[str, Any]:
    """All that was asked of a run, by dotted keys."""
    settings = {"kind": request.kind, **_configuration(request)}
    settings |= {f"resources.{key}": value for key, value in vars(request.resources).items()}
    settings |= {"timeout": request.timeout, "image": request.image, "image id": request.image_id}
    settings |= {"data folder": request.data_dir, "content of the data": request.data[:12]}
    return {**settings, "version of the trainer": request.code[:12]}


def _configuration(request: RunRequest) -> dict[str, Any]:
    """The composed configuration of a training run; of a step, or if this version of the trainer does not take it any
    more, the words themselves."""
    words = request.overrides if request.kind == "train" else request.command
    if request.kind == "train":
        from trainer.config.compose import compose
        from trainer.config.plain import view

        try:
            plain = view(compose(words))
        except ConfigError:
            return dict(word.partition("=")[::2] for word in words)
        flat: dict[str, Any] = {}
        for key, value in plain.items():
            inner = value if isinstance(value, dict) and key != "choices" else None
            flat |= {f"{key}.{name}": item for name, item in inner.items()} if inner is not None else {}
            flat |= dict(value) if key == "choices" else {} if inner is not None else {key: value}
        return flat
    return {"command": " ".join(words)}


def _figures(measured: Sequence[Figures], chance: dict[str, bool]) -> Iterator[dict[str, Any]]:
    for name in (*figures.columns(), *OTHERS):
        values = [each.get(name) for each in measured]
        if values != [None, None]:
            yield {
                "name": name,
                "values": values,
                "intervals": [each.get(f"{name}_interval") for each in measured],
                "may_be_chance": chance.get(name),
            }


def _chance(first: Path, second: Path, measured: Sequence[Figures]) -> tuple[dict[str, bool], str]:
    """For each figure whether the difference may be chance: the 95 % interval of the difference (paired bootstrap)
    contains 0. Empty, with the reason, if the two were not validated on the same images."""
    from launcher.record import predictions

    own, other = predictions.load(first), predictions.load(second)
    missing = [run_dir.name for run_dir, each in ((first, own), (second, other)) if each is None]
    if own is None or other is None:
        return {}, f"no validation predictions of {' and '.join(missing)}"
    chance = {}
    for name, column in figures.columns().items():
        (differs,) = predictions.distinguishable(own, [other], column)
        if differs is not None and all(name in each for each in measured):
            chance[name] = not differs
    return chance, "" if chance else "the two were not validated on the same images"
