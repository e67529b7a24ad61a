"""What only a GPU can show. `make test-gpu` runs these where there is one; CI has none and leaves them out."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from launcher.memory.predict import CONTEXT, DRIVER, predict
from tests.trainer.conftest import TINY, write_documents
from trainer.base.errors import EXIT_DEVICE_MEMORY, EXIT_OK, EXIT_STOPPED
from trainer.bench import steps, training
from trainer.cli.main import main
from trainer.config.compose import compose
from trainer.models import checkpoint
from trainer.training import device

Train = Callable[..., int]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU that torch can use"),
]
GIB = 2**30
SHORT = ["training.max_steps=6", "training.epochs=6", "training.batch_size=8", "training.warmup_epochs=0"]


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """The process's own allocator and kernels, whatever a test has set."""
    with steps.fast_kernels("cpu"):
        yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents enough for a batch of 64."""
    return write_documents(tmp_path_factory.mktemp("many") / "data", per_class=30)


def metrics(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return found


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_a_run_trains_and_says_on_what(tmp_path: Path, train: Train, precision: str) -> None:
    """fp16 with clipped gradients: its first steps overflow, and are its scaler's to skip."""
    words = ["training.max_steps=40", "training.epochs=20", f"training.precision={precision}"]
    assert train(tmp_path / "run", *SHORT, *words, "training.gradient_clip=1", "training.lr=0.003") == EXIT_OK
    found = metrics(tmp_path / "run")
    assert found["device"] == "cuda" and found["precision"] == precision and found["device_memory_bytes"] > 0
    losses = [float(row["train_loss"]) for row in csv.DictReader((tmp_path / "run" / "history.csv").open())]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_stopped_run_goes_on_where_it_was(
    tmp_path: Path, train: Train, documents: Path, precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        *TINY,
        "training.epochs=500",
        "training.batch_size=8",
        "training.patience=0",
        f"training.precision={precision}",
    ]
    environment = {**os.environ, "RUN_DIR": str(tmp_path / "run"), "DATA_DIR": str(documents)}
    command = [sys.executable, "-m", "trainer", "train", *words]
    process = subprocess.Popen(command, env=environment, cwd=Path(__file__).parents[3], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == EXIT_STOPPED
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    at = state["progress"]["step"]
    assert ("scaler" in state and bool(state["scaler"])) == (precision == "fp16")
    more = [*words, "resume=auto", f"training.max_steps={at + 3}"]
    assert train(tmp_path / "run", *more) == EXIT_OK
    assert f"after step {at}" in capsys.readouterr().out and metrics(tmp_path / "run")["steps"] == at + 3


def test_full_memory_ends_a_run_with_its_own_code_and_what_to_do(
    tmp_path: Path, train: Train, many: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cap holds, and leaves room for half the batch."""
    need = predict("resnet34", 384, "bf16")
    assert need is not None
    monkeypatch.setenv("DEVICE_MEMORY_LIMIT", str(need.at(8) + CONTEXT - DRIVER))
    words = ["model.name=resnet34", "data.img_size=384", "training.max_steps=1"]
    assert train(tmp_path / "64", *words, "training.batch_size=64", data=many) == EXIT_DEVICE_MEMORY
    told = capsys.readouterr().err
    assert "out of device memory at micro-batch 64, 384 px" in told and "training.micro_batch=32" in told
    assert train(tmp_path / "8", *words, "training.batch_size=64", "training.micro_batch=8", data=many) == EXIT_OK


MEASURED = """
import json, os, sys, time
began = time.monotonic()
import pynvml, torch
from trainer.training import device
from trainer.cli.main import main

device.MANY_STEPS = 0  # the workspaces of convolutions that are measured count as well
code = main(["train", *sys.argv[1:]])
spent = time.monotonic() - began
pynvml.nvmlInit()
mine = [
    process.usedGpuMemory
    for index in range(pynvml.nvmlDeviceGetCount())
    for process in pynvml.nvmlDeviceGetComputeRunningProcesses(pynvml.nvmlDeviceGetHandleByIndex(index))
    if process.pid == os.getpid()
]
context = sum(mine) - torch.cuda.memory_reserved() if mine and all(mine) else None
figures = {"tensors": torch.cuda.max_memory_allocated(), "allocator": torch.cuda.max_memory_reserved()}
print(json.dumps({"code": code, "context": context, **figures, "seconds": round(spent, 1)}))
"""


def measured(folder: Path, documents: Path, limit: int | None, *words: str) -> dict[str, Any]:
    """Three steps in a process of its own: its exit code, and bytes on the device."""
    environment = {**os.environ, "RUN_DIR": str(folder), "DATA_DIR": str(documents)}
    if limit is not None:
        environment["DEVICE_MEMORY_LIMIT"] = str(limit)
    common = [
        "model.pretrained=false", "training.max_steps=3", "training.warmup_epochs=0", "training.num_workers=2",
        "training.compile=false", "training.optimizer=adamw", "data.val_corruption=none", "training.monitor=val_f1",
    ]  # fmt: skip
    command = [sys.executable, "-c", MEASURED, *common, *words]
    root = Path(__file__).parents[3]
    environment["PYTHONPATH"] = os.pathsep.join([str(root), *filter(None, [environment.get("PYTHONPATH")])])
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize(("name", "size", "batch"), steps.GPU_SETUPS)
def test_the_predicted_memory_is_what_steps_take(
    tmp_path: Path, many: Path, name: str, size: int, batch: int, precision: str
) -> None:
    """What the tensors take by the allocator's count is what was predicted; and with the cap of a run that shares its GPU
    it trains, and the whole process holds no more than it was packed by."""
    micro = batch if precision == "bf16" else batch // 2
    need = predict(compose([f"model={name}"]).model.name, size, precision)
    assert need is not None
    predicted = need.at(micro, accumulates=False)
    if predicted + 2 * CONTEXT > torch.cuda.mem_get_info()[1]:
        pytest.skip(f"{name} in {precision} needs a GPU with {(predicted + 2 * CONTEXT) / GIB:.0f} GiB")
    words = [
        f"model={name}",
        f"data.img_size={size}",
        f"training.batch_size={micro}",
        f"training.precision={precision}",
    ]
    free = measured(tmp_path / "free", many, None, *words)
    capped = measured(tmp_path / "capped", many, predicted + CONTEXT - DRIVER, *words)
    context = capped["context"] or DRIVER  # where the driver does not know this process by its number
    columns = (predicted, free["tensors"], free["allocator"], context, capped["allocator"])
    told = f"{name} {size} px {micro} {precision}: predicted, tensors, allocator, context, capped allocator (GiB): "
    told += " ".join(f"{value / GIB:.2f}" for value in columns) + f" {free} {capped}"
    print(told)
    assert free["code"] == capped["code"] == EXIT_OK, told
    assert abs(predicted / free["tensors"] - 1) <= 0.1, told
    assert capped["allocator"] + context <= predicted + CONTEXT, told


def test_predictions_are_those_of_a_cpu(tmp_path: Path, train: Train, documents: Path, monkeypatch: Any) -> None:
    assert train(tmp_path / "run", *SHORT, "training.precision=fp32") == EXIT_OK
    monkeypatch.setenv("DATA_DIR", str(documents))
    made = []
    for on in ("cuda", "cpu"):
        words = ["--checkpoint", str(tmp_path / "run" / "best.ckpt"), "--output", str(tmp_path / on), "--device", on]
        assert main(["predict", *words, "--precision", "fp32"]) == EXIT_OK
        with np.load(tmp_path / on / "predictions.npz") as stored:
            made.append(stored["probabilities"])
    assert made[0].shape == made[1].shape == (6, 3) and np.abs(made[0] - made[1]).max() < 0.01


def test_a_compiled_run_trains_and_its_checkpoint_is_an_eager_one_s(tmp_path: Path, train: Train) -> None:
    assert train(tmp_path / "eager", *SHORT) == EXIT_OK
    assert train(tmp_path / "run", *SHORT, "training.compile=true") == EXIT_OK
    assert metrics(tmp_path / "run")["compiled"] is True and metrics(tmp_path / "eager")["compiled"] is False
    eager, compiled = (checkpoint.load(tmp_path / name / "best.ckpt") for name in ("eager", "run"))
    assert compiled.state_dict.keys() == eager.state_dict.keys()


def test_a_gpu_waits_where_nobody_loads_beside_it() -> None:
    """Waiting is told where one process does all, and parts of steps are of the device's own time."""
    found = {w: steps.where_time_goes("resnet34", 224, 16, w, "cuda", steps=10, epochs=4) for w in (0, 4)}
    print(json.dumps(found, indent=1))
    assert found[0]["gpu_waits"] > 0.3 and found[4]["gpu_waits"] < found[0]["gpu_waits"]
    for row in found.values():
        assert sum(row["shares"].values()) == pytest.approx(1, abs=1e-3)


def test_no_part_of_a_step_waits_for_the_device() -> None:
    """Only then does the CPU prepare the next step while the device is at this one."""
    precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"  # fp16's scaler asks
    for words in ([], ["training.gradient_clip=1"], ["training.mixup=0.2", "training.mix_probability=1"]):
        step = training.trainer_step("resnet34", 64, 8, f"training.precision={precision}", *words, on="cuda")
        for _ in range(3):
            step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_bf16_is_what_this_gpu_is_asked_for() -> None:
    assert device.precision("auto", "cuda") == ("bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16")
