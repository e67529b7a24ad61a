"""Durations of runs, estimated without torch: `cost` for the scheduler's order, and a forecast for people. The
supervisor reads no heartbeats for it."""

from __future__ import annotations

from collections.abc import Mapping

from launcher.record.journal import Status
from launcher.record.request import RunRequest
from launcher.record.states import ENDED

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


def seconds_left(
    requests: Mapping[str, RunRequest], states: Mapping[str, Status], etas: Mapping[str, float], now: float
) -> float | None:
    """Expected seconds until the last run ends, if as many run at the same time as now. None if no run is in progress,
    or if the duration of one is unknown.

    `etas` are the seconds until runs in progress end, by their heartbeats. `now` is in seconds since 1970.
    """
    under_way = [name for name, status in states.items() if status.state in ("starting", "running")]
    if not under_way:
        return None
    paces: dict[Kind, list[float]] = {}
    rates: list[float] = []
    for name, total in _totals(states, etas, now).items():
        paces.setdefault(kind(requests[name]), []).append(total / _epochs(requests[name]))
        if work := cost(requests[name]):
            rates.append(total / work)
    by_kind = {key: _median(values) for key, values in paces.items()}
    rate = _median(rates) if rates else None
    left = []
    for name, status in states.items():
        if status.state in ENDED:
            continue
        known: float | None = etas.get(name)
        if known is None:
            known = _expected(requests[name], by_kind, rate)
            known = known if known is None or status.state == "queued" else known - (now - status.time)
        if known is None:
            return None
        left.append(max(0.0, known))
    return max(sum(left) / len(under_way), *left)


def _median(values: list[float]) -> float:
    import statistics  # imports fractions, decimals and random numbers

    return statistics.median(values)


def _totals(states: Mapping[str, Status], etas: Mapping[str, float], now: float) -> dict[str, float]:
    """Seconds from begin to end of runs that succeeded at their first attempt, and of runs in progress."""
    totals = {name: now - states[name].time + eta for name, eta in etas.items() if states[name].state == "running"}
    for name, status in states.items():
        seconds = status.figures.get("seconds")
        if status.state == "succeeded" and status.attempt == 1 and isinstance(seconds, int | float):
            totals[name] = max(0.0, float(seconds))  # an earlier version wrote -3599 if the clock was set back
    return totals


def _expected(request: RunRequest, by_kind: Mapping[Kind, float], rate: float | None) -> float | None:
    """Seconds of the run by the pace of its kind, else by its cost and the `rate` of all kinds, at most its time
    limit. A step without a known pace counts as 0, since it is short beside training."""
    pace, work = by_kind.get(kind(request)), cost(request)
    if pace is not None:
        seconds = pace * _epochs(request)
    elif rate is not None and work is not None:
        seconds = rate * work
    elif request.kind != "train":
        seconds = 0.0
    else:
        return None
    return min(seconds, request.timeout or seconds)


def _epochs(request: RunRequest) -> int:
    return int(request.config.get("epochs") or 1)
