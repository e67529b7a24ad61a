"""The configuration: the manual's values, every fault at once, the nearest name."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from trainer.augment import pipeline
from trainer.base.errors import ConfigError
from trainer.cli.main import main
from trainer.config import check
from trainer.config.check import transforms
from trainer.config.compose import compose
from trainer.config.keys import describe, option_names
from trainer.config.plain import from_dict, to_yaml


def fault(*overrides: str) -> str:
    with pytest.raises(ConfigError) as raised:
        compose(overrides)
    return str(raised.value)


def test_defaults_are_the_manuals_best_run() -> None:
    composed = compose()
    assert composed.choices == {"model": "resnet34", "data": "baseline_aug", "training": "baseline_768"}
    assert (composed.model.name, composed.data.img_size, composed.training.batch_size) == ("resnet34", 768, 16)


@pytest.mark.parametrize(
    ("name", "lr", "weight_decay", "batch", "warmup", "patience", "validations"),
    [
        ("baseline_768", 1e-3, 0.05, 16, 5, 10, 2),
        ("default", 1e-3, 0.05, 32, 5, 10, 1),
        ("efficientnet", 5e-4, 0.05, 16, 5, 12, 2),
        ("transformer", 5e-4, 0.1, 16, 10, 15, 2),
    ],
)
def test_training_groups_have_the_manuals_values(
    name: str, lr: float, weight_decay: float, batch: int, warmup: int, patience: int, validations: int
) -> None:
    t = compose([f"training={name}"]).training
    assert (t.lr, t.weight_decay, t.batch_size) == (lr, weight_decay, batch)
    assert (t.warmup_epochs, t.patience, t.validate_per_epoch) == (warmup, patience, validations)
    assert (t.epochs, t.num_workers, t.optimizer, t.scheduler) == (50, None, "adamw", "cosine"), "workers: by cores"
    assert (t.warmup_start, t.min_lr, t.drop_last, t.keep_top) == (0.01, 1e-6, True, 3)


def test_a_fold_counts_from_0_and_a_figure_to_monitor_must_be_made() -> None:
    assert compose(["data.folds=5", "data.fold=4"]).data.fold == 4
    assert "data.folds=5 has 0 to 4" in fault("data.folds=5", "data.fold=5")
    assert "data.val_corruption=none does not measure it" in fault(
        "data.val_corruption=none", "training.monitor=val_f1_corrupted"
    )


def test_the_six_models_are_the_manuals() -> None:
    names = {group: compose([f"model={group}"]).model.name for group in option_names("model")}
    assert names == {
        "resnet34": "resnet34",
        "resnet50": "resnet50",
        "efficientnet_b4": "efficientnet_b4",
        "convnext_base": "convnext_base",
        "swin_base_384": "swin_base_patch4_window12_384",
        "deit_base_384": "deit_base_patch16_384",
    }


@pytest.mark.parametrize("name", ["baseline_aug", "document_aug", "transformer_384"])
def test_img_size_reaches_every_size_of_the_augmentation(name: str) -> None:
    composed = compose([f"data={name}", "data.img_size=512"])
    for entries in (composed.data.train_transforms, composed.data.val_transforms):
        sizes = {v for entry in entries for args in entry.values() for k, v in args.items() if k in SIZES}
        assert sizes == {512}


SIZES = ("max_size", "min_height", "min_width", "height", "width", "size")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model=resnet43", "did you mean 'resnet34'?"),
        ("trainin.lr=1", "did you mean 'training.lr'?"),
        ("batch_size=8", "did you mean 'training.batch_size'?"),
        ("training.learning_rate=1", "did you mean 'training.lr'?"),
        ("training.leraning_rate=1", "did you mean 'training.lr'?"),
        ("training.max_epochs=1", "did you mean 'training.epochs'?"),
        ("data.image_size=64", "did you mean 'data.img_size'?"),
        ("bs=64", "did you mean 'training.batch_size'?"),
        ("training.lrr=1", "did you mean 'training.lr'?"),
        ("training.precision=half", "did you mean 'fp16'?"),
        ("device=gpu", "did you mean 'cuda'?"),
        ("training.batch_size=many", "must be a whole number"),
        ("training.batch_size=1.5", "must be a whole number"),
        ("model.weights={a: 1}", "must be a text, or null"),
        (
            "data.root=a=b",
            "this value needs quotation marks, and the shell takes away the outer ones: \"data.root='a=b'\"",
        ),
        ("data.img_size=0", "from 16 to 4096"),
        ("training.micro_batch=5", "the nearest divisor is 4"),
        ("training.lr=0", "more than 0"),
        ("data.fold=1", "data.fold=1: no such fold; there are no folds; add data.folds=5"),
        ("training.teachers=best.ckpt", "must be a list: write training.teachers=[best.ckpt]"),
        ("training.monitor=f1", "val_f1"),
        ("model=resnet34,resnet50", "launcher submit model=resnet34,resnet50"),
        ("+extra=1", "write key=value"),
        ("lr", "write lr=VALUE"),
        ("data.train_transforms=[{Rotat: {limit: 5}}]", "did you mean 'Rotate'?"),
        ("data.train_transforms=[{PadIfNeeded: {value: 255}}]", "PadIfNeeded has no argument 'value'"),
        ("data.train_transforms.3.Rotate.p=2", "from 0 to 1"),
        ("model.name=null", "model.name"),
        ("choices.model=x", "the trainer sets choices"),
    ],
)
def test_a_fault_names_the_override_and_the_way_out(override: str, said: str) -> None:
    message = fault(override)
    assert override.split("=")[0].split(".3.")[0].lstrip("+") in message
    assert said in message


def test_every_fault_is_reported_at_once() -> None:
    assert len(fault("model=resnet43", "trainin.lr=1", "foo=2").splitlines()) == 3
    assert len(fault("training.lr=-1", "data.img_size=1", "device=gpu").splitlines()) >= 3


def test_a_list_of_augmentations_can_be_changed_by_position() -> None:
    composed = compose(["data.train_transforms.3.Rotate.p=0.9"])
    assert composed.data.train_transforms[3]["Rotate"]["p"] == 0.9
    assert compose().data.train_transforms[3]["Rotate"]["p"] == 0.3  # the cached groups stay as they are


def test_yaml_round_trip() -> None:
    composed = compose(["model=swin_base_384", "data=transformer_384", "training.micro_batch=4", "seed=7"])
    assert from_dict(yaml.safe_load(to_yaml(composed))) == composed


def test_the_table_of_augmentations_is_that_of_the_pinned_albumentations() -> None:
    assert transforms() == pipeline.table()


def test_help_describes_every_key() -> None:
    rows = {key: doc for key, _, doc in describe()}
    assert {"training.micro_batch", "data.split_seed", "model.weights", "device"} <= {k for k, d in rows.items() if d}


def test_composing_loads_neither_torch_nor_pandas_nor_albumentations() -> None:
    code = "import sys; from trainer.config.compose import compose; compose(['model=resnet50']); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "pandas", "albumentations", "cv2", "launcher"} & set(loaded)


@pytest.mark.parametrize("value", ["5", "null", "HorizontalFlip", "{HorizontalFlip: {}}"])
def test_augmentations_are_a_list(value: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.train_transforms"):
        compose([f"data.train_transforms={value}"])


def test_values_without_effect_are_noted(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_DIR", "cache")
    words = ["training.focal_gamma=3", "training.mix_probability=1", "training.distill_weight=0.7", "data.cache_gb=5"]
    words += ["training.distill_temperature=3", "training.warmup_epochs=0", "training.warmup_start=0.2"]
    words += ["training.scheduler=constant", "training.min_lr=1e-5", "data.val_fraction=0.3", "data.folds=5"]
    assert main(["config", *words, "data.fast=false"]) == 0
    idle = [line.split()[1].split("=")[0] for line in capsys.readouterr().err.splitlines()]
    assert idle == list(dict.fromkeys(key for key, _, _ in check.WITHOUT_EFFECT))
    monkeypatch.delenv("CACHE_DIR")
    assert main(["config", "data.cache_gb=5"]) == 0
    assert capsys.readouterr().err == "note: data.cache_gb=5.0 has no effect without $CACHE_DIR\n"
    useful = ["training.loss=focal", "training.mixup=0.2", "training.teachers=[a.ckpt]", "training.warmup_epochs=1"]
    rest = [word for word in words if word.partition("=")[0] not in ("training.warmup_epochs", "training.scheduler")]
    monkeypatch.setenv("CACHE_DIR", "cache")
    assert main(["config", *(word for word in rest if word != "data.folds=5"), *useful]) == 0
    for name in option_names("training"):
        assert main(["config", f"training={name}", "training.teachers=[a.ckpt]"]) == 0
    assert capsys.readouterr().err == ""
