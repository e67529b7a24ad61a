"""Training: what a run leaves, and that every setting of the configuration reaches it."""

from __future__ import annotations

import csv
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score

from tests.trainer.conftest import TINY, write_documents
from trainer.base.errors import DataError
from trainer.cli.main import main
from trainer.config.compose import compose
from trainer.config.plain import from_dict
from trainer.models import checkpoint
from trainer.training import loop, step
from trainer.training import run as train_module

Train = Callable[..., int]


def summary(run: Path) -> dict[str, object]:
    loaded: dict[str, object] = json.loads((run / "metrics.json").read_text())
    return loaded


def history(run: Path) -> list[dict[str, str]]:
    with (run / "history.csv").open() as file:
        return list(csv.DictReader(file))


def weights(path: Path) -> dict[str, torch.Tensor]:
    state = torch.load(path, weights_only=True)
    found: dict[str, torch.Tensor] = state.get("model") or state["state_dict"]
    return found


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_scores_clean_and_corrupted_images_and_says_how_sure_it_is(trained: list[Path]) -> None:
    run = trained[0]
    made, kept = summary(run), checkpoint.load(run / "best.ckpt")
    with np.load(run / "val_predictions.npz") as arrays:
        targets, clean, corrupted = arrays["targets"], arrays["probabilities"], arrays["corrupted"]
    assert clean.shape == corrupted.shape and not np.allclose(clean, corrupted)
    assert made["val_f1"] == pytest.approx(f1_score(targets, clean.argmax(1), average="macro"), abs=1e-6)
    assert made["val_f1_corrupted"] == pytest.approx(f1_score(targets, corrupted.argmax(1), average="macro"), abs=1e-6)
    assert made["val_f1_mean"] == pytest.approx((made["val_f1"] + made["val_f1_corrupted"]) / 2, abs=1e-6)
    assert (made["monitor"], made["score"]) == ("val_f1_mean", made["val_f1_mean"])
    sure = made["val_f1_interval"]
    assert sure is None or 0 <= sure[0] <= made["val_f1"] <= sure[1] <= 1
    assert made["temperature"] == kept.temperature and 0.25 <= kept.temperature <= 4
    assert torch.equal(kept.validation["corrupted"], torch.from_numpy(corrupted))


@pytest.mark.parametrize("monitor", ["val_f1", "val_f1_corrupted", "val_f1_mean"])
def test_the_monitored_figure_chooses_the_checkpoint(tmp_path: Path, train: Train, monitor: str) -> None:
    words = ["training.epochs=6", "training.batch_size=8", "training.warmup_epochs=1", f"training.monitor={monitor}"]
    assert train(tmp_path / "run", *words) == 0
    rows = history(tmp_path / "run")
    best = max(float(row[monitor]) for row in rows)
    first = next(row for row in rows if float(row[monitor]) == best)
    kept = checkpoint.load(tmp_path / "run" / "best.ckpt")
    assert summary(tmp_path / "run")["score"] == best == kept.metrics[monitor]
    assert kept.metrics["step"] == int(first["step"])


def test_without_a_corrupted_copy_the_clean_figure_chooses(tmp_path: Path, train: Train) -> None:
    assert train(tmp_path / "run", "training.epochs=1", "data.val_corruption=none") == 0
    made = summary(tmp_path / "run")
    assert made["score"] == made["val_f1"] and "val_f1_corrupted" not in made
    with np.load(tmp_path / "run" / "val_predictions.npz") as arrays:
        assert "corrupted" not in arrays


def test_a_run_leaves_what_the_contract_says(trained: list[Path]) -> None:
    run = trained[0]
    for name in ("config.yaml", "best.ckpt", "last.ckpt", "metrics.json", "history.csv", "val_predictions.npz"):
        assert (run / name).stat().st_size > 0
    assert not list(run.rglob(".*")), "no temporary file stays"
    progress = json.loads((run / "progress.json").read_text())
    assert progress["epoch"] == progress["epochs"] == 3 and progress["step"] == progress["steps"]
    assert from_dict(yaml.safe_load((run / "config.yaml").read_text())).data.img_size == 64
    assert len(history(run)) == 6, "twice an epoch"


