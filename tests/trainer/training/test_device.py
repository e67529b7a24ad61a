"""Choosing the device. No GPU or Mac is here: what torch reports of one is put in its place."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trainer.base.errors import ConfigError, DeviceMemoryError, TrainerError
from trainer.cli import main
from trainer.config.compose import compose
from trainer.config.keys import option_names
from trainer.data.rows import Table
from trainer.models import build, checkpoint
from trainer.predict import inference
from trainer.scores.calibration import tempered
from trainer.training import device, full_memory


def pretend(monkeypatch: pytest.MonkeyPatch, gpus: int = 0, mps: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(("gpus", "mps", "expected"), [(1, True, "cuda"), (0, True, "mps"), (0, False, "cpu")])
def test_auto_prefers_cuda_then_mps_then_cpu(
    monkeypatch: pytest.MonkeyPatch, gpus: int, mps: bool, expected: str
) -> None:
    pretend(monkeypatch, gpus, mps)
    assert device.choose("auto") == expected


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, mps=True)
    with pytest.raises(ConfigError, match=r"device=cuda: not available on this machine \(available: mps, cpu\)"):
        device.choose("cuda")


@pytest.mark.parametrize("model", option_names("model"))
def test_every_model_trains_on_mps_where_there_is_one(monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    pretend(monkeypatch, mps=True)
    assert device.choose(compose([f"model={model}"]).device) == "mps"


def test_every_visible_gpu_is_used_and_shares_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, gpus=4)
    assert device.count(compose(), "cuda") == 4
    assert device.count(compose(["devices=2"]), "cuda") == 2
    with pytest.raises(ConfigError, match=r"training\.batch_size=10 is not a multiple of 4 devices"):
        device.count(compose(["training.batch_size=10"]), "cuda")
    with pytest.raises(ConfigError, match="4 GPUs visible"):
        device.count(compose(["devices=8"]), "cuda")


def test_precision_auto_takes_what_the_device_gains_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert device.precision("auto", "cuda") == "bf16"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert device.precision("auto", "cuda") == "fp16"
    assert device.precision("auto", "mps") == "fp32"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert device.precision("auto", "cpu") == "bf16"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert device.precision("auto", "cpu") == "fp32"
    assert device.precision("fp32", "cuda") == "fp32"


def test_validation_and_prediction_are_in_float32_unless_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, documents: Path, train: Callable[..., int]
) -> None:
    """Also where training is in bf16: a page gets the same class on every device, and the one of an export."""
    monkeypatch.setattr(inference, "UNSURE", 0.0)  # this model is sure of nothing: each page would be in float32
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert {device.evaluation_precision("auto", name) for name in ("cuda", "mps", "cpu")} == {"fp32"}
    assert device.evaluation_precision("bf16", "cuda") == "bf16"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    for asked, validated in (("auto", "fp32"), ("bf16", "bf16")):
        assert train(tmp_path / asked, "training.max_steps=2", f"training.precision={asked}", "device=cpu") == 0
        kept = checkpoint.load(tmp_path / asked / "best.ckpt")
        assert (kept.provenance["precision"], kept.provenance["val_precision"]) == ("bf16", validated)
        ids = kept.validation["ids"]
        table = Table(ids, [documents / "train" / i for i in ids], [], kept.class_names, kept.labels)
        by = {
            precision: inference.probabilities([kept], table, inference.Options("cpu", precision, num_workers=0))[0]
            for precision in ("auto", "fp32", "bf16")
        }
        carried = tempered(kept.validation["probabilities"], kept.temperature)
        assert torch.equal(by["auto"], by["fp32"]) and not torch.equal(by["fp32"], by["bf16"])
        torch.testing.assert_close(by[validated], carried, atol=1e-6, rtol=0)
        other = by["bf16" if validated == "fp32" else "fp32"]
        assert (other - carried).abs().max() > 1e-5, "what is the same in both formats would prove nothing"


def test_float32_is_not_tf32_in_validation_and_prediction(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, documents: Path, train: Callable[..., int]
) -> None:
    """The switches that CUDA would read, while a network evaluates and while it trains."""
    seen: list[tuple[bool, str, bool]] = []
    forward = build.Normalized.forward

    def noted(net: build.Normalized, images: torch.Tensor) -> torch.Tensor:
        seen.append((net.training, torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
        return forward(net, images)

    monkeypatch.setattr(build.Normalized, "forward", noted)
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        assert train(tmp_path, "training.max_steps=2", "device=cpu") == 0
        kept = checkpoint.load(tmp_path / "best.ckpt")
        table = Table(["a"], [documents / "train" / kept.validation["ids"][0]], [], kept.class_names, kept.labels)
        inference.probabilities([kept], table, inference.Options("cpu", num_workers=0))
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
    assert set(seen) == {(True, "high", True), (False, "highest", False)}


def test_out_of_device_memory_names_the_remedies_in_the_manuals_order() -> None:
    composed = compose(["model=resnet50", "training.batch_size=16"])
    for error in (torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("MPS backend out of memory (…)")):
        with pytest.raises(DeviceMemoryError) as raised, full_memory.memory_errors(composed):
            raise error
        message = str(raised.value)
        assert raised.value.exit_code == 75
        places = [message.index(w) for w in ("training.micro_batch=8", "data.img_size=512", "model=resnet34")]
        assert places == sorted(places)
    with pytest.raises(RuntimeError, match="something else"), full_memory.memory_errors(composed):
        raise RuntimeError("something else")


def test_out_of_device_memory_names_no_remedy_that_the_run_has_already(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2 * 2**30, 8 * 2**30))
    for words, said in (
        (["model=resnet50", "training.batch_size=1"], "try, in this order: model=resnet34"),
        (["model=resnet34", "training.batch_size=1"], "this GPU has 2.0 GiB free of 8.0 GiB"),
    ):
        with (
            pytest.raises(DeviceMemoryError) as raised,
            full_memory.memory_errors(compose(["data.img_size=384", *words])),
        ):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        advice = str(raised.value).splitlines()[-1]
        assert said in advice and advice.startswith(("try, in this order: model", "nothing smaller to try here"))


def test_a_wrong_memory_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEVICE_MEMORY_LIMIT", "8g")
    with pytest.raises(ConfigError, match="DEVICE_MEMORY_LIMIT=8g"):
        device.limit_memory("cuda")


def test_the_memory_limit_caps_the_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[float, int]] = []
    pretend(monkeypatch, gpus=2)
    monkeypatch.setenv("DEVICE_MEMORY_LIMIT", str(8 * 2**30))
    properties = type("Properties", (), {"total_memory": 32 * 2**30})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, index: calls.append((share, index))
    )
    device.limit_memory("cuda")
    assert calls == [(0.25, 0), (0.25, 1)]
    calls.clear()
    device.limit_memory("cuda", own=1)
    assert calls == [(0.25, 1)], "a process beside others takes no memory of their GPUs"


def test_operators_that_fall_back_from_mps_are_named_once_each(capsys: pytest.CaptureFixture[str]) -> None:
    """The warnings as torch words them; the commands ignore all others of its."""
    words = "The operator '{}' is not currently supported on the MPS backend and will fall back to run on the CPU."
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(torch|tests)\b.*")
        device.listen_for_fallbacks()
        for name in ("aten::one", "aten::two.out", "aten::one"):
            warnings.warn(words.format(name) + " This may have performance implications.", UserWarning, stacklevel=1)
        warnings.warn("something else", UserWarning, stacklevel=1)
    told = capsys.readouterr().out.splitlines()
    assert [line.split(":", 1)[1].split(" runs")[0].strip() for line in told] == ["aten::one", "aten::two.out"]


def test_several_processes_of_srun_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would be a run of its own, in one folder."""
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(ConfigError, match=r"srun has started 2 processes.*srun --ntasks=1"):
        device.fabric("cpu", "fp32")
    monkeypatch.setenv("LOCAL_RANK", "0")  # torchrun, which knows what it does, or a process of a run's own
    assert device.fabric("cpu", "fp32").device.type == "cpu"


