"""Memory predicted with fake tensors: compared with torch's own tracker, and with what real steps on a CPU take."""

from __future__ import annotations

import csv
import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

from tests.trainer.conftest import TINY
from trainer.cli.main import main
from trainer.config.compose import compose
from trainer.config.keys import option_names
from trainer.memory import table
from trainer.memory.estimate import Estimate, estimate
from trainer.models import build, optimizers

MIB = 2**20


@functools.cache
def line_of(*words: str, precision: str = "fp32") -> Estimate:
    return estimate(compose([*TINY, *words], "estimate"), 3, (precision,))[precision]


@pytest.mark.parametrize(("precision", "accumulates"), [("fp32", True), ("bf16", False)])
def test_it_counts_what_torchs_own_tracker_counts(precision: str, accumulates: bool) -> None:
    """Real tensors here, fake ones there."""
    config = compose([*TINY, "device=cpu"])
    net = build.Normalized(build.create(config.model, 3, 64, load_weights=False), (0.5,) * 3, (0.2,) * 3, True)
    optimizer = optimizers.create(config.training, net)
    images, targets, weights = torch.zeros(6, 3, 64, 64, dtype=torch.uint8), torch.zeros(6).long(), torch.ones(3)
    tracker = MemTracker()
    for _ in range(2):  # the second is the one that counts
        tracker = MemTracker()
        tracker.track_external(net, optimizer, images, targets, weights)
        for _ in range(1 + accumulates):
            tracker.reset_mod_stats()
            with tracker:
                with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                    logits = net(images)
                ((cross_entropy(logits, targets, reduction="none") * weights[targets]).sum() / 6).backward()
                del logits
        optimizer.step()
        optimizer.zero_grad()
    measured = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
    predicted = line_of("device=cpu", precision=precision).at(6, accumulates)
    assert measured == pytest.approx(predicted, rel=0.02)


def test_averaged_weights_are_one_more_copy() -> None:
    plain, averaged = line_of("device=cuda"), line_of("device=cuda", "training.ema_decay=0.99")
    assert averaged.ema == plain.weights and plain.ema == plain.teachers == 0
    assert averaged.fixed - plain.fixed == averaged.update - plain.update == plain.weights


def test_the_line_is_made_of_its_parts() -> None:
    line = line_of("device=cuda")
    floats = sum(p.numel() for p in build.create(compose(TINY).model, 3, 64, load_weights=False).parameters()) * 4
    assert line.gradients == floats <= line.weights < floats * 1.1
    assert 2 * floats <= line.optimizer < 2.1 * floats, "AdamW keeps two moments"
    assert line.fixed >= line.weights + line.gradients + line.optimizer
    assert line.per_image == line.activations_per_image + 3 * 64 * 64, "an image is a byte a value"
    assert 0 < line.spared <= line.gradients
    assert line.at(1) == line.fixed + line.per_image and line.at(5) - line.at(4) == line.per_image
    assert line.at(3, accumulates=False) == line.at(3) - line.spared


def test_the_update_is_the_least_that_a_step_needs() -> None:
    """Of a model with large weights and small images it is the peak. A fused optimiser has no temporaries; the plain one
    of fp16 with clipping has some as large as the weights, on CUDA."""
    words = ("model.name=test_vit", "data.img_size=64")
    fused = line_of("device=cuda", *words)
    plain = line_of("device=cuda", *words, "training.precision=fp16", "training.gradient_clip=1")
    least = fused.weights + fused.gradients + fused.optimizer
    assert least <= fused.update < least + fused.gradients * 0.9 < plain.update
    assert fused.at(1, accumulates=False) == fused.update > fused.fixed + fused.per_image - fused.spared
    assert line_of(*words) == fused, "auto counts as cuda"


def test_checkpointed_gradients_keep_a_fraction_of_the_activations() -> None:
    words = ("model.name=test_vit", "data.img_size=160")
    plain, saved = line_of(*words), line_of(*words, "training.grad_checkpointing=true")
    assert saved.activations_per_image < 0.5 * plain.activations_per_image
    assert saved.weights == plain.weights and saved.update == plain.update


def test_sgd_keeps_half_as_much_as_adamw() -> None:
    adamw, sgd = line_of(), line_of("training.optimizer=sgd")
    assert sgd.optimizer == pytest.approx(adamw.optimizer / 2, rel=0.01)
    assert adamw.fixed - sgd.fixed == pytest.approx(sgd.optimizer, rel=0.05)


def test_bf16_halves_activations_and_keeps_weights() -> None:
    full, half = line_of(), line_of(precision="bf16")
    assert half.weights == full.weights and half.optimizer == full.optimizer
    assert 0.4 < half.activations_per_image / full.activations_per_image < 0.7