def test_figures_are_those_of_the_stored_predictions(trained: list[Path]) -> None:
    for run in trained:
        with np.load(run / "val_predictions.npz") as stored:
            predicted, targets = stored["probabilities"].argmax(1), stored["targets"]
            np.testing.assert_allclose(stored["probabilities"].sum(1), 1, atol=1e-5)
        assert summary(run)["val_f1"] == pytest.approx(f1_score(targets, predicted, average="macro"), abs=1e-5)
        assert summary(run)["val_accuracy"] == pytest.approx(accuracy_score(targets, predicted), abs=1e-5)
        best = max(history(run), key=lambda row: float(row["val_f1"]))
        assert float(best["val_f1"]) == summary(run)["val_f1"]


def test_best_ckpt_loads_safely_and_carries_all_that_prediction_needs(trained: list[Path]) -> None:
    loaded = checkpoint.load(trained[0] / "best.ckpt")
    assert loaded.class_names == ["stripes", "boxes", "discs"] and loaded.labels == ["0", "1", "2"]
    assert loaded.preprocessing["img_size"] == 64 and len(loaded.preprocessing["mean"]) == 3
    assert loaded.settings.model.name == "test_resnet"
    assert loaded.metrics["val_f1"] == summary(trained[0])["val_f1"]


def test_the_same_seed_gives_the_same_run_whatever_the_workers(tmp_path: Path, train: Train) -> None:
    words = ["training.epochs=1", "training.batch_size=8", "training.precision=fp32"]
    for name, more in (("a", []), ("b", ["training.num_workers=2"]), ("c", ["seed=7"])):
        assert train(tmp_path / name, *words, *more) == 0
    a, b, c = (weights(tmp_path / name / "last.ckpt") for name in "abc")
    assert same(a, b) and not same(a, c)
    times = ("seconds", "images_per_second")
    one, other = ({k: v for k, v in summary(tmp_path / name).items() if k not in times} for name in "ab")
    assert one == other
    assert summary(tmp_path / "a")["split_fingerprint"] == summary(tmp_path / "c")["split_fingerprint"]


def test_micro_batches_leave_the_effective_batch_as_it_is(tmp_path: Path, train: Train) -> None:
    """test_vit has no batch statistics, so that the gradients are the same sum. Images have the same partners, too."""
    words = ["model.name=test_vit", "data.img_size=160", "training.epochs=1", "training.batch_size=8"]
    words += ["training.mixup=0.4", "training.cutmix=1", "training.mix_probability=1", "training.label_smoothing=0.1"]
    words += ["training.precision=fp32", "training.optimizer=sgd", "training.lr=0.01"]
    assert train(tmp_path / "whole", *words) == 0
    assert train(tmp_path / "parts", *words, "training.micro_batch=2") == 0
    whole, parts = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("whole", "parts"))
    assert whole["progress"]["step"] == parts["progress"]["step"] == 3
    for key, value in whole["model"].items():
        torch.testing.assert_close(parts["model"][key], value, rtol=1e-4, atol=1e-6)


