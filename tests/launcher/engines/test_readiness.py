"""What can be known before the first run starts is known then, once for all runs."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import pytest

from launcher.base.errors import DamagedFileError, JobError, RunError
from launcher.engines import data_set, readiness, registry
from launcher.engines.base import Choice
from launcher.engines.docker.images import Image
from launcher.host.machine import Machine
from launcher.job import expansion, named_files, spec
from launcher.record.request import RunRequest
from tests.launcher.conftest import Lab, seeds

HERE = Machine("here", 8, 32 * 2**30)
NATIVE = Choice(registry.engine("native"), HERE, "")


HEADER = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
SAFETENSORS = len(HEADER).to_bytes(8, "little") + HEADER + b"\0\0\0\0"
CHECKPOINT = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
"""How torch.save began once."""


def wanting(*names: str, network: bool | None = None) -> list[RunRequest]:
    return [RunRequest(f"00{n}", n, "train", ["train"], fetches=name, network=network) for n, name in enumerate(names)]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_HOME", "HF_HUB_CACHE", "BAKED_WEIGHTS", "CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(readiness, "why_no_hub", lambda contained=False: "the hub cannot be reached")


def test_weights_that_cannot_be_had_are_told_once_for_all_runs(offline: None, tmp_path: Path) -> None:
    with pytest.raises(RunError) as raised:
        readiness.check_weights(wanting("resnet34", "resnet50", "resnet34"), tmp_path, NATIVE)
    assert str(raised.value).startswith(f"the weights of resnet34, resnet50 are not in {tmp_path}/weights, and the hub")
    for path in ("resnet34.safetensors", "models--timm--resnet50.a1_in1k/snapshots/abc/model.safetensors"):
        (tmp_path / "weights" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "weights" / path).write_bytes(SAFETENSORS)
    readiness.check_weights(wanting("resnet34", "resnet50"), tmp_path, NATIVE)
    with pytest.raises(RunError, match="timm has no weights for botnet50ts_256"):
        readiness.check_weights(wanting("botnet50ts_256"), tmp_path, NATIVE)


def test_containers_have_the_weights_of_their_image(offline: None, tmp_path: Path) -> None:
    image = Image("sha256:1", ("mine:1",), "cpu", "", 1, "0.1", "", "resnet34", False)
    boxed = Choice(registry.engine("docker"), HERE, "", image, contained=True)
    readiness.check_weights(wanting("resnet34"), tmp_path, boxed)
    with pytest.raises(RunError, match=r"resnet50 are neither in the image nor in .*, and network: false forbids"):
        readiness.check_weights(wanting("resnet34", "resnet50", network=False), tmp_path, boxed)


@pytest.mark.parametrize("where", ["slurm", "elsewhere"])
def test_runs_of_other_machines_may_have_another_network(offline: None, tmp_path: Path, where: str) -> None:
    machine = Machine("x", 8, 2**30, declared=where == "elsewhere")
    chosen = Choice(registry.engine("slurm" if where == "slurm" else "native"), machine, "")
    readiness.check_weights(wanting("resnet34"), tmp_path, chosen)


def test_the_hub_is_asked_for_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "https_proxy", "http_proxy", "HTTPS_PROXY", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
        assert readiness.why_no_hub() is None
    assert "cannot be reached (Connection refused)" in (readiness.why_no_hub() or "")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert readiness.why_no_hub() == "HF_HUB_OFFLINE is set"
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("https_proxy", "http://proxy:1")
    assert readiness.why_no_hub() is None


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    from PIL import Image as Pillow

    folder = tmp_path / "documents"
    (folder / "train").mkdir(parents=True)
    for number, name in enumerate("abcd"):
        Pillow.new("RGB", (8, 8), (number, 0, 0)).save(folder / "train" / f"{name}.png")
    (folder / "train.csv").write_text("ID,target\na.png,0\nb.png,0\nc.png,1\nd.png,1\n")
    return folder


def test_a_data_set_is_read_once_and_all_its_errors_come_at_once(documents: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert data_set.ask(str(documents), "auto", "abc", cache) == data_set.Answers()
    (documents / "train" / "a.png").write_bytes(b"no image")
    (documents / "train" / "b.png").unlink()
    (documents / "train" / "c.png").write_bytes(b"")
    assert data_set.ask(str(documents), "auto", "abc", cache).errors == [], "known by the digest of its content"
    said = "\n".join(data_set.ask(str(documents), "auto", "abd", cache).errors)
    assert "train.csv:3: train/b.png: the file is missing" in said
    assert "3 errors in" in said, "a class whose other images have errors is not one with a single image"
    assert "train.csv:2: train/a.png: not a readable image" in said and "c.png: the file is empty" in said


def test_a_long_look_at_the_images_is_announced(
    documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_set, "QUIET", 0.01)
    monkeypatch.setattr(data_set.process, "ENTRY", (sys.executable, "-S", "-c", "import time; time.sleep(0.3)"))
    said: list[str] = []
    assert data_set.ask(str(documents), "auto", "", tmp_path, said.append) == data_set.Answers()
    assert said == [f"{documents}: reading every image, once for all runs …"]


def test_submit_and_plan_and_doctor_say_the_same_of_a_data_set(documents: Path, lab: Lab) -> None:
    lab.environment["PYTHONPATH"] = os.environ["PYTHONPATH"]  # the real trainer
    (documents / "train" / "a.png").unlink()
    words = ("model.pretrained=false", "seed=1,2,3", "--data", str(documents))
    submitted, planned = lab.launcher("submit", "--engine", "native", *words), lab.launcher("plan", *words)
    for done in (submitted, planned):
        assert done.returncode == 65 and done.stderr.count("train/a.png: the file is missing") == 1, done.stderr
    assert not list(lab.runs.glob("*-2*"))
    checked = lab.launcher("doctor", "--data", str(documents))
    assert "✗ data" in checked.stdout and "train/a.png: the file is missing" in checked.stdout


def test_too_few_images_are_told_at_the_line_of_the_value(documents: Path, lab: Lab) -> None:
    lab.environment["PYTHONPATH"] = os.environ["PYTHONPATH"]  # the real trainer
    job = lab.job(
        "matrix:\n  seed: [1, 2]\n  training.batch_size: [2, 64]\noverrides:\n  model.pretrained: false\n"
        "  data.val_fraction: 0.5\nafter:\n  - {name: sub, step: predict, from: {top: 1}}\n"
    )
    words = (job, "--data", str(documents))
    submitted, planned = lab.launcher("submit", "--engine", "native", *words), lab.launcher("plan", *words)
    for done in (submitted, planned):
        # Of a busy machine, `submit` says that it reads the images.
        first, second = [line for line in done.stderr.splitlines() if "once for all runs" not in line]
        assert done.returncode == 65
        assert first.startswith("error: job.yaml:3: training.batch_size=64: 2 training images are fewer than one batch")
        assert second == f"job.yaml:8: sub: {documents}: no test images: add sample_submission.csv, or images in test/"
    assert not lab.runs.exists() or not list(lab.runs.glob("*-2*"))


def test_transforms_that_fail_with_an_image_are_told_at_their_line(documents: Path, lab: Lab) -> None:
    """Albumentations takes these values, and OpenCV refuses them only with a page."""
    lab.environment["PYTHONPATH"] = os.environ["PYTHONPATH"]  # the real trainer
    job = lab.job(
        "matrix:\n  seed: [1, 2]\noverrides:\n  model.pretrained: false\n  training.batch_size: 2\n"
        "  data.val_fraction: 0.5\n  data.img_size: 64\n  data.train_transforms:\n"
        "    - Resize: {height: 64, width: 64}\n    - GaussianBlur: {blur_limit: -3}\n"
    )
    done = lab.launcher("plan", job, "--data", str(documents))
    first, *others = [line for line in done.stderr.splitlines() if "once for all runs" not in line]
    assert done.returncode == 65 and not others, done.stderr
    assert first.startswith("error: job.yaml:8: data.train_transforms.1: GaussianBlur: OpenCV")


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (["--set", "overrides.data.folds=5"], "the command line: data.folds=5"),
        (["data.folds=5"], "the command line: data.folds=5"),
        ([], "job.yaml:3: data.folds=5"),
    ],
)
def test_an_error_of_the_data_blames_what_set_the_value(lab: Lab, words: list[str], place: str) -> None:
    errors = ["data.folds=5: 6 images in 2 classes cannot be split: …", "train.csv:3: …: the same file as …"]
    lab.environment["FAKE_CHECK"] = json.dumps(
        {"errors": [], "configurations": [{"errors": errors, "notes": []}], "test": []}
    )
    job = lab.job("overrides:\n  model.pretrained: false\n  data.folds: 5\nmatrix: {seed: [1, 2]}\n")
    done = lab.launcher("submit", job, *words, lab.machine())
    assert done.returncode == 65 and done.stderr.splitlines() == [f"error: {place}{errors[0][12:]}", errors[1]]


def test_classes_without_a_validation_image_are_noted(lab: Lab) -> None:
    note = "data.val_fraction=0.2: class c (2 images) has no validation image in this split; …"
    lab.environment["FAKE_CHECK"] = json.dumps({"configurations": [{"errors": [], "notes": [note]}]})
    job = lab.job(seeds(2) + "  # \n")
    for command in ("plan", "submit"):
        done = lab.launcher(command, job, "model.pretrained=false", "--data", "data", lab.machine())
        assert done.returncode == 0 and done.stdout.count(f"note: job.yaml:1: {note}") == 1, done.stderr


def test_submit_refuses_without_a_hub_and_plan_says_so(lab: Lab) -> None:
    lab.environment["FAKE_NO_HUB"] = "the hub is away"
    done = lab.launcher("submit", "--engine", "native", lab.job(seeds(3)))
    assert done.returncode == 1 and done.stderr.count("the hub is away") == 1 and not list(lab.runs.glob("*/"))[1:]
    assert "note: submit would refuse this now: the weights of resnet34" in lab.launcher("plan", "job.yaml").stdout
    assert lab.launcher("submit", "--engine", "native", "job.yaml", "model.pretrained=false").returncode == 0


def faults(text: str, *words: str, machine: Machine = HERE) -> list[str]:
    with pytest.raises(JobError) as raised:
        expansion.expand(spec.load(Path("job.yaml"), words, source=text.encode()), machine)
    return str(raised.value).splitlines()


def test_files_that_runs_need_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.safetensors").write_bytes(SAFETENSORS)
    (tmp_path / "folder").mkdir()
    text = "matrix:\n  seed: [1, 2, 3]\noverrides:\n  model.weights: {}\n"
    for name, said in (
        ("god.safetensors", "no such file; did you mean 'good.safetensors'?"),
        ("nope", "no such file"),
        ("folder", "is not a file"),
        ("x" * 300, "cannot be read: File name too long"),
    ):
        (line,) = faults(text.format(name))
        assert line.startswith("job.yaml:4: model.weights=") and said in line, line
    assert faults("name: x\n", "model.weights=nope") == ["the command line: model.weights=nope: no such file"]
    assert faults("name: x\noverrides:\n  training.teachers: [good.safetensors, b]\n") == [
        "job.yaml:3: training.teachers=b: no such file"
    ]
    assert faults("name: x\n", "resume=last.ckpt")[0].startswith("the command line: resume=last.ckpt: no such file")
    elsewhere = Machine("server", 8, 2**30, declared=True)
    job = spec.load(Path("job.yaml"), source=text.format("nope").encode())
    assert len(expansion.expand(job, elsewhere)) == 3, "files of another machine"


def test_stored_weights_must_be_whole(offline: None, tmp_path: Path) -> None:
    stored = tmp_path / "weights" / "resnet34.safetensors"
    stored.parent.mkdir()
    stored.write_bytes(SAFETENSORS[:-2])
    for cut_short in (
        NATIVE,
        Choice(registry.engine("slurm"), HERE, ""),
        Choice(NATIVE.engine, HERE, "", contained=True),
    ):
        with pytest.raises(DamagedFileError) as raised:
            readiness.check_weights(wanting("resnet34", "resnet34"), tmp_path, cut_short)
        assert str(raised.value).startswith(f"{stored}: is truncated: 64 of 66 bytes; copy it again\n")
    (tmp_path / "weights" / "models--timm--resnet50.a1_in1k" / "blobs").mkdir(parents=True)
    with pytest.raises(RunError, match="the weights of resnet50 are not in"):  # a download that was cut short
        readiness.check_weights(wanting("resnet50"), tmp_path, NATIVE)


@pytest.mark.parametrize("key", ["model.weights", "training.teachers", "resume"])
def test_files_without_weights_are_named_with_their_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.pth").write_text("<html>")
    value = "[page.pth]" if key == "training.teachers" else "page.pth"
    text = f"matrix:\n  seed: [1, 2]\noverrides:\n  {key}: {value}\n"
    job = spec.load(Path("job.yaml"), source=text.encode())
    with pytest.raises(DamagedFileError) as raised:
        expansion.expand(job, HERE)
    assert str(raised.value).startswith(f"job.yaml:4: {key}=page.pth: is an HTML or XML text")
    assert raised.value.exit_code == 65 and "\n" not in str(raised.value)
    with pytest.raises(JobError, match=r"(?s)job.yaml:2: seed=x.*job.yaml:4: .*page.pth"):
        expansion.expand(spec.load(Path("job.yaml"), source=text.replace("2]", "x]").encode()), HERE)
    job = spec.load(Path("job.yaml"), source=f"image: mine:1\n{text}".encode())
    assert len(expansion.expand(job, HERE)) == 2, "an image of another maker may have another format"


def test_members_of_a_teacher_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(CHECKPOINT)
    (tmp_path / "b.ckpt").write_bytes(b"PK\x03\x04 and no end")
    for members, said in ((["a.ckpt"], ""), (["a.ckpt", "c.ckpt"], "no such file"), (["b.ckpt"], "is truncated")):
        write = {"format": 2, "members": [{"checkpoint": name} for name in members]}
        (tmp_path / "ensemble.json").write_text(json.dumps(write))
        why = named_files.wrong(tmp_path / "ensemble.json", ensembles=True)
        assert why is None if not said else f"its member {tmp_path / members[-1]}: {said}" in str(why)


def test_plan_and_submit_say_the_same_of_damaged_files(lab: Lab) -> None:
    assert lab.launcher("submit", lab.job(seeds(2), "first.yaml"), lab.machine(), "--engine", "native").returncode == 0
    (lab.submission() / "002-seed1" / "best.ckpt").write_text("version https://git-lfs.github.com/spec/v1\n")
    steps = f"after:\n  - {{name: vote, step: ensemble, from: {{submission: {lab.submission().name}, runs: ['*']}}}}\n"
    for command in ("plan", "submit"):
        done = lab.launcher(command, lab.job(steps))
        assert done.returncode == 65, done.stderr
        assert done.stderr.startswith("error: job.yaml:2: after.0.from: ") and "a pointer of Git LFS" in done.stderr


def test_names_of_timm_are_checked_with_the_nearest() -> None:
    (line,) = faults("matrix:\n  model.name: [resnet18, resnet43]\n  seed: [1, 2]\n")
    assert line.startswith("job.yaml:2: model.name=resnet43: timm 1.") and line.endswith("did you mean 'resnet34'?")
    assert "has no weights of this name" in faults("name: x\n", "model.name=resnet50.a1")[0]
    job = spec.load(Path("job.yaml"), ["model.name=of_tomorrow"], source=b"image: mine:1\n")
    assert expansion.expand(job, HERE), "an image of another maker may have another timm"
