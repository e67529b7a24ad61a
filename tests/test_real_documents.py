"""On real scans with real ImageNet weights: from a job's words to a submission that is far better than chance."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
from sklearn.metrics import f1_score

from launcher.record.find import find_submission
from tests.docker_engine import REPOSITORY
from tests.warm import client as warm


@pytest.mark.shared
def test_two_models_and_their_ensemble_learn_real_documents(shared: Path, tmp_path: Path) -> None:
    weights = shared / "weights" / "tf_efficientnet_lite0.safetensors"
    words = ["model.name=tf_efficientnet_lite0", f"model.weights={weights}", "seed=1,2"]
    words += ["data.img_size=96", "training.epochs=2", "training.patience=0"]
    submit = ["submit", "jobs/quickstart.yaml", *words, "--engine", "native", "--data", str(shared / "documents")]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "LAUNCHER_RUNS": str(tmp_path / "runs")}
    done = warm.launch(submit, REPOSITORY, environment)
    assert done.returncode == 0, done.stdout + done.stderr
    submission = find_submission(tmp_path / "runs")
    figures = {path.parent.name: json.loads(path.read_text()) for path in sorted(submission.glob("*/metrics.json"))}
    print({name: metrics.get("val_f1") for name, metrics in figures.items()})
    for name in ("001-seed1", "002-seed2"):
        assert figures[name]["val_f1"] > 0.5 and figures[name]["val_images"] == 62, "8 classes: chance is 0.125"
    assert (
        figures["003-vote"]["val_f1"] > 0.5
        and figures["001-seed1"]["split_fingerprint"] == figures["002-seed2"]["split_fingerprint"]
    )
    with (
        (shared / "documents" / "test_labels.csv").open() as truth,
        next(submission.glob("*-submission/submission.csv")).open() as file,
    ):
        expected = {row["ID"]: row["target"] for row in csv.DictReader(truth)}
        predicted = {row["ID"]: row["target"] for row in csv.DictReader(file)}
    assert predicted.keys() == expected.keys()
    f1 = f1_score([expected[i] for i in expected], [predicted[i] for i in expected], average="macro")
    print(f"macro F1 on the shifted test scans: {f1:.4f}")
    assert f1 > 0.25
