"""Checkpoints of Lightning, as the manual's implementation leaves them: read safely, or refused in one sentence."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from omegaconf import OmegaConf

from trainer.base.errors import ConfigError
from trainer.cli.main import main
from trainer.config.compose import compose
from trainer.models import build, checkpoint, pretrained


@pytest.fixture(autouse=True)
def data_dir(documents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_DIR", str(documents))


def lightning(
    path: Path, settings: Any, name: str = "test_resnet", prefix: str = "model.", classes: int = 3, **more: Any
) -> Path:
    """A checkpoint as Lightning's trainer writes it."""
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=classes)
    state = {f"{prefix}{key}": value for key, value in net.state_dict().items()}
    optimizer = torch.optim.AdamW(net.parameters())
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(
        {
            "epoch": 3,
            "global_step": 12,
            "pytorch-lightning_version": "2.4.0",
            "state_dict": state | more,
            "loops": {"fit_loop": {"state_dict": {}}},
            "callbacks": {"ModelCheckpoint{'monitor': 'val_f1'}": {"best_model_path": "/x/best.ckpt"}},
            "optimizer_states": [optimizer.state_dict()],
            "lr_schedulers": [{"last_epoch": 3}],
            "hparams_name": "kwargs",
            "hyper_parameters": settings,
        },
        path,
    )
    return path


SETTINGS = {"model_name": "test_resnet", "pretrained": True, "num_classes": 3, "learning_rate": 1e-3, "epochs": 50}


def test_predict_takes_the_manuals_champion(
    tmp_path: Path, documents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    champion = lightning(
        tmp_path / "checkpoints" / "champion" / "best_model.ckpt", SETTINGS, **{"criterion.weight": torch.ones(3)}
    )
    assert main(["predict", f"checkpoint={champion}"]) == 0
    said = capsys.readouterr().out
    assert "test_resnet of Lightning with 3 classes" in said and "768 px (the manual's size" in said
    with Path("submission.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 and {row["target"] for row in rows} <= {"0", "1", "2"}
    loaded = checkpoint.load(champion)
    assert loaded.preprocessing["mean"] == [0.485, 0.456, 0.406]
    assert loaded.preprocessing["transforms"] == compose(["data.img_size=768"]).data.val_transforms
    net = build.restore(loaded.settings.model, 3, 768, loaded.state_dict)
    expected = timm.create_model("test_resnet", num_classes=3)
    expected.load_state_dict(dict(loaded.state_dict))
    image = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(net.eval()(image), expected.eval()(image))


@pytest.mark.parametrize("prefix", ["", "model.", "net.backbone.", "model._orig_mod."])
def test_the_module_may_call_its_model_anything(tmp_path: Path, prefix: str) -> None:
    loaded = checkpoint.load(lightning(tmp_path / "best.ckpt", SETTINGS, prefix=prefix))
    assert loaded.state_dict.keys() == timm.create_model("test_resnet").state_dict().keys()


def test_settings_of_omegaconf_are_read_without_its_code(tmp_path: Path) -> None:
    settings = OmegaConf.create({"cfg": {"model": {"model_name": "test_vit"}, "data": {"image_size": 160}}})
    path = lightning(tmp_path / "best.ckpt", settings, name="test_vit")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    loaded = checkpoint.load(path)
    assert loaded.settings.model.name == "test_vit" and loaded.preprocessing["img_size"] == 160


def test_a_file_with_weights_and_hyperparameters_alone_is_one_too(tmp_path: Path) -> None:
    state = {
        f"model.{key}": value for key, value in timm.create_model("test_resnet", num_classes=3).state_dict().items()
    }
    settings = {"model": {"name": "test_resnet"}, "data": {"img_size": 64}}
    torch.save({"state_dict": state, "hyper_parameters": settings}, tmp_path / "lit.ckpt")
    loaded = checkpoint.load(tmp_path / "lit.ckpt")
    assert loaded.settings.model.name == "test_resnet" and loaded.preprocessing["img_size"] == 64
    assert "lightning" in loaded.versions


@pytest.mark.parametrize("place", ["", "state_dict", "model_state_dict", "model"])
def test_weights_alone_are_refused_with_what_they_lack(tmp_path: Path, place: str) -> None:
    weights = timm.create_model("test_resnet", num_classes=3).state_dict()
    torch.save({place: weights, "epoch": 3} if place else weights, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=r"neither the name of their model nor their classes; .*model\.weights=FILE"):
        checkpoint.load(tmp_path / "w.pth")


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("evil"),))