@pytest.mark.parametrize(
    ("torch_version", "release", "given", "set_to"),
    [
        ("2.14.1", "6.1.0", {}, {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}),
        ("2.7.0", "6.1.0", {}, {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}),
        ("2.14.1", "5.15.0-microsoft-standard-WSL2", {}, {}),
        ("2.14.1", "6.1.0", {"PYTORCH_ALLOC_CONF": "expandable_segments:False"}, {}),
        ("2.14.1", "6.1.0", {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, {}),
    ],
)
def test_below_a_cap_segments_grow_unless_somebody_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, torch_version: str, release: str, given: dict[str, str], set_to: dict[str, str]
) -> None:
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    for name in names:
        monkeypatch.setenv(name, given.get(name, ""))  # so that it is as before afterwards
        if name not in given:
            monkeypatch.delenv(name)
    monkeypatch.setattr(importlib.metadata, "version", lambda _: torch_version)
    monkeypatch.setattr(platform, "release", lambda: release)
    main._let_segments_grow()
    assert {name: os.environ[name] for name in names if name in os.environ} == given, "no cap: as torch has it"
    monkeypatch.setenv("DEVICE_MEMORY_LIMIT", str(2**30))
    main._let_segments_grow()
    assert {name: os.environ[name] for name in names if name in os.environ} == given | set_to


def test_gpus_that_were_assigned_and_are_not_there_are_no_cpu_training(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8932f937-1111,GPU-8932f937-2222")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for seen, words in ((0, "no GPU: check nvidia-smi"), (1, "1 GPU: check nvidia-smi")):
        pretend(monkeypatch, seen)
        with pytest.raises(
            TrainerError, match=f"CUDA_VISIBLE_DEVICES=GPU-8932f937-1111,.*, but CUDA sees {words}"
        ) as no:
            device.choose("cuda")
        assert no.type is TrainerError, "the machine is at fault: another attempt may succeed"
    pretend(monkeypatch, 2)
    assert device.choose("cuda") == "cuda"
    pretend(monkeypatch, 0)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(TrainerError, match="this PyTorch is built without CUDA"):
        device.choose("cuda")
    assert device.choose("auto") == "cpu" and "but CUDA sees no GPU" in capsys.readouterr().err
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1,MIG-2")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    pretend(monkeypatch, 1)
    with pytest.raises(TrainerError, match="one MIG instance only"):
        device.choose("cuda")
    for nothing in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", nothing)
        pretend(monkeypatch, 0)
        assert device.choose("auto") == "cpu" and not capsys.readouterr().err
        with pytest.raises(ConfigError, match="not available on this machine"):
            device.choose("cuda")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    for value, error in (("all", ConfigError), ("void", ConfigError), ("GPU-8932f937-1111", TrainerError)):
        monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", value)  # what a container engine tells
        with pytest.raises(TrainerError) as refused:
            device.choose("cuda")
        assert refused.type is error
    assert "NVIDIA_VISIBLE_DEVICES=GPU-8932f937-1111, but CUDA sees no GPU" in str(refused.value)
