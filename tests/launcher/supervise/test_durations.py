"""How long runs are expected to take."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from launcher.memory.predict import CONTEXT, DRIVER, device_limit
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


def test_what_succeeded_tells_how_long_its_kind_takes() -> None:
    requests = {"a": request(epochs=2), "b": request(epochs=4), "c": request("resnet50"), "d": request(epochs=1)}
    states = {
        "a": Status("succeeded", figures={"seconds": 20.0}),
        "b": Status("succeeded", figures={"seconds": 60.0}),
        "c": Status("failed", figures={"seconds": 1.0}),
        "d": Status("succeeded", attempt=2, figures={"seconds": 1.0}),
    }
    paces = durations.learned(requests, states)
    assert durations.expected(request(epochs=10), paces) == 150, "as the slowest: 15 s an epoch"
    assert durations.expected(request(epochs=10, timeout=100), paces) == 100, "a time limit ends it"
    assert durations.expected(request("resnet50"), paces) is None
    assert durations.expected(request("resnet50", timeout=100), paces) == 100


def test_what_remains_is_what_the_run_itself_says(tmp_path: Path) -> None:
    now = time.time()
    status = Status("running", time=now - 30)
    run = request(timeout=100)
    assert durations.remaining(tmp_path, run, status, {}) is None, "a time limit says nothing of when a run ends"
    assert durations.remaining(tmp_path, run, status, {durations.kind(run): 5.0}) == pytest.approx(20, abs=5)
    (tmp_path / "progress.json").write_text(json.dumps({"time": now - 5, "eta_seconds": 60}))
    assert durations.remaining(tmp_path, run, status, {}) == pytest.approx(55, abs=5)
    for text in (json.dumps({"time": now - 99, "eta_seconds": 60}), '{"time": 1', "[]", '{"time": "x"}', "null"):
        (tmp_path / "progress.json").write_text(text)  # of a former attempt, cut short, or no heartbeat
        assert durations.remaining(tmp_path, run, status, {}) is None


def test_a_run_that_shares_is_held_to_what_it_was_packed_by() -> None:
    gpu, capped, foreseen = Resources(gpus=1), Resources(gpus=1, gpu_memory=5), CONTEXT + 7
    for made, need, limit in (
        (request(resources=gpu), None, None),
        (request(resources=gpu, predicted_memory=foreseen), foreseen, None),
        (request(resources=gpu, predicted_memory=foreseen, share_gpu=True), foreseen, CONTEXT - DRIVER + 7),
        (request(resources=capped, predicted_memory=foreseen, share_gpu=True), 5, 5),
        (request(resources=capped, predicted_memory=foreseen), 5, 5),
        (request(resources=gpu, share_gpu=True), None, None),
        (request(predicted_memory=foreseen, share_gpu=True), foreseen, None),  # on the CPU there is nothing to share
    ):
        assert (device_need(made), device_limit(made)) == (need, limit)


def test_a_request_written_before_there_were_priorities_is_read(tmp_path: Path) -> None:
    create_run(tmp_path / "001-x", request())
    content = json.loads((tmp_path / "001-x" / "run.json").read_text())
    for name in ("share_gpu", "priority", "predicted_memory"):
        del content[name]
    (tmp_path / "001-x" / "run.json").write_text(json.dumps(content))
    assert read_request(tmp_path / "001-x") == request()