def test_drop_last_leaves_out_the_smaller_batch(tmp_path: Path, train: Train) -> None:
    words = ["training.epochs=1", "training.batch_size=8"]
    assert train(tmp_path / "drop", *words) == 0
    assert train(tmp_path / "keep", *words, "training.drop_last=false") == 0
    assert (summary(tmp_path / "drop")["steps"], summary(tmp_path / "keep")["steps"]) == (3, 4)  # of 28 images


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.name=test_vit", "training.grad_checkpointing=true"], ""),
        (["model.name=vgg11", "training.grad_checkpointing=true"], "timm's vgg11 does not support it"),
        (["model.drop_path=0.2", "model.name=test_convnext"], ""),
        (["model.name=vgg11", "model.drop_path=0.2"], "vgg11 has no stochastic depth"),
        (["model.weights=odd.pt"], "model.weights=odd.pt: does not fit the model"),
    ],
)
def test_what_the_model_refuses_is_said_before_the_images_are_read(
    words: list[str], said: str, tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def read(*_: object) -> None:
        raise DataError("the images are read")

    torch.save({"a": torch.zeros(2)}, tmp_path / "odd.pt")
    monkeypatch.setattr(train_module, "read_training", read)
    assert train(tmp_path / "run", *words) == (64 if said else 65)
    assert (said or "the images are read") in capsys.readouterr().err


def test_fewer_images_than_a_batch_is_a_data_error(
    tmp_path: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", "training.batch_size=64") == 65
    said = capsys.readouterr().err
    assert "training.batch_size=64: 28 training images are fewer than one batch" in said
    assert "use training.batch_size=14" in said


def test_precision_and_optimizer_reach_the_training(
    tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.dtype] = []
    optimizers: list[str] = []
    take = step.take

    def watched(made: step.Step, batches: list[object], number: int) -> int:
        hook = made.bare.get_submodule("conv1").register_forward_hook(lambda m, i, out: seen.append(out.dtype))
        optimizers.append(type(made.optimizer.optimizer).__name__)
        try:
            return take(made, batches, number)
        finally:
            hook.remove()

    monkeypatch.setattr(step, "take", watched)
    for number, (precision, optimizer) in enumerate((("bf16", "adamw"), ("fp32", "sgd"))):
        words = ["training.max_steps=1", f"training.precision={precision}", f"training.optimizer={optimizer}"]
        assert train(tmp_path / str(number), *words) == 0
        assert summary(tmp_path / str(number))["precision"] == precision
    assert seen == [torch.bfloat16, torch.float32]
    assert optimizers == ["AdamW", "SGD"]


def test_the_learning_rate_warms_up_and_follows_a_cosine() -> None:
    training = compose(["training.epochs=10", "training.warmup_epochs=2"]).training
    rates = [step.learning_rate(training, number, 10, 100) for number in range(100)]
    assert rates[0] == pytest.approx(0.01 * training.lr)
    assert rates[20] == max(rates) == pytest.approx(training.lr)
    assert rates[60] == pytest.approx((training.lr + training.min_lr) / 2, rel=1e-6)
    assert step.learning_rate(training, 100, 10, 100) == pytest.approx(training.min_lr)
    assert all(a < b for a, b in itertools.pairwise(rates[:21]))
    assert all(a > b for a, b in itertools.pairwise(rates[20:]))
    training.scheduler = "constant"
    assert step.learning_rate(training, 99, 10, 100) == training.lr


def test_the_schedule_reaches_the_optimizer(trained: list[Path]) -> None:
    rates = [float(row["lr"]) for row in history(trained[0])]
    training = from_dict(yaml.safe_load((trained[0] / "config.yaml").read_text())).training
    steps = [int(row["step"]) for row in history(trained[0])]
    expected = [step.learning_rate(training, number - 1, 3, 9) for number in steps]
    assert rates == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("steps", "times", "expected"), [(10, 2, {5, 10}), (7, 2, {4, 7}), (1, 2, {1}), (3, 1, {3}), (2, 5, {1, 2})]
)
def test_validations_are_spread_over_the_epoch(steps: int, times: int, expected: set[int]) -> None:
    assert loop.validation_marks(steps, times) == expected


def test_patience_counts_epochs_without_a_better_f1(tmp_path: Path, train: Train) -> None:
    """With weights that do not move nothing gets better after the first epoch, however often it is validated."""
    words = ["training.epochs=9", "training.patience=2", "training.lr=1e-12", "training.min_lr=0"]
    assert train(tmp_path / "stuck", *words, "training.weight_decay=0", "training.optimizer=sgd") == 0
    run = summary(tmp_path / "stuck")
    assert run["best_epoch"] <= run["epochs"] - 2 < 9 - 2  # type: ignore[operator]


def test_a_run_that_improves_is_not_stopped_by_its_own_success(tmp_path: Path, train: Train) -> None:
    """The implementation that this one replaces watched the F1 with mode min and ended as it rose."""
    words = ["training.epochs=8", "training.patience=3", "training.warmup_epochs=1", "training.batch_size=8"]
    assert train(tmp_path / "run", *words, "data.train_transforms=${data.val_transforms}") == 0
    f1 = [float(row["val_f1"]) for row in history(tmp_path / "run")]
    assert max(f1[2:]) > f1[0] and summary(tmp_path / "run")["epochs"] > 4  # type: ignore[operator]


def test_the_best_few_checkpoints_stay(tmp_path: Path, train: Train) -> None:
    assert train(tmp_path / "run", "training.epochs=4", "training.batch_size=8", "training.keep_top=3") == 0
    kept = sorted(
        (float(checkpoint.load(path).metrics["val_f1_mean"]) for path in (tmp_path / "run" / "top").iterdir()),
        reverse=True,
    )
    everything = sorted((float(row["val_f1_mean"]) for row in history(tmp_path / "run")), reverse=True)
    best = checkpoint.load(tmp_path / "run" / "best.ckpt").metrics["val_f1_mean"]
    assert [best, *kept] == everything[:3]
    assert train(tmp_path / "one", "training.epochs=2", "training.batch_size=8", "training.keep_top=1") == 0
    assert not (tmp_path / "one" / "top").exists()


def test_a_directory_with_a_run_in_it_is_not_overwritten(
    tmp_path: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", "training.max_steps=1") == 0
    before = (tmp_path / "run" / "best.ckpt").read_bytes()
    assert train(tmp_path / "run", "training.max_steps=1") == 64
    assert "resume=auto" in capsys.readouterr().err
    assert (tmp_path / "run" / "best.ckpt").read_bytes() == before


def test_a_run_directory_that_cannot_be_made_is_one_clear_error(
    tmp_path: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert train(tmp_path / "file", "training.max_steps=1") == 64
    assert "set RUN_DIR" in capsys.readouterr().err


def start(run: Path, documents: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "trainer", "train", *TINY, *words]
    environment = {**os.environ, "RUN_DIR": str(run), "DATA_DIR": str(documents)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_step(process: subprocess.Popen[str], run: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if json.loads((run / "progress.json").read_text())["step"] >= step:
                return
        except (FileNotFoundError, ValueError):
            pass
        time.sleep(0.02)
    raise AssertionError(f"no step {step}: {process.communicate(timeout=60)[0]}")


def test_sigterm_leaves_a_last_ckpt_from_which_the_run_ends_as_if_never_stopped(
    tmp_path: Path, train: Train, documents: Path
) -> None:
    words = ["training.epochs=24", "training.patience=0", "training.batch_size=4", "training.num_workers=1"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(whole, *words) == 0
    process = start(parts, documents, *words)
    wait_for_step(process, parts, 20)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and "resume=auto" in output
    stopped_at = torch.load(parts / "last.ckpt", weights_only=True)["progress"]["step"]
    assert 20 <= stopped_at < 168
    assert train(parts, *words, "resume=auto") == 0
    assert same(weights(whole / "last.ckpt"), weights(parts / "last.ckpt"))
    assert same(weights(whole / "best.ckpt"), weights(parts / "best.ckpt"))
    drop = {"seconds"}
    assert [{k: v for k, v in row.items() if k not in drop} for row in history(whole)] == [
        {k: v for k, v in row.items() if k not in drop} for row in history(parts)
    ]


OPENS = """
import os, sys, threading
def hook(event, arguments):
    name = str(arguments[0]) if event == "open" else ""
    if name.endswith(".jpg") and threading.current_thread() is not threading.main_thread():  # not to decode it
        with open(os.environ["OPENS"], "a") as log:
            log.write(name + "\\n")
sys.addaudithook(hook)
"""


def test_two_processes_reach_the_f1_of_one(tmp_path: Path, documents: Path, train: Train) -> None:
    """Distributed by gloo on the CPU: 13 validation images, each counted once, in 4 batches here and 3 there. Also in
    a job of Slurm, which has started one process."""
    uneven = write_documents(tmp_path / "uneven", per_class=21)
    with (uneven / "meta.csv").open("a") as meta:
        meta.write("3,never\n")  # a warning, of one of the processes
    words = ["model.name=test_vit", "data.img_size=160", "training.epochs=2", "training.batch_size=4"]
    words += ["training.precision=fp32", "training.optimizer=sgd", "training.lr=0.01", "device=cpu"]
    words += ["training.ema_decay=0.5"]
    assert train(tmp_path / "one", *words, data=uneven) == 0
    command = [sys.executable, "-m", "trainer", "train", *TINY, *words, "devices=2"]
    job = {"JOB_ID": "5", "JOB_NAME": "job", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    slurm = {f"SLURM_{name}": value for name, value in (job | {"NODELIST": "n1"}).items()}
    (tmp_path / "hook" / "sitecustomize.py").parent.mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(OPENS)
    path = os.pathsep.join([str(tmp_path / "hook"), *sys.path])
    environment = {**os.environ, **slurm, "DATA_DIR": str(uneven), "PYTHONPATH": path, "OPENS": str(tmp_path / "opens")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    assert any("class 'never'" in line for line in lines) and len(lines) == len(set(lines)), lines
    (made,) = (tmp_path / "outputs").iterdir()
    opens = Counter((tmp_path / "opens").read_text().splitlines())
    assert len(opens) == 63 and set(opens.values()) == {1}, "one process examines each image, for both"
    assert not (made / ".examined").exists()
    one, two = summary(tmp_path / "one"), summary(made)
    assert (one["devices"], two["devices"]) == (1, 2) and one["val_images"] == two["val_images"] == 13
    for figure in ("val_f1", "val_f1_corrupted", "val_f1_mean"):
        assert two[figure] == pytest.approx(one[figure], abs=1e-6)
    for name in ("last.ckpt", "best.ckpt"):  # of which the latter has the averaged weights
        a, b = weights(tmp_path / "one" / name), weights(made / name)
        for key, value in a.items():
            torch.testing.assert_close(b[key], value, rtol=1e-3, atol=1e-5)


def test_resuming_on_other_data_is_refused(tmp_path: Path, train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "run", "training.max_steps=1") == 0
    other = write_documents(tmp_path / "other", per_class=13)
    assert train(tmp_path / "run", "training.max_steps=2", "resume=auto", data=other) == 64
    assert "other data or another split" in capsys.readouterr().err
    assert (
        train(tmp_path / "run", "training.max_steps=2", "resume=auto", "model.name=test_vit", "data.img_size=160") == 64
    )
    assert "model.name: test_resnet → test_vit" in capsys.readouterr().err


def test_bad_data_ends_before_training_with_exit_code_65(
    tmp_path: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = write_documents(tmp_path / "bad")
    (bad / "train" / "1-004.jpg").write_bytes(b"\xff\xd8broken")
    assert train(tmp_path / "run", data=bad) == 65
    message = capsys.readouterr().err
    assert "train.csv:18: train/1-004.jpg: not a readable image" in message and "Traceback" not in message
    assert not (tmp_path / "run" / "last.ckpt").exists()


def test_out_of_device_memory_ends_with_exit_code_75(
    tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(step, "take", full)
    assert train(tmp_path / "run", "training.batch_size=8") == 75
    assert "training.micro_batch=4 (same effective batch)" in capsys.readouterr().err


def test_what_a_worker_raises_is_told_without_its_traceback(
    tmp_path: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    """One image is smaller than the crop, which no rehearsal on one image of each class can see."""
    small = write_documents(tmp_path / "small")
    Image.new("RGB", (20, 20)).save(small / "train" / "1-003.jpg")
    crop = "data.train_transforms=[{RandomCrop: {height: 56, width: 56}}, {Resize: {height: 64, width: 64}}]"
    code = train(tmp_path / "run", crop, "training.num_workers=1", "training.epochs=1", "data.split_seed=1", data=small)
    message = capsys.readouterr().err
    assert code == 1 and "Traceback" not in message and "File" not in message and "crop" in message.lower(), message


def test_a_disk_that_is_full_is_one_clear_error_and_leaves_no_torn_file(tmp_path: Path, documents: Path) -> None:
    """Files of this process may grow to 3 MB: best.ckpt fits, last.ckpt with the optimiser's state does not."""
    run = tmp_path / "run"
    limit = tmp_path / "limit.py"
    limit.write_text("import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (3 * 2**20,) * 2)")
    command = [sys.executable, "-m", "trainer", "train", *TINY, "training.max_steps=2"]
    environment = {**os.environ, "RUN_DIR": str(run), "DATA_DIR": str(documents), "WARM_PATCH": str(limit)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "last.ckpt: cannot write: the disk is full" in done.stderr, done.stderr
    assert checkpoint.load(run / "best.ckpt").class_names
    assert not (run / "last.ckpt").exists() and not list(run.glob(".*"))


def test_a_diverged_run_says_so(tmp_path: Path, train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["training.lr=99", "training.optimizer=sgd", "training.warmup_epochs=0", "training.epochs=20"]
    code = train(tmp_path / "run", *words, "training.weight_decay=90", "training.precision=fp32", "training.patience=0")
    said = capsys.readouterr().err
    assert code == 1 and "use a training.lr smaller than 99\n" in said, "the precision is fp32 already"


def test_the_default_run_directory_is_below_outputs(
    documents: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DATA_DIR", str(documents))
    assert main(["train", *TINY, "training.max_steps=1"]) == 0
    (made,) = (tmp_path / "outputs").iterdir()
    assert made.name.endswith("-test_resnet") and (made / "best.ckpt").exists()


def test_processes_that_load_images_end_with_the_run(
    train: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where something keeps the loader from being collected, as an exception of W&B's does: Python would wait for
    them at its end for good."""
    kept = []
    assemble = train_module._assemble

    def keeping(*arguments: Any) -> Any:
        kept.append(assemble(*arguments))
        return kept[-1]

    monkeypatch.setattr(train_module, "_assemble", keeping)
    assert train(tmp_path / "run", "training.epochs=1", "training.num_workers=1", "training.batch_size=8") == 0
    assert kept and multiprocessing.active_children() == []
