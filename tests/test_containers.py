"""The real images on a real Docker engine: from the documented recipe to trained models."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.engines.docker import builder
from launcher.record.find import find_submission, list_runs
from launcher.record.journal import read_events
from tests.docker_engine import BASE, REPOSITORY, Dockerd, missing
from tests.warm import client as warm

SMALL = ["data.img_size=64", "training.epochs=1", "training.patience=0", "model.pretrained=false"]


@pytest.fixture(scope="module")
def dockerd() -> Iterator[Dockerd]:
    """An engine of their own, so that they run beside the tests of the launcher."""
    lacking = missing()
    if lacking:
        pytest.skip(lacking)
    engine = Dockerd(1)
    engine.start()
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def cpu(dockerd: Dockerd) -> str:
    return dockerd.trainer("cpu")


@pytest.fixture(scope="module")
def cuda(dockerd: Dockerd) -> str:
    return dockerd.trainer("cuda")


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents") / "data"
    command = [sys.executable, "-m", "trainer", "sample-data", str(folder), "--classes", "3", "--per-class", "10"]
    subprocess.run(command, check=True, cwd=REPOSITORY)
    for path in (folder.parent, folder):
        path.chmod(0o755)
    return folder


def launch(dockerd: Dockerd, *words: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    return warm.launch(list(words), cwd, dockerd.environment)


@pytest.mark.shared
def test_a_container_trains_what_a_process_trains(dockerd: Dockerd, cpu: str, shared: Path, tmp_path: Path) -> None:
    """The same seed and thread count: the same figures, and the same files. With every fifth of the real documents."""
    left: dict[str, Any] = {}
    data = tmp_path / "data"
    for table, folder in (("train.csv", "train"), ("sample_submission.csv", "test")):
        (data / folder).mkdir(parents=True)
        heading, *rows = (shared / "documents" / table).read_text().splitlines()
        (data / table).write_text("\n".join([heading, *rows[::5]]) + "\n")
        for row in rows[::5]:
            name = row.split(",")[0]
            shutil.copy(shared / "documents" / folder / name, data / folder)
    shutil.copy(shared / "documents" / "meta.csv", data)
    for engine in ("docker", "native"):
        root = tmp_path / engine
        words = ["submit", "jobs/quickstart.yaml", "training.epochs=1", "model.name=resnet10t", "data.img_size=64"]
        words += ["--engine", engine]
        done = launch(dockerd, *words, "--data", str(data), "--runs", str(root))
        assert done.returncode == 0, done.stdout + done.stderr
        directory = find_submission(root)
        left[engine] = {
            path.name: (
                json.loads((path / "metrics.json").read_text()).get("val_f1"),
                json.loads((path / "metrics.json").read_text()).get("val_loss"),
                sorted(each.name for each in path.iterdir()),
            )
            for path in list_runs(directory)
        }
        assert (root / "champion" / "best_model.ckpt").exists()
    print(left["docker"])
    assert left["docker"] == left["native"] and all(f1 > 0 for f1, _, _ in list(left["docker"].values())[:2])
    # What was made inside serves outside: the members of an ensemble are found.
    (ensemble,) = (tmp_path / "docker").glob("*/002-vote/ensemble.json")
    command = [sys.executable, "-m", "trainer", "predict", "--checkpoint", str(ensemble)]
    environment = {**os.environ, "DATA_DIR": str(data), "RUN_DIR": str(tmp_path / "out")}
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (inside,) = (tmp_path / "docker").glob("*/003-submission/submission.csv")
    assert (tmp_path / "out" / "submission.csv").read_text() == inside.read_text()


def test_runs_on_gpus_get_the_cuda_image(dockerd: Dockerd, cuda: str, documents: Path, tmp_path: Path) -> None:
    (tmp_path / "machine.yaml").write_text("{gpus: 8, cpus: 2, memory: 16g}")
    words = ["submit", "model.name=resnet10t", *SMALL, "--machine", "machine.yaml", "--gpus", "6,7"]
    words += ["--engine", "docker", "--data", str(documents), "--runs", "runs", "--set", "resources.cpus=1"]
    refused = launch(dockerd, *words, cwd=tmp_path)  # the stub runtime has no device to give
    assert refused.returncode == 1 and "but CUDA sees no GPU: " in refused.stdout
    done = launch(dockerd, *words, "device=cpu", "seed=1,2", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "document-classifier:cuda" in done.stdout
    spans = []
    for path in list_runs(find_submission(tmp_path / "runs")):
        running, ended = read_events(path)[-2:]
        (device,) = running["devices"]
        spans.append((device, running["time"], ended["time"]))
    assert sorted(device for device, _, _ in spans) == ["6", "7"]
    assert max(start for _, start, _ in spans) < min(end for _, _, end in spans), "side by side"


def test_the_one_off_docker_run_of_the_docs(dockerd: Dockerd, cuda: str, documents: Path, tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "containers-and-images.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^(docker run --rm --gpus all .*?[^\\])\n", page, re.S | re.M)
    (tmp_path / "data").symlink_to(documents)
    (tmp_path / "out").mkdir(mode=0o777)
    done = dockerd_shell(dockerd, f"{block} model.name=resnet10t {' '.join(SMALL)}", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {"best.ckpt", "metrics.json", "val_predictions.npz"} <= {path.name for path in (tmp_path / "out").iterdir()}


def dockerd_shell(dockerd: Dockerd, command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    words = ["bash", "-euo", "pipefail", "-c", command]
    return subprocess.run(words, env=dockerd.environment, capture_output=True, text=True, cwd=cwd)


def test_a_change_of_one_line_reuses_every_layer_but_the_last(dockerd: Dockerd, cpu: str, tmp_path: Path) -> None:
    for folder in ("trainer", "images"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "Dockerfile.cpu"):
        shutil.copy(REPOSITORY / name, tmp_path)
    with (tmp_path / "trainer" / "__main__.py").open("a") as file:
        file.write("# one line more\n")
    client = dockerd.client()
    saved = dict(os.environ)
    os.environ.update(DOCKER_HOST=dockerd.host, PATH=dockerd.environment["PATH"])
    try:
        changed = builder.build(client, "cpu", BASE, {}, ["changed:test"], lambda line: None, tmp_path)
        layers = [client.images.get(name).attrs["RootFS"]["Layers"] for name in (cpu, "changed:test")]
        assert len(layers[0]) == len(layers[1])
        same = [a == b for a, b in zip(*layers, strict=True)]
        code = same.index(False)
        assert all(same[:code]) and code >= len(same) - 2, same
        assert changed.stale, "it is not what this checkout holds"
    finally:
        os.environ.clear()
        os.environ.update(saved)
        client.images.remove("changed:test", force=True)


def test_nothing_that_builds_packages_is_left_in_an_image(dockerd: Dockerd, cpu: str) -> None:
    command = ["-c", "command -v gcc cc make git curl pip || true; ls /tmp; python -m pip --version || true"]
    options = {"entrypoint": ["sh"], "user": "4321:4321", "remove": True, "network_mode": "none"}
    out = dockerd.client().containers.run(cpu, command, **options)  # type: ignore[call-overload]
    assert out.decode().split() == [], out
    details = dockerd.client().images.get(cpu).attrs
    assert details["Config"].get("Healthcheck") is None
    labels = details["Config"]["Labels"]
    assert labels["org.opencontainers.image.version"] and len(labels["document-classifier.content"]) == 64
    assert labels["org.opencontainers.image.revision"] != "unknown"


def test_doctor_and_images_tell_what_containers_can_do(dockerd: Dockerd, cpu: str, tmp_path: Path) -> None:
    done = launch(dockerd, "doctor", "--json", "--runs", str(tmp_path / "runs"))
    checks = {check["what"]: check for check in json.loads(done.stdout)}
    for name in ("docker", "image cpu", "memory limit", "mounts"):
        assert checks[name]["level"] == "ok", checks[name]
    listed = launch(dockerd, "images")
    assert listed.returncode == 0 and re.search(rf"{cpu} +cpu +\d\.\d\d GB .* the same", listed.stdout)


MODELS = ("resnet34", "resnet50", "efficientnet_b4", "convnext_base", "swin_base_384", "deit_base_384")
SIX_MODELS = """
name: six-models
matrix:
  model: [{models}]
