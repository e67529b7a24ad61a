"""Expected durations of runs, estimated without torch. The scheduler uses them for its order and for backfill."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

from launcher.record.journal import Status
from launcher.record.request import RunRequest

KMACS = {
    "resnet34": 73,
    "resnet50": 81,
    "efficientnet_b4": 30,
    "convnext_base": 306,
    "swin_base_384": 319,
    "deit_base_384": 376,
}
"""Thousands of multiplications in a forward pass per pixel of the image, by torch.utils.flop_counter on timm's models:
at 384 px for the last two, at 224 px for the others. The total grows about in proportion to the pixels."""
Kind = tuple[object, ...]


def cost(request: RunRequest) -> float | None:
    """Epochs × pixels × the model's cost per pixel: good enough to tell which of two runs takes longer. None for steps
    and for unknown models."""
    config = request.config
    weight = KMACS.get(str(config.get("model")))
    epochs, size = config.get("epochs"), config.get("img_size")
    return float(epochs * size**2 * weight) if request.kind == "train" and weight and epochs and size else None


def kind(request: RunRequest) -> Kind:
    """A key: runs of equal kind have comparable times per epoch."""
    shape = [request.config.get(key) for key in ("model", "data", "training", "img_size", "batch_size")]
    return (request.kind, *shape, request.resources.gpus, request.share_gpu)


def learned(requests: Mapping[str, RunRequest], states: Mapping[str, Status]) -> dict[Kind, float]:
    """Seconds per epoch for each kind of run that has succeeded in this submission; the slowest run counts. A kind
    without epochs counts as one epoch."""
    paces: dict[Kind, float] = {}
    for name, status in states.items():
        if status.state == "succeeded" and status.attempt == 1 and status.figures.get("seconds"):
            request = requests[name]
            pace = float(status.figures["seconds"]) / _epochs(request)
            paces[kind(request)] = max(pace, paces.get(kind(request), 0.0))
    return paces


def expected(request: RunRequest, paces: Mapping[Kind, float]) -> float | None:
    """Expected seconds of the run by the `learned` paces, at most its time limit; None if both are unknown."""
    pace = paces.get(kind(request))
    known = [value for value in (pace and pace * _epochs(request), request.timeout) if value]
    return min(known, default=None)


def remaining(run_dir: Path, request: RunRequest, status: Status, paces: Mapping[Kind, float]) -> float | None:
    """Seconds until a run in progress ends: by its own heartbeat, else by the `learned` paces. None if both are
    unknown: a time limit does not tell when a run ends."""
    now = time.time()
    try:
        beat = json.loads((run_dir / "progress.json").read_text(encoding="utf-8"))
        if beat["time"] >= status.time:  # else the heartbeat of an earlier attempt
            return float(beat["eta_seconds"]) - max(0.0, now - float(beat["time"]))
    except (OSError, ValueError, TypeError, KeyError):
        pass
    pace = paces.get(kind(request))
    return None if pace is None else pace * _epochs(request) - max(0.0, now - status.time)


def _epochs(request: RunRequest) -> int:
    return int(request.config.get("epochs") or 1)