def test_mps_keeps_attention_matrices() -> None:
    """As it has no fused attention where gradients are needed: at least one a block and head, of float32."""
    words = ("model.name=test_vit", "data.img_size=160")
    tokens, heads, blocks = (160 // 16) ** 2 + 1, 2, 6
    fused, kept = line_of("device=cuda", *words), line_of("device=mps", *words)
    assert kept.per_image - fused.per_image > tokens**2 * heads * blocks * 4 * 0.95


def test_gpus_autocast_keeps_more_than_the_cpus() -> None:
    """It normalises in float32."""
    words = ("model.name=test_convnext", "data.img_size=64")
    gpu, cpu = (line_of(f"device={name}", *words, precision="bf16") for name in ("cuda", "cpu"))
    assert gpu.per_image > cpu.per_image


def test_the_command_prints_a_table_and_stable_json(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*TINY, "training.batch_size=8", "training.micro_batch=4"]
    assert main(["estimate", *words, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["model"], printed["img_size"], printed["optimizer"], printed["classes"]) == (
        "test_resnet",
        64,
        "adamw",
        17,
    )
    keys = {"weights", "gradients", "optimizer", "activations_per_image", "fixed", "per_image"}
    assert all(set(printed["precisions"][p]) >= keys for p in ("fp32", "bf16"))
    assert main(["estimate", *words]) == 0
    out = capsys.readouterr().out
    line = printed["precisions"]["fp32"]
    total = max(line["fixed"] + 4 * line["per_image"], line["update"])
    assert "peak at micro-batch 4" in out and f"{total / 2**30:.2f}" in out


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["model=resnet43"], "did you mean 'resnet34'?"),
        (["--json", "--table=t.csv"], "--table t.csv"),
        (["--jsno"], "--jsno"),
    ],
)
def test_a_wrong_word_is_one_clear_error(words: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", *words]) == 64
    assert error in capsys.readouterr().err


def test_a_model_that_fake_tensors_cannot_go_through_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class NeedsData(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images * self.weight if images.sum() > 0 else images

    monkeypatch.setattr(build, "create", lambda *_, **__: NeedsData())
    assert main(["estimate", *TINY]) == 1
    assert "model.name=test_resnet: cannot predict its memory" in capsys.readouterr().err


def test_the_table_has_a_row_for_each_device_size_and_precision(tmp_path: Path) -> None:
    rows = list(csv.DictReader(table.as_csv(list(table.rows((64,), ("resnet34",)))).splitlines()))
    assert [(r["device"], r["img_size"], r["precision"]) for r in rows] == [
        (device, "64", precision) for device in ("cuda", "mps") for precision in ("fp32", "bf16")
    ]
    assert int(rows[0]["per_image_bytes"]) > int(rows[1]["per_image_bytes"]) > 0


def test_models_with_attention_get_more_rows() -> None:
    """Their memory does not follow the square of the size."""
    assert table._sizes("resnet34", (384, 512)) == [384, 512]
    assert table._sizes("swin_base_384", (384, 500)) == [384, 416, 448, 480, 500]


def measured_peak(action: Callable[[], int], trace: Path) -> int:
    """The most that torch's CPU allocator has given out at once, bytes, by the events of torch's profiler."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        assert action() == 0
    profiler.export_chrome_trace(str(trace))
    events = [e for e in json.loads(trace.read_text())["traceEvents"] if e["name"] == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        now += event["args"]["Bytes"]
        peak = max(peak, now)
    return peak


@pytest.mark.slow
def test_the_prediction_is_within_five_percent_of_what_training_takes(
    documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real command, two steps on this CPU: with one micro-batch a step, and with two."""
    monkeypatch.setenv("DATA_DIR", str(documents))
    lines, errors = [], []
    for name in option_names("model"):
        for batch, micro in ((2, 2), (4, 2)):
            words = [
                f"model={name}", "data.img_size=384", f"training.batch_size={batch}", f"training.micro_batch={micro}",
                "training.optimizer=adamw", "training.precision=fp32", "device=cpu", "model.pretrained=false",
            ]  # fmt: skip
            line = estimate(compose(words), classes=3, precisions=("fp32",))["fp32"]
            predicted = line.at(micro, accumulates=micro < batch)
            run = [*words, "training.max_steps=2", "training.num_workers=0", "training.channels_last=true"]
            monkeypatch.setenv("RUN_DIR", str(tmp_path / f"{name}-{batch}"))
            measured = measured_peak(lambda run=run: main(["train", *run]), tmp_path / "trace.json")
            errors.append(predicted / measured - 1)
            lines.append(
                f"{name:16} {batch:>2}/{micro} {predicted / MIB:9.0f} MiB {measured / MIB:9.0f} MiB {errors[-1]:+7.1%}"
            )
    print("\nmodel         batch/micro    predicted      measured    error", *lines, sep="\n")
    assert max(map(abs, errors)) <= 0.05, "\n".join(lines)
