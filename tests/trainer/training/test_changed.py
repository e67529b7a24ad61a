"""A resumed run with another configuration: each key is honoured from the next step on, or refused; none is silent."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from launcher.record import retry
from launcher.record.request import RunRequest
from tests.trainer.conftest import TINY, draw, write_documents
from trainer.base.errors import ConfigError, StoppedError
from trainer.config.compose import compose
from trainer.config.keys import keys
from trainer.config.plain import to_dict
from trainer.config.schema import Config
from trainer.models import checkpoint, compiling
from trainer.training import keep, loop, resume, step
from trainer.training import run as train
from trainer.training.state import Run
from trainer.training.stop import Stop

Train = Callable[..., int]

WORDS = [
    *TINY,
    "training=default",
    "training.batch_size=8",
    "training.epochs=10",
    "training.warmup_epochs=1",
    "training.validate_per_epoch=2",
    "training.keep_top=2",
    "training.precision=fp32",
    "training.compile=false",
    "training.patience=0",
]
STOPPED_AT = 7
"""The step after which the run was stopped: in its third epoch of three steps, after five validations."""


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, documents: Path) -> Path:
    """The folder of a run that was stopped."""
    folder, stop, steps = tmp_path_factory.mktemp("begun") / "run", Stop(), 0

    def lap(part: str) -> None:
        nonlocal steps
        steps += part == "optimizer"
        stop.requested = steps == STOPPED_AT

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATA_DIR", str(documents))
        with pytest.raises(StoppedError):
            train.train(compose(WORDS), folder, stop, lap)
    return folder


@pytest.fixture(autouse=True)
def data_dir(documents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_DIR", str(documents))


@pytest.fixture
def resumed(begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Run]]:
    """`resumed(*words)`: the run with these words more, about to take its next step."""

    def resumed(*words: str) -> Run:
        folder, runs = tmp_path / "run", list[Run]()
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(begun, folder)
        with monkeypatch.context() as patch:
            patch.setattr(train, "fit", runs.append)
            train.train(compose([*WORDS, "resume=auto", *words]), folder, Stop())
        return runs[0]

    yield resumed


def other(key: str, value: Any) -> Any:
    """Another value than `value` for `key`."""
    named = {
        "model.name": "test_vit",
        "training.optimizer": "sgd",
        "training.loss": "focal",
        "training.monitor": "val_f1",
        "data.val_corruption": "none",
        "training.teachers": ["other.ckpt"],
        "model.weights": "other.safetensors",
    }
    if key in named:
        return named[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        changed = json.loads(json.dumps(value))
        changed[0][next(iter(changed[0]))] = {"p": 0.123}
        return changed
    return "group2" if isinstance(value, str) else 5 if value is None else value + 1


REFUSED = sorted(key for key in keys() if key not in resume.HONOURED)


@pytest.mark.parametrize("key", REFUSED)
def test_a_key_that_a_run_cannot_change_is_refused_with_both_values(begun: Path, key: str) -> None:
    config = compose([*WORDS, "resume=auto"])
    section, _, leaf = key.rpartition(".")
    holder: Any = getattr(config, section) if section else config
    old = getattr(holder, leaf)
    setattr(holder, leaf, other(key, old))
    before = sorted((path.name, path.stat().st_mtime_ns) for path in begun.rglob("*"))
    with pytest.raises(ConfigError) as raised:
        train.train(config, begun, Stop())
    message = str(raised.value)
    assert raised.value.exit_code == 64 and f"\n  {key}" in message and " → " in message
    assert "remove resume=auto and set RUN_DIR to another folder" in message
    if not isinstance(old, list):
        now = resume._text(getattr(holder, leaf))
        assert f"  {key}: {resume._text(old)} → {now}\n" in message
        assert f"leave them as they were: {key}={resume._text(old)}\n" in message
    assert before == sorted((path.name, path.stat().st_mtime_ns) for path in begun.rglob("*")), "nothing was touched"


def rates(run: Run) -> list[float]:
    """The learning rates of three steps, as the optimizer has them."""
    images, targets = torch.zeros(8, 3, 64, 64, dtype=torch.uint8), torch.zeros(8, dtype=torch.int64)
    found = []
    for number in (1, 10, 25):
        step.take(run.step, [(images, targets, None)], number)
        found.append(run.step.optimizer.param_groups[0]["lr"])
    return found


SCHEDULE = {
    "training.lr": ("training.lr=0.002", 3),
    "training.min_lr": ("training.min_lr=0.0005", 2),
    "training.scheduler": ("training.scheduler=constant", 2),
    "training.warmup_epochs": ("training.warmup_epochs=2", 3),
    "training.warmup_start": ("training.warmup_start=0.5", 1),
    "training.epochs": ("training.epochs=20", 2),
    "training.max_steps": ("training.max_steps=28", 2),
}
"""Per key: another value, and how many of the three `rates` it changes."""
RATES: list[float] = []
"""The `rates` of the run as it was begun."""


@pytest.mark.parametrize("key", SCHEDULE)
def test_another_rate_or_schedule_is_that_of_the_optimizer(resumed: Callable[..., Run], key: str) -> None:
    word, changed = SCHEDULE[key]
    if not RATES:
        RATES.extend(rates(resumed()))
    now = rates(resumed(word))
    assert sum(a != b for a, b in zip(RATES, now, strict=True)) == changed


def decays(run: Run) -> set[float]:
    return {group["weight_decay"] for group in run.step.optimizer.param_groups}


def out_of_patience(run: Run) -> bool:
    run.progress.epoch, run.progress.best_epoch = 4, 2
    return loop._out_of_patience(run)


def clipped(run: Run) -> list[Any]:
    norms: list[Any] = []
    run.step.fabric.clip_gradients = lambda *_, max_norm, **more: norms.append(max_norm)  # type: ignore[method-assign]
    rates(run)
    return norms[:1]


def pinned(run: Run) -> bool:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        return train._loader(run.config, run.loader.dataset, run.sampler, 4, 0).pin_memory  # type: ignore[arg-type]


PROBES: dict[str, tuple[str, Callable[[Run], Any], Any]] = {
    "training.weight_decay": ("training.weight_decay=0.5", decays, {0.0, 0.5}),
    "training.gradient_clip": ("training.gradient_clip=0.25", clipped, [0.25]),
    "training.patience": ("training.patience=2", out_of_patience, True),
    "training.keep_top": ("training.keep_top=1", lambda run: (run.folder / "top").exists(), False),
    "training.micro_batch": ("training.micro_batch=2", lambda run: (run.accumulate, run.loader.batch_size), (4, 2)),
    "training.num_workers": ("training.num_workers=1", lambda run: run.loader.num_workers, 1),
    "training.pin_memory": ("training.pin_memory=false", pinned, False),
    "training.precision": ("training.precision=bf16", lambda run: run.step.fabric._precision.precision, "bf16-mixed"),
    "training.channels_last": (
        "training.channels_last=false",
        lambda run: run.step.normalized.memory_format,
        torch.contiguous_format,
    ),
    "training.grad_checkpointing": (
        "training.grad_checkpointing=true",
        lambda run: run.step.bare.grad_checkpointing,
        True,
    ),
    "device": ("device=cpu", lambda run: run.config.device, "cpu"),
    "devices": ("devices=1", lambda run: run.config.devices, 1),
}


@pytest.mark.parametrize("key", PROBES)
def test_another_value_of_a_key_is_in_use_after_a_resume(
    resumed: Callable[..., Run], capsys: pytest.CaptureFixture[str], key: str
) -> None:
    word, probe, expected = PROBES[key]
    run = resumed(word)
    assert f"from here on with another {key}: " in capsys.readouterr().out
    assert probe(run) == expected
    (change,) = (change for change in run.progress.changes if change["key"] == key)
    assert change["new"] == word.partition("=")[2] and change["after_step"] == STOPPED_AT


def test_compile_is_asked_for_after_a_resume(resumed: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    wishes = []
    model_for = compiling.model_for

    def asked(wish: bool | None, *rest: Any) -> Any:
        wishes.append(wish)
        return model_for(False, *rest)

    monkeypatch.setattr(compiling, "model_for", asked)
    resumed()
    resumed("training.compile=true")
    assert wishes == [False, True]


def test_the_data_may_move_and_may_be_read_in_another_way(
    resumed: Callable[..., Run], documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(documents, moved)
    run = resumed(f"data.root={moved}", "data.format=csv")
    assert run.table.paths[0].is_relative_to(moved) and run.provenance["data_folder"] == str(moved)
    assert "+" not in run.provenance["data_fingerprint"]
    seen: dict[str, Any] = {}
    shared = train.decode.shared
    monkeypatch.setattr(train.decode, "shared", lambda *a: shared(*a[:3], seen.setdefault("gb", a[3]), *a[4:]))
    refuse = train.leaks.refuse
    monkeypatch.setattr(train.leaks, "refuse", lambda *a: refuse(*a[:3], seen.setdefault("leaks", a[3])))
    resumed("data.cache_gb=3", "data.allowed_leaks=[0-000.jpg]")
    assert seen == {"gb": 3, "leaks": ["0-000.jpg"]}


def test_more_validations_per_epoch_and_another_group_are_those_of_the_rest(
    begun: Path, tmp_path: Path, train: Train
) -> None:
    shutil.copytree(begun, tmp_path / "run")
    words = [
        word for word in WORDS if word not in TINY and not word.startswith(("training.val", "training=", "training.ep"))
    ]
    assert train(tmp_path / "run", *words, "training.validate_per_epoch=3", "training.epochs=3", "resume=auto") == 0
    with (tmp_path / "run" / "history.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [2, 3, 5, 6, 7, 8, 9]
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert found["training"] == "baseline_768"
    assert {(c["key"], c["old"], c["new"]) for c in found["changed_on_resume"]} == {
        ("choices.training", "default", "baseline_768"),
        ("training.validate_per_epoch", "2", "3"),
        ("training.epochs", "10", "3"),
    }


def test_every_key_is_tried_here() -> None:
    tried = {*REFUSED, *SCHEDULE, *PROBES, "training.compile", "resume", "choices", "training.validate_per_epoch"}
    tried |= {"data.root", "data.format", "data.cache_gb", "data.allowed_leaks"}
    assert tried == set(keys()) and not set(REFUSED) & resume.HONOURED


def test_keys_that_one_version_lacks_count_with_their_default() -> None:
    now = dataclasses.asdict(Config())
    old = json.loads(json.dumps(now))
    del old["training"]["mixup"], old["model"]["drop_path"]
    assert not resume.changes(old, now)
    now["training"]["mixup"] = 0.4
    old["data"]["removed"] = {"deep": [1, 2]}
    old["data"]["val_transforms"] = [{"CLAHE": {"p": 1, "clip_limit": [1, 4]}}, "Blur"]
    now["data"]["val_transforms"] = [{"CLAHE": {"p": 1, "clip_limit": [1, 5]}}, "Blur"]
    old["data"]["train_transforms"], now["data"]["train_transforms"] = ["A", "B"], ["A", "C", "B"]
    found = {str(change) for change in resume.changes(old, now)}
    assert found == {
        "training.mixup: 0.0 → 0.4",
        "data.removed: {deep: [1, 2]} → (missing)",
        "data.val_transforms.0.CLAHE.clip_limit.1: 4 → 5",
        "data.train_transforms.1: (missing) → C",
    }
    assert not any(change.honoured for change in resume.changes(old, now))


@pytest.mark.parametrize("group", ["baseline_aug", "document_aug"])
def test_sizes_that_follow_from_the_image_size_are_not_listed_beside_it(group: str) -> None:
    first, later = (to_dict(compose([f"data={group}", f"data.img_size={size}"])) for size in (64, 96))
    assert [str(change) for change in resume.changes(first, later)] == ["data.img_size: 64 → 96"]
    later["data"]["val_transforms"][0]["LongestMaxSize"]["max_size"] = 80
    assert [str(change) for change in resume.changes(first, later)][1:] == [
        "data.val_transforms.0.LongestMaxSize.max_size: 64 → 80"
    ]


def test_weights_and_teachers_may_move_but_not_change(tmp_path: Path) -> None:
    for name, text in (("a.ckpt", "x"), ("b.ckpt", "x"), ("c.ckpt", "y")):
        (tmp_path / name).write_text(text)
    first, moved, changed = (
        dataclasses.asdict(Config()) | {"training": {"teachers": [str(tmp_path / name)]}}
        for name in ("a.ckpt", "b.ckpt", "c.ckpt")
    )
    files = resume.digests(first)
    assert not resume.changes(first, moved, files)
    assert [change.key for change in resume.changes(first, changed, files)] == ["training.teachers.0"]
    assert resume.changes(first, moved, {})
    (tmp_path / "a.ckpt").write_text("another run has written its best.ckpt there")
    (replaced,) = resume.changes(first, first, files)
    assert replaced.key == "training.teachers.0" and not replaced.honoured
    assert str(replaced).startswith(
        f"training.teachers.0: {tmp_path / 'a.ckpt'} of SHA-256 2d711642b726 → the file has "
    )
    (tmp_path / "a.ckpt").unlink()
    assert not resume.changes(first, first, files), "its absence is an error of its own"


@pytest.mark.parametrize(
    ("change", "said"), [("order", "the images in another order"), ("labels", "other labels of the")]
)
def test_data_of_one_split_with_another_order_or_other_labels_are_refused(
    change: str, said: str, tmp_path: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    """The split of these data does not depend on the order of the rows, so its fingerprint is the same."""
    root = write_documents(tmp_path / "data")
    first, *lines = (root / "train.csv").read_text().splitlines()
    rows = [f"{line},{'val' if '-01' in line else 'train'}" for line in lines]
    (root / "train.csv").write_text("\n".join([f"{first},split", *rows]))
    assert train(tmp_path / "run", "training.max_steps=1", "training.batch_size=8", data=root) == 0
    if change == "order":
        (root / "train.csv").write_text("\n".join([f"{first},split", *reversed(rows)]))
    else:
        for name in ("train.csv", "meta.csv"):
            text = (root / name).read_text()
            for label in "012":
                text = text.replace(f",{label},", f",1{label},").replace(f"\n{label},", f"\n1{label},")
            (root / name).write_text(text)
    again = ["training.max_steps=2", "training.batch_size=8", "resume=auto"]
    assert train(tmp_path / "run", *again, data=root) == 64
    assert f"last.ckpt has {said}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("training.epochs=2", r"training\.epochs=2: the run has trained 7 steps already .* use training\.epochs=3 or"),
        ("training.max_steps=6", r"training\.max_steps=6: the run has trained 7 steps .* use training\.max_steps=7 or"),
    ],
)
def test_less_than_was_trained_is_refused(resumed: Callable[..., Run], word: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        resumed(word)


def test_a_weight_decay_of_zero_has_the_same_groups(resumed: Callable[..., Run]) -> None:
    assert decays(resumed("training.weight_decay=0")) == {0.0}
    assert len(resumed("training.weight_decay=0").step.optimizer.param_groups) == 2


# -- resume=OTHER/last.ckpt


def steps_of(folder: Path) -> dict[str, int]:
    return {
        path.name: checkpoint.load(path).metrics["step"] for path in [folder / "best.ckpt", *(folder / "top").glob("*")]
    }


def test_another_folder_gets_the_best_checkpoints_of_the_first(begun: Path, tmp_path: Path, train: Train) -> None:
    words = [word for word in WORDS if word not in TINY]
    target = tmp_path / "new"
    assert train(target, *words, f"resume={begun}/last.ckpt", f"training.max_steps={STOPPED_AT}") == 0
    progress = keep.read_last(target / "last.ckpt")["progress"]
    made = json.loads((target / "metrics.json").read_text())
    assert (target / "best.ckpt").is_file() and (target / "val_predictions.npz").is_file()
    kept = steps_of(target)
    assert len(kept) == len(progress["top"]) == 2
    assert [kept.get(name, kept["best.ckpt"]) for _, name in progress["top"]] == [
        int(name.split("-step")[1][:6]) for _, name in progress["top"]
    ]
    assert checkpoint.load(target / "best.ckpt").metrics["val_f1"] == made["val_f1"]
    assert (target / "history.csv").is_file()
    assert sorted(path.name for path in begun.rglob("*.ckpt")) != [], "the first run keeps its own"


def test_a_best_checkpoint_that_is_lost_is_replaced_and_said(
    begun: Path, tmp_path: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*(word for word in WORDS if word not in TINY), f"training.max_steps={STOPPED_AT}"]
    alone, second = tmp_path / "alone", tmp_path / "second"
    alone.mkdir()
    shutil.copy(begun / "last.ckpt", alone)
    assert train(tmp_path / "a", *words, f"resume={alone}/last.ckpt") == 0
    said = capsys.readouterr().out
    assert "the best checkpoint so far, is not in" in said
    found = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert checkpoint.load(tmp_path / "a" / "best.ckpt").metrics["step"] == STOPPED_AT
    assert checkpoint.load(tmp_path / "a" / "best.ckpt").metrics["val_f1"] == found["val_f1"]
    shutil.copytree(begun, second)
    (second / "best.ckpt").unlink()
    assert train(tmp_path / "b", *words, f"resume={second}/last.ckpt") == 0
    assert "takes its place" in capsys.readouterr().out
    found = json.loads((tmp_path / "b" / "metrics.json").read_text())
    best = checkpoint.load(tmp_path / "b" / "best.ckpt")
    assert (best.metrics["val_f1"], best.metrics["epoch"]) == (found["val_f1"], found["best_epoch"])


def test_a_folder_with_a_run_of_its_own_takes_no_other(
    begun: Path, tmp_path: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(begun, tmp_path / "run")
    words = [word for word in WORDS if word not in TINY]
    assert train(tmp_path / "run", *words, f"resume={begun}/last.ckpt") == 64
    assert "has a run of its own already; continue that one with resume=auto" in capsys.readouterr().err


def test_a_process_that_was_killed_between_best_and_last_loses_neither(
    begun: Path, tmp_path: Path, resumed: Callable[..., Run]
) -> None:
    """As on a GPU, which may not repeat the best: best.ckpt is newer than last.ckpt, and the former best is in top/."""
    run = resumed("training.keep_top=1")
    (_, name), *_ = run.progress.top
    before = checkpoint.load(run.folder / "best.ckpt")
    (run.folder / "top").mkdir()
    shutil.copy(run.folder / "best.ckpt", run.folder / "top" / name)
    checkpoint.save(run.folder / "best.ckpt", dataclasses.replace(before, metrics={**before.metrics, "step": 99}))
    progress = json.loads(json.dumps(vars(run.progress)))
    assert resume.carry(run.folder, run.folder, progress) == ""
    assert checkpoint.load(run.folder / "best.ckpt").metrics["step"] == before.metrics["step"]
    assert not (run.folder / "top").exists()


@pytest.mark.parametrize("first", [[], ["resume=../other/last.ckpt"]])
def test_a_run_continues_with_what_the_launcher_changes_in_a_later_attempt(first: list[str]) -> None:
    """The launcher gives a later attempt another micro-batch, the assigned kind of device and resume=auto; the trainer
    refuses nothing of it."""
    words = ["model=resnet34", "training.batch_size=16", *first]
    request = RunRequest("001-x", 1, "train", ["train", *words], config={"batch_size": 16})
    events = [{"state": "queued", "micro_batch": 4}, {"state": "starting", "devices": ["GPU-1"]}]
    (_, *later) = retry.command(request, events)
    assert {"training.micro_batch=4", "device=cuda"} <= set(later)
    before, now = to_dict(compose(words)), to_dict(compose([*later, "resume=auto"]))
    found = resume.changes(before, now)
    assert {change.key for change in found} == {"training.micro_batch", "device", "resume"}
    assert all(change.honoured for change in found)


def test_code_and_data_of_several_attempts_are_joined() -> None:
    assert resume.joined(None, "a") == resume.joined("a", "a") == "a"
    assert resume.joined("a", "b") == resume.joined("a+b", "b") == resume.joined("a+b", "a") == "a+b"


def test_images_that_changed_are_said_and_recorded(
    begun: Path, documents: Path, tmp_path: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(documents, changed)
    draw(0, 12345).save(changed / "train" / "0-000.jpg")
    shutil.copytree(begun, tmp_path / "run")
    words = [word for word in WORDS if word not in TINY]
    assert train(tmp_path / "run", *words, f"training.max_steps={STOPPED_AT}", "resume=auto", data=changed) == 0
    assert "warning: the training images have changed since the first start" in capsys.readouterr().out
    assert "+" in json.loads((tmp_path / "run" / "metrics.json").read_text())["data_fingerprint"]
