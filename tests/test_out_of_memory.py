"""A real training run that runs out of device memory goes on with a smaller micro-batch, and learns as it would have."""

from __future__ import annotations

import json
import os
from pathlib import Path

import yaml

from launcher.record.find import find_submission, list_runs
from launcher.record.journal import read_events
from launcher.record.states import ENDED
from tests.docker_engine import REPOSITORY
from tests.warm import client as warm
from trainer.data.drawn import write_sample_data

# What the trainers begin with: their steps raise torch's own exception above a micro-batch of four images.
SMALL_DEVICE = """
import torch, trainer.training.step
take = trainer.training.step.take
def small(step, batches, number):
    if max(len(batch[0]) for batch in batches) > 4 and number >= 1:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
    return take(step, batches, number)
trainer.training.step.take = small
"""
WORDS = ["model.name=resnet10t", "model.pretrained=false", "data.img_size=64", "training.batch_size=16", "seed=3"]
WORDS += ["training.epochs=2", "training.num_workers=1", "training.drop_last=false", "training.precision=fp32"]


def submit(folder: Path, name: str, **more: str) -> Path:
    words = ["submit", *WORDS, "--engine", "native", f"--set=name={name}", "--set=resources.cpus=1", "--fresh"]
    words += ["--runs", str(folder / "runs")]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "DATA_DIR": str(folder / "data"), **more}
    done = warm.launch(words, REPOSITORY, environment)
    assert done.returncode == 0, done.stdout + done.stderr
    (run_dir,) = list_runs(find_submission(folder / "runs", name))
    return run_dir


def test_a_run_out_of_device_memory_is_done_with_the_same_effective_batch(tmp_path: Path) -> None:
    write_sample_data(tmp_path / "data", classes=3, per_class=14)
    (tmp_path / "small.py").write_text(SMALL_DEVICE)
    small = submit(tmp_path, "small", WARM_PATCH=str(tmp_path / "small.py"))
    large = submit(tmp_path, "large")
    ends = [(e["attempt"], e["state"]) for e in read_events(small) if e["state"] in ENDED]
    assert ends == [(1, "out_of_device_memory"), (2, "out_of_device_memory"), (3, "succeeded")]
    settings = {path: yaml.safe_load((path / "config.yaml").read_text())["training"] for path in (small, large)}
    assert settings[small]["micro_batch"] == 4 and settings[large]["micro_batch"] is None
    assert settings[small]["batch_size"] == settings[large]["batch_size"] == 16
    figures = {path: json.loads((path / "metrics.json").read_text()) for path in (small, large)}
    assert figures[small]["steps"] == figures[large]["steps"] and figures[small]["epochs"] == 2
    assert abs(figures[small]["val_loss"] - figures[large]["val_loss"]) < 0.5  # batch norm sees four images, not 16