def test_no_code_of_a_checkpoint_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = lightning(tmp_path / "best.ckpt", {**SETTINGS, "evil": Evil()})
    assert main(["predict", f"checkpoint={path}"]) in (0, 64)
    assert not Path("evil").exists() and "Traceback" not in capsys.readouterr().err


def test_the_size_comes_from_where_it_is_known(tmp_path: Path) -> None:
    path = lightning(tmp_path / "best.ckpt", SETTINGS)
    (tmp_path / "experiment_info.json").write_text(
        json.dumps({"config": {"data": {"img_size": 512, "augmentation": {"val": [{"type": "L", "max_size": 384}]}}}})
    )
    assert checkpoint.load(path).preprocessing["img_size"] == 384
    assert (
        checkpoint.load(lightning(tmp_path / "b.ckpt", SETTINGS | {"img_size": 224})).preprocessing["img_size"] == 224
    )
    vit = lightning(tmp_path / "other" / "vit.ckpt", {"model_name": "test_vit"}, name="test_vit")
    assert checkpoint.load(vit).preprocessing["img_size"] == 160


@pytest.mark.parametrize(
    ("settings", "more", "said"),
    [
        ({"lr": 1}, {}, "whose hyperparameters do not name a model"),
        (
            {"model_name": "resnet43"},
            {},
            "of Lightning of resnet43, which timm does not know (did you mean 'resnet34'?)",
        ),
        ({"model_name": "test_vit"}, {}, "its module is not timm's test_vit alone"),
        (SETTINGS, {"head.2.weight": torch.ones(2, 2)}, "its module has more layers than timm's test_resnet: head.2"),
        (SETTINGS, {"model.fc.extra": torch.ones(2)}, "its module has more layers than timm's test_resnet: model.fc"),
    ],
)
def test_another_module_is_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: Any, more: dict[str, Any], said: str
) -> None:
    path = lightning(tmp_path / "best.ckpt", settings, **more)
    for command in (["predict", f"checkpoint={path}"], ["ensemble", "--checkpoints", str(path), str(path)]):
        assert main(command) == 64
        error = capsys.readouterr().err
        assert said in error and "model.weights=FILE" in error and len(error.splitlines()) == 1


def test_analyze_says_what_a_lightning_checkpoint_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = lightning(tmp_path / "best.ckpt", SETTINGS)
    for command in ("analyze", "label-errors"):
        assert main([command, "--checkpoint", str(path)]) == 64
        assert "has no validation predictions to analyse; predict with it, or" in capsys.readouterr().err


def test_an_ensemble_has_members_of_both_kinds(
    tmp_path: Path, trained: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = lightning(tmp_path / "best.ckpt", SETTINGS | {"img_size": 64})
    ours = str(trained[0] / "best.ckpt")
    assert main(["ensemble", "--checkpoints", str(path), ours]) == 0
    found = json.loads(Path("metrics.json").read_text())
    assert found["class_names"] == ["stripes", "boxes", "discs"] and found["val_f1"] is None
    assert "a member has no validation predictions" in capsys.readouterr().out
    assert main(["ensemble", "--checkpoints", ours, str(path), "--method", "rank_averaging"]) == 64


def test_training_starts_from_the_weights_of_a_lightning_checkpoint(tmp_path: Path) -> None:
    path = lightning(tmp_path / "best.ckpt", SETTINGS, classes=17)
    net = timm.create_model("test_resnet", num_classes=3)
    pretrained.load_file(net, path)
    stored = torch.load(path, weights_only=True)["state_dict"]
    assert torch.equal(net.state_dict()["conv1.0.weight"], stored["model.conv1.0.weight"])
