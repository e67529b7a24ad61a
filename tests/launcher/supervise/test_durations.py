"""How long runs are expected to take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.memory.predict import CONTEXT, DRIVER, device_limit
from launcher.record.folders import state_folder
from launcher.record.journal import Status, create_run
from launcher.record.request import Resources, RunRequest, device_need, read_request
from launcher.supervise import durations


def request(model: str = "resnet34", epochs: int = 10, **more: Any) -> RunRequest:
    config = {"model": model, "epochs": epochs, "img_size": more.pop("size", 384), "batch_size": 8}
    return RunRequest("001-x", 1, more.pop("kind", "train"), [], config=config, **more)


def test_longer_runs_cost_more() -> None:
    costs = [
        durations.cost(each)
        for each in (request(epochs=1), request(), request(size=768), request("deit_base_384", size=768))
    ]
    assert costs == sorted(costs, key=lambda cost: cost or 0) and len(set(costs)) == 4  # type: ignore[arg-type]
    assert durations.cost(request("maxvit_tiny_tf_384")) is None and durations.cost(request(kind="predict")) is None


def test_the_forecast_goes_by_runs_of_the_kind_then_by_cost() -> None:
    requests = {
        "a": request(epochs=2),
        "b": request(epochs=4),
        "c": request(),
        "d": request("resnet50"),
        "e": request(),
    }
    states = {
        "a": Status("succeeded", figures={"seconds": 20.0}),
        "b": Status("succeeded", figures={"seconds": 60.0}),
        "c": Status("running", time=940.0),
        "d": Status("queued"),
        "e": Status("failed", figures={"seconds": 1.0}),
    }
    work = {name: durations.cost(each) or 0 for name, each in requests.items()}
    rate = (20 / work["a"] + 60 / work["b"]) / 2
    expected = (12.5 * 10 - 60) + rate * work["d"]
    assert durations.seconds_left(requests, states, {}, 1000.0) == pytest.approx(expected)
    states["d"] = Status("reused")
    assert durations.seconds_left(requests, states, {}, 1000.0) == pytest.approx(12.5 * 10 - 60)
    assert durations.seconds_left(requests, states, {"c": 7.0}, 1000.0) == 7.0, "its own heartbeat knows better"
    requests["c"] = request(timeout=100)
    assert durations.seconds_left(requests, states, {}, 1000.0) == 40.0, "a time limit ends it"


def test_the_forecast_knows_how_many_run_at_once() -> None:
    requests = {name: request() for name in "abcd"} | {"out": request(kind="predict")}
    states = {name: Status("running", time=0.0) for name in "ab"} | {
        name: Status("queued") for name in ("c", "d", "out")
    }
    assert durations.seconds_left(requests, states, {"a": 10.0, "b": 30.0}, 90.0) == (10 + 30 + 110 + 110) / 2


def test_nothing_is_forecast_from_nothing() -> None:
    requests = {"a": request(), "b": request("nobody_knows_it")}
    assert durations.seconds_left(requests, {"a": Status("queued"), "b": Status("queued")}, {}, 9.0) is None
    assert durations.seconds_left(requests, {"a": Status("running", time=1.0)}, {}, 9.0) is None
    states = {"a": Status("running", time=1.0), "b": Status("queued")}
    assert durations.seconds_left(requests, states, {"a": 5.0}, 9.0) is None, "the cost of b is unknown"


def test_a_run_that_shares_is_held_to_what_it_was_packed_by() -> None:
    gpu, capped, predicted = Resources(gpus=1), Resources(gpus=1, gpu_memory=5), CONTEXT + 7
    for made, need, limit in (
        (request(resources=gpu), None, None),
        (request(resources=gpu, predicted_memory=predicted), predicted, None),
        (request(resources=gpu, predicted_memory=predicted, share_gpu=True), predicted, CONTEXT - DRIVER + 7),
        (request(resources=capped, predicted_memory=predicted, share_gpu=True), 5, 5),
        (request(resources=capped, predicted_memory=predicted), 5, 5),
        (request(resources=gpu, share_gpu=True), None, None),
        (request(predicted_memory=predicted, share_gpu=True), predicted, None),  # on the CPU there is nothing to share
    ):
        assert (device_need(made), device_limit(made)) == (need, limit)


def test_a_request_written_before_there_were_priorities_is_read(tmp_path: Path) -> None:
    create_run(tmp_path / "001-x", request())
    content = json.loads((state_folder(tmp_path / "001-x") / "run.json").read_text())
    for name in ("share_gpu", "priority", "predicted_memory"):
        del content[name]
    (state_folder(tmp_path / "001-x") / "run.json").write_text(json.dumps(content))
    assert read_request(tmp_path / "001-x") == request()
