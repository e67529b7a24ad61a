"""How a step is computed: fused optimisers, checkpointed gradients, compiled models; and what measures a step."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.conftest import TINY
from tests.trainer.training.test_resume import assert_same
from trainer.base.errors import ConfigError
from trainer.bench import steps
from trainer.bench import training as bench_training
from trainer.config.compose import compose
from trainer.config.schema import ModelConfig
from trainer.models import build, checkpoint, compiling, optimizers
from trainer.training import device

Train = Callable[..., int]
SHORT = ["training.max_steps=2", "training.batch_size=8", "training.warmup_epochs=0"]


def last(run: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(run / "last.ckpt", weights_only=True)
    return loaded


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_fused_optimiser_does_what_the_plain_one_does(optimizer: str) -> None:
    training = compose([f"training.optimizer={optimizer}", "training.gradient_clip=1"]).training
    nets, made = [], []
    for precision in ("fp32", "fp16"):  # fp16 with clipping is not fused
        torch.manual_seed(0)
        nets.append(torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.LayerNorm(30), torch.nn.Linear(30, 3)))
        made.append(optimizers.create(training, nets[-1], precision))
    assert [bool(m.param_groups[0]["fused"]) for m in made] == [True, False]
    images = torch.randn(8, 40)
    for _ in range(5):
        for net, each in zip(nets, made, strict=True):
            net(images).square().mean().backward()
            each.step()
            each.zero_grad()
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_run_begun_with_the_plain_optimiser_goes_on_with_the_fused_one(tmp_path: Path, train: Train) -> None:
    run = tmp_path / "run"
    assert train(run, *SHORT) == 0
    state = last(run)
    for group in state["optimizer"]["param_groups"]:
        group["fused"] = None
    checkpoint.write(run / "last.ckpt", state)
    assert train(run, *SHORT, "training.max_steps=3", "resume=auto") == 0
    after = last(run)
    assert after["progress"]["step"] == 3 and all(group["fused"] for group in after["optimizer"]["param_groups"])


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_checkpointed_gradients_change_nothing_but_memory(tmp_path: Path, train: Train, name: str) -> None:
    """To the bit, batch statistics too, and with dropped paths."""
    words = [*SHORT, f"model.name={name}", "model.drop_path=0.2", "training.micro_batch=4"]
    states = []
    for number, more in enumerate(([], ["training.grad_checkpointing=true"])):
        assert train(tmp_path / str(number), *words, *more) == 0
        states.append(last(tmp_path / str(number)))
    assert_same(states[0]["model"], states[1]["model"])
    assert_same(states[0]["optimizer"], states[1]["optimizer"])


def test_a_model_that_cannot_checkpoint_gradients_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"training\.grad_checkpointing=true: timm's vgg11 does not support it"):
        build.checkpoint_gradients(build.create(ModelConfig("vgg11"), 3, 32, load_weights=False), "vgg11")
    with pytest.raises(
        ConfigError, match=r"training\.compile=true: does not work well with training\.grad_checkpointing=true"
    ):
        compose(["training.compile=true", "training.grad_checkpointing=true"])


def test_a_model_that_does_not_compile_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    bare = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Flatten(), torch.nn.Linear(192, 3))
    net = build.Normalized(bare, (0.5,) * 3, (0.2,) * 3, False)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with inductor.patch({"cpp.cxx": ("no-such-compiler",)}):
        done, note = compiling.model_for(True, net, device.fabric("cpu", "fp32"), 2, 8, steps=1000)
    assert not done and note.startswith("torch.compile failed, so the model trains eagerly: ")
    assert_same(dict(net.state_dict()), before)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert net(torch.zeros(5, 3, 8, 8, dtype=torch.uint8)).shape == (5, 3)
    for asked in (False, None):
        assert compiling.model_for(asked, net, device.fabric("cpu", "fp32"), 2, 8, 10**9) == (False, "")


@pytest.mark.slow
def test_a_run_that_cannot_compile_trains_eagerly_and_says_so(tmp_path: Path, documents: Path, cold: None) -> None:
    """In processes of their own: dynamo remembers what failed."""
    compiler = {"CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    printed = {}
    for name, words in (("eager", []), ("run", ["training.compile=true"])):
        environment = {**os.environ, **compiler, "RUN_DIR": str(tmp_path / name), "DATA_DIR": str(documents)}
        command = [sys.executable, "-m", "trainer", "train", *TINY, *SHORT, *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        printed[name] = done.stdout
    note = "note: torch.compile failed, so the model trains eagerly: "
    assert note not in printed["eager"] and note in printed["run"]
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["compiled"] is False
    assert_same(last(tmp_path / "eager")["model"], last(tmp_path / "run")["model"])


@pytest.mark.slow
def test_a_compiled_run_resumes_to_the_bit_and_leaves_the_names_of_an_eager_one(tmp_path: Path, train: Train) -> None:
    """Its steps run compiled (torch's profiler names them), an epoch's last, smaller batch and validation do not; with
    averaged weights and micro-batches."""
    words = ["training.batch_size=8", "training.micro_batch=4", "training.drop_last=false", "training.epochs=2"]
    words += ["training.ema_decay=0.9", "model.drop_path=0.1", "training.warmup_epochs=0"]
    words += ["training.precision=fp32", "training.scheduler=constant"]
    assert train(tmp_path / "eager", *words) == 0
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        assert train(tmp_path / "whole", *words, "training.compile=true") == 0
    regions = sum(e.count for e in profiler.key_averages() if e.key.startswith("Torch-Compiled Region"))
    images = json.loads((tmp_path / "whole" / "metrics.json").read_text())["train_images"]
    assert regions == 1 + 2 * (images // 4), "one to compile it"
    assert train(tmp_path / "parts", *words, "training.compile=true", "training.max_steps=3") == 0
    assert train(tmp_path / "parts", *words, "training.compile=true", "resume=auto") == 0
    eager, whole, parts = (last(tmp_path / name) for name in ("eager", "whole", "parts"))
    assert json.loads((tmp_path / "whole" / "metrics.json").read_text())["compiled"] is True
    for key in ("model", "ema"):
        assert list(whole[key]) == list(eager[key])
        torch.testing.assert_close(whole[key], eager[key], rtol=0.05, atol=0.05)
        assert_same(whole[key], parts[key])
    rows = [list(csv.DictReader((tmp_path / name / "history.csv").open())) for name in ("eager", "whole")]
    assert float(rows[0][-1]["train_loss"]) == pytest.approx(float(rows[1][-1]["train_loss"]), rel=0.05)
    best = checkpoint.load(tmp_path / "whole" / "best.ckpt")
    build.restore(best.settings.model, 3, 64, best.state_dict)


def test_fast_kernels_are_allowed_on_cuda_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", set_to.append)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    for where in ("cpu", "mps"):
        device.allow_fast_kernels(where, 10**6)
    assert not set_to and not torch.backends.cudnn.benchmark
    device.allow_fast_kernels("cuda", 10**6)
    assert set_to == ["high"] and torch.backends.cudnn.benchmark and torch.backends.cudnn.allow_tf32
    device.allow_fast_kernels("cuda", 100)
    assert not torch.backends.cudnn.benchmark, "a short run does not wait for its convolutions to be measured"


def test_the_bench_trains_with_the_trainers_own_step_and_with_timms() -> None:
    row = bench_training._compare("resnet34", 32, 2, rounds=1)
    assert list(row) == [
        "device", "model", "size", "batch", "precision", "images_per_s", "timm", "ratio", "timm_defaults", "ratio_defaults"
    ]  # fmt: skip
    assert row["images_per_s"] / row["timm"] == pytest.approx(row["ratio"], rel=0.01)
    assert row["images_per_s"] / row["timm_defaults"] == pytest.approx(row["ratio_defaults"], rel=0.01)


def test_every_step_of_a_comparison_has_its_turns_and_begins_some() -> None:
    called: list[str] = []
    found = bench_training.take_turns([lambda: called.append("a"), lambda: called.append("b")], 2)
    assert "".join(called) == "baabba" and [len(each) for each in found] == [2, 2]


def test_steps_count_that_find_a_batch_ready_and_validation_is_none() -> None:
    step = [("data", 1.0), ("transfer", 0.5), ("forward", 2.0), ("backward", 4.0), ("optimizer", 1.5), ("rest", 1.0)]
    first, after = [("data", 99.0), *step[1:]], ("validation", 7.0)
    epoch = [*first, after, *step, after, *step, after, ("validation", 50.0)]
    counted = steps.whole_steps([*epoch, *epoch, *first, after, ("data", 30.0)])
    assert counted == [dict(step)] * 2, "of the second epoch all but the first"
    assert steps.shares(counted) == {part: seconds / 10 for part, seconds in step}


def test_where_time_goes_is_told_of_a_real_run() -> None:
    found = steps.where_time_goes("resnet34", 32, 4, workers=0, on="cpu", steps=3, epochs=2)
    assert sum(found["shares"].values()) == pytest.approx(1, abs=1e-3)
    assert all(found["shares"][part] > 0 for part in ("data", "forward", "backward", "optimizer"))
    assert found["gpu_waits"] is None and found["seconds"] > 0
