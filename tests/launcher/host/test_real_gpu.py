"""The launcher with a GPU that is there: what it sees of it, runs that share it. Beside tests/trainer/training/test_gpu.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from launcher.host import machine
from tests.trainer.conftest import write_documents

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not machine.here().gpus, reason="needs an NVIDIA GPU, and its driver"),
]
JOB = """name: shared
matrix: {seed: [0, 1]}
overrides: {model.name: resnet10t, model.pretrained: false, data.img_size: 128, training.batch_size: 8,
            training.epochs: 60, training.patience: 0, training.num_workers: 1}
resources: {gpus: 1, cpus: 1, share_gpu: true}
after:
  - {name: vote, step: ensemble, from: {top: 2}, args: {method: soft_voting}}
  - {name: submission, step: predict, needs: [vote]}
"""


def launcher(folder: Path, *words: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "LAUNCHER_RUNS": str(folder / "runs"),
        "PYTHONPATH": f"{Path(__file__).parents[3]}:{os.environ.get('PYTHONPATH', '')}",
    }
    command = [sys.executable, "-m", "launcher", *words]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def told(folder: Path, *words: str) -> Any:
    process = launcher(folder, *words)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    return json.loads(out) if "--json" in words else out


def test_two_runs_share_a_gpu_and_both_are_seen_on_it(tmp_path: Path) -> None:
    write_documents(tmp_path / "data")
    (tmp_path / "job.yaml").write_text(JOB)
    planned = told(tmp_path, "plan", "job.yaml", "--data", "data", "--engine", "native", "--json")
    assert planned["parallel"] == 2 and all(run["fits"] for run in planned["runs"])
    submitting = launcher(tmp_path, "submit", "job.yaml", "--data", "data", "--engine", "native")
    together: set[str] = set()
    while submitting.poll() is None and len(together) < 2:
        time.sleep(0.5)
        if (tmp_path / "runs").exists() and any((tmp_path / "runs").iterdir()):
            together = {
                run["name"]
                for run in told(tmp_path, "status", "--json")["runs"]
                if run["state"] == "running" and (run["progress"] or {}).get("device_memory_bytes")
            }
    seen = told(tmp_path, "top", "--once")
    out, _ = submitting.communicate(timeout=300)
    print(seen, out, sep="\n")
    assert submitting.returncode == 0, out
    assert len(together) == 2 and all(name in seen for name in together)
    runs = told(tmp_path, "status", "--json")["runs"]
    assert {run["state"] for run in runs} == {"succeeded"}
    for run in runs[:2]:
        found = json.loads((Path(run["directory"]) / "metrics.json").read_text())
        assert found["device"] == "cuda" and found["device_memory_bytes"] > 0


def test_doctor_and_matrix_name_the_gpu(tmp_path: Path) -> None:
    name = machine.here().gpus[0].name
    assert name and name in told(tmp_path, "doctor")
    assert name in told(tmp_path, "matrix")