overrides:
  model.pretrained: false
  data.img_size: 64
  training.max_steps: 1
  training.batch_size: 2
  training.num_workers: 0
max_parallel: 1
resources: {{gpus: 0, cpus: 1}}
after:
{steps}
"""


@pytest.mark.slow
def test_the_six_models_of_the_manual_train_and_predict_in_the_cpu_container(
    dockerd: Dockerd, cpu: str, documents: Path, tmp_path: Path
) -> None:
    step = '  - {{name: predict-{model}, step: predict, from: {{runs: ["*-{model}"]}}}}'
    steps = "\n".join(step.format(model=model) for model in MODELS)
    (tmp_path / "job.yaml").write_text(SIX_MODELS.format(models=", ".join(MODELS), steps=steps))
    words = ["submit", "job.yaml", "--engine", "docker", "--data", str(documents), "--runs", "runs"]
    done = launch(dockerd, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    trained, predicted = {}, {}
    for path in list_runs(find_submission(tmp_path / "runs")):
        model = path.name.split("-")[-1]
        if (path / "submission.csv").exists():
            predicted[model] = len((path / "submission.csv").read_text().splitlines()) - 1
        else:
            trained[model] = json.loads((path / "metrics.json").read_text())["steps"]
    assert trained == dict.fromkeys(MODELS, 1)
    assert predicted == dict.fromkeys(MODELS, len(list((documents / "test").iterdir())))
    shutil.rmtree(tmp_path / "runs")  # gigabytes, which pytest would keep
