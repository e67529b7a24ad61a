"""Ensembles: folds that vote as one, weights that are guarded against chance, predictions that are kept."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from tests.trainer.conftest import TINY
from trainer.base import provenance
from trainer.cli.main import main
from trainer.models import build, checkpoint, ensemble_file
from trainer.predict import predictions
from trainer.scores import calibration

KEYS = ("val_f1", "val_f1_corrupted", "val_f1_mean", "score", "monitor", "ece")


@pytest.fixture(autouse=True)
def data_dir(documents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_DIR", str(documents))


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory, documents: Path) -> list[Path]:
    """best.ckpt of the three folds of one model."""
    root = tmp_path_factory.mktemp("folds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATA_DIR", str(documents))
        for fold in range(3):
            patch.setenv("RUN_DIR", str(root / str(fold)))
            words = ["data.folds=3", f"data.fold={fold}", "training.max_steps=2", "training.batch_size=8"]
            assert main(["train", *TINY, *words]) == 0
    return [root / str(fold) / "best.ckpt" for fold in range(3)]


def changed(source: Path, place: Path, **changes: Any) -> Path:
    checkpoint.save(place, replace(checkpoint.load(source), **changes))
    return place


def seeded(source: Path, place: Path, seed: int) -> Path:
    """The same checkpoint as if trained with another seed."""
    return changed(source, place, config={**checkpoint.load(source).config, "seed": seed})


def metrics(folder: Path = Path()) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return found


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as stored:
        return dict(stored)


def no_model(*_: object, **__: object) -> None:
    raise AssertionError("a model was made")


def test_the_folds_of_a_model_are_one_member_that_is_scored_on_all_training_images(
    folds: list[Path], documents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ensemble", "--checkpoints", *map(str, reversed(folds)), "--weights", "greedy"]) == 0
    said = capsys.readouterr().out
    assert "note: --weights greedy: not searched, because there is only one member" in said
    assert "soft_voting of 1 (3 checkpoints), equal weights: val_f1" in said
    summary, held = metrics(), arrays(Path("val_predictions.npz"))
    assert sorted(held["ids"]) == sorted(path.name for path in (documents / "train").iterdir())
    parts = [checkpoint.load(path) for path in folds]
    for key, name in (("probabilities", "val_f1"), ("corrupted", "val_f1_corrupted")):
        own = [calibration.temper(p.validation[key].numpy(), p.temperature) for p in parts]
        np.testing.assert_allclose(held[key], np.concatenate(own), atol=1e-6)
        expected = f1_score(held["targets"], held[key].argmax(1), average="macro")
        assert summary[name] == pytest.approx(expected, abs=1e-5)
        sure = summary[f"{name}_interval"]
        assert sure is None or sure[0] <= summary[name] <= sure[1]
    assert all(summary[key] is not None for key in KEYS) and summary["score"] == summary["val_f1_mean"]
    assert summary["split_fingerprint"] == parts[0].validation["folds_fingerprint"]
    (entry,) = summary["out_of_fold"]
    assert entry["folds"] == 3 and entry["val_f1"] == summary["val_f1"]
    assert summary["temperature"] == 1 and not any("ece_calibrated" in found for found in (summary, entry))
    pooled = np.concatenate([held["probabilities"], held["corrupted"]])
    assert summary["ece"] == pytest.approx(calibration.expected_error(pooled, np.tile(held["targets"], 2)), abs=1e-5)

    for fold, path in enumerate(folds):
        assert main(["predict", f"checkpoint={path}", f"output={fold}"]) == 0
    mean = np.mean([arrays(Path(str(fold)) / "predictions.npz")["probabilities"] for fold in range(3)], axis=0)
    np.testing.assert_allclose(arrays(Path("predictions.npz"))["probabilities"], mean, atol=1e-6)

    content = json.loads(Path("ensemble.json").read_text())
    Path("ensemble.json").write_text(json.dumps(content | {"temperature": 0.5}))
    assert ensemble_file.read(Path("ensemble.json")).temperature == 1, "an earlier version fitted one"


def test_two_models_of_folds_take_a_weight_each(
    folds: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = [seeded(path, tmp_path / f"other{fold}.ckpt", 7) for fold, path in enumerate(folds)]
    words = ["ensemble", "--checkpoints", *map(str, [*folds, *other]), "--weights", "3", "1"]
    assert main(words) == 0
    assert "soft_voting of 2 (6 checkpoints), given weights: val_f1" in capsys.readouterr().out
    summary = metrics()
    assert [(entry["name"].rsplit(" ", 1)[1], entry["weight"]) for entry in summary["out_of_fold"]] == [
        ("42)", 3),
        ("7)", 1),
    ]
    assert summary["weighting"] == "given" and summary["equal_vote"]["val_f1"] is not None
    assert ensemble_file.read(Path("ensemble.json")).shares == pytest.approx([1 / 4] * 3 + [1 / 12] * 3)
    before = Path("submission.csv").read_bytes()
    Path("predictions.npz").unlink()
    assert main(["predict", "checkpoint=ensemble.json", "output=again"]) == 0
    assert Path("again/submission.csv").read_bytes() == before
    assert main([*words, "1"]) == 64


def test_predictions_of_another_model_are_not_lost_in_silence(
    trained: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (shutil.copy(run / "best.ckpt", f"{run.name}.ckpt") for run in trained)
    assert main(["ensemble", "--checkpoints", first, second, "output=vote"]) == 0
    names = ("submission.csv", "predictions.npz", "metrics.json")
    before = [Path("vote", name).read_bytes() for name in names]
    assert main(["predict", "checkpoint=vote/ensemble.json", "output=vote"]) == 0
    assert [Path("vote", name).read_bytes() for name in names[::2]] == before[::2], "its figures stay"
    capsys.readouterr()
    assert main(["predict", f"checkpoint={first}", "output=vote"]) == 64
    assert "belongs to the ensemble" in (said := capsys.readouterr().err) and "--output DIR" in said
    assert [Path("vote", name).read_bytes() for name in names[::2]] == before[::2]

    for source, replaced in ((first, False), (second, True)):
        assert main(["predict", f"checkpoint={source}", "output=single"]) == 0
        assert ("single/submission.csv of another model" in capsys.readouterr().out) == replaced
        assert metrics(Path("single"))["checkpoint"] == source

    shutil.copytree(trained[0], "run")
    figures = metrics(Path("run"))
    assert main(["predict", "checkpoint=run/best.ckpt", "output=run"]) == 0
    assert Path("run/submission.csv").exists() and metrics(Path("run")) == figures, "a run's figures stay"


def test_a_missing_fold_is_named_and_leaves_no_validation_figure(
    folds: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("two").mkdir()
    earlier = [Path("two") / name for name in ("ensemble.json", "val_predictions.npz", "submission.csv")]
    for file in earlier:
        file.write_text("an earlier ensemble's")
    assert main(["ensemble", "--checkpoints", *map(str, folds[:2]), "--output", "two"]) == 0
    summary = metrics(Path("two"))
    assert summary["val_f1"] is None and "fold 2 of test_resnet" in summary["why_no_val"]
    assert not Path("two/val_predictions.npz").exists(), "an earlier ensemble's would pass for this one's"
    assert Path("two/submission.csv").read_text().startswith("ID,target\n")
    monkeypatch.delenv("DATA_DIR")
    assert main(["ensemble", "--checkpoints", *map(str, folds[1:]), "--output", "two"]) == 0
    assert not Path("two/submission.csv").exists() and not Path("two/predictions.npz").exists()


def test_folds_that_do_not_belong_together_are_told(
    folds: list[Path], trained: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = [
        changed(
            path,
            tmp_path / f"foreign{fold}.ckpt",
            validation={
                **checkpoint.load(path).validation,
                "folds_fingerprint": "another",
                "split_fingerprint": f"another {fold}",
            },
        )
        for fold, path in enumerate(folds)
    ]
    for others, why in (
        (foreign, "other images or another cut"),
        ([trained[0] / "best.ckpt"], "is not one of their folds"),
    ):
        assert main(["ensemble", "--checkpoints", *map(str, [*folds, *others]), "--weights", "greedy"]) == 64
        assert why in capsys.readouterr().err
    twice = changed(folds[0], tmp_path / "twice.ckpt", metrics={})
    assert main(["ensemble", "--checkpoints", *map(str, [*folds, twice])]) == 64
    assert "fold 0 of the same model as" in capsys.readouterr().err


def drawn(source: Path, folder: Path, skills: list[float], images: int = 150, seed: int = 0) -> list[Path]:
    """Members that are as good as `skills` say on drawn validation images of three classes."""
    chance = np.random.default_rng(seed)
    targets = chance.integers(0, 3, images)
    hard = chance.normal(size=(2, images, 3))  # the same for all members: their mistakes are alike in part
    made = []
    for number, skill in enumerate(skills):
        logits = hard + chance.normal(size=(2, images, 3))
        logits[:, np.arange(images), targets] += skill
        clean, corrupted = torch.from_numpy(logits).float().softmax(2)
        validation = {
            "ids": [f"{i}.jpg" for i in range(images)],
            "targets": torch.from_numpy(targets),
            "probabilities": clean,
            "corrupted": corrupted,
            "split_fingerprint": "drawn",
        }
        made.append(changed(source, folder / f"{number}.ckpt", validation=validation, calibration={}))
    return made


def test_weights_that_are_found_leave_a_bad_member_out_and_report_what_cross_validation_says(
    trained: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    members = drawn(trained[0] / "best.ckpt", tmp_path, [2.5, 0.0, 2.5])
    words = [
        "ensemble",
        "--checkpoints",
        *map(str, members),
        "--weights",
        "optimised",
        f"data.root={tmp_path / 'empty'}",
    ]
    assert main(words) == 0
    assert capsys.readouterr().out.count("note: --weights optimised was removed") == 1
    summary = metrics()
    given = [entry["weight"] for entry in summary["members"]]
    assert summary["weighting"] == summary["weighting_asked"] == "greedy"
    assert given[1] < 0.15 and sum(given) == pytest.approx(1, abs=1e-3)
    assert summary["score"] > summary["equal_vote"]["score"]
    assert summary["score"] == summary["honest"]["score"] <= summary["in_sample"]["score"]
    held = arrays(Path("val_predictions.npz"))
    assert f1_score(held["targets"], held["probabilities"].argmax(1), average="macro") == pytest.approx(
        summary["honest"]["val_f1"], abs=1e-5
    )


def test_weights_that_fit_chance_alone_give_way_to_equal_ones(
    trained: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    members = drawn(trained[0] / "best.ckpt", tmp_path, [2.0] * 4, images=80, seed=1)
    words = ["ensemble", "--checkpoints", *map(str, members), "--weights", "greedy", f"data.root={tmp_path / 'empty'}"]
    assert main(words) == 0
    summary = metrics()
    assert summary["honest"]["score"] < summary["equal_vote"]["score"] == summary["score"]
    assert summary["weighting"] == "equal" and {entry["weight"] for entry in summary["members"]} == {1.0}
    said = capsys.readouterr().out
    assert "the equal weights are kept" in said
    assert all(f"  member {path}: val_f1" in said for path in members), "not as they were typed"


def test_a_checkpoint_in_two_files_is_noted_with_its_votes(
    trained: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a glob finds it that also has the champion's folder."""
    one, other, copied = trained[0] / "best.ckpt", trained[1] / "best.ckpt", tmp_path / "best_model.ckpt"
    shutil.copy(one, copied)
    for members, noted in (([one, other, copied], True), ([one, other], False)):
        assert main(["ensemble", "--checkpoints", *map(str, members), "--output", "out"]) == 0
        said = f"note: {one} and {copied} are one checkpoint, which has 2 votes; name it once for one vote"
        assert (said in capsys.readouterr().out) == noted


def test_the_ensembles_temperature_is_kept_and_used(trained: list[Path], tmp_path: Path) -> None:
    members = drawn(trained[0] / "best.ckpt", tmp_path, [2.0, 2.0])
    assert main(["ensemble", "--checkpoints", *map(str, members)]) == 0
    held, summary = arrays(Path("val_predictions.npz")), json.loads(Path("ensemble.json").read_text())
    both = np.concatenate([held["probabilities"], held["corrupted"]])
    targets = np.tile(held["targets"], 2)
    assert summary["temperature"] == calibration.fit_temperature(both, targets) != 1
    cooler = calibration.temper(both, summary["temperature"])
    assert summary["ece_calibrated"] == pytest.approx(calibration.expected_error(cooler, targets), abs=1e-5)


def test_what_was_predicted_once_no_model_predicts_again(
    trained: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "cache"))
    first, second = (str(run / "best.ckpt") for run in trained)
    assert main(["predict", f"checkpoint={first}", "tta=light", "output=one"]) == 0
    assert main(["ensemble", "--checkpoints", first, second, "--tta", "light", "--output", "vote"]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(build, "create", no_model)
        words = ["--method", "rank_averaging", "--tta", "light", "--output", "ranks"]
        assert main(["ensemble", "--checkpoints", second, first, *words]) == 0
        assert main(["predict", "checkpoint=vote/ensemble.json", "output=again"]) == 0
        assert main(["predict", f"checkpoint={first}", "tta=standard"]) == 1, "other views are other predictions"
    assert "a model was made" in capsys.readouterr().err
    assert Path("again/submission.csv").read_bytes() == Path("vote/submission.csv").read_bytes()
    assert metrics(Path("again"))["tta"] == "light", "as the ensemble was made"

    for kept in (tmp_path / "cache" / "predictions").iterdir():
        kept.write_bytes(kept.read_bytes()[:-40])
    assert main(["ensemble", "--checkpoints", first, second, "--tta", "light", "--output", "anew"]) == 0
    assert Path("anew/submission.csv").read_bytes() == Path("vote/submission.csv").read_bytes()


def test_predictions_beside_a_checkpoint_serve_where_they_are_its_own(
    trained: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    member = changed(trained[0] / "best.ckpt", tmp_path / "run" / "best.ckpt")
    assert main(["predict", f"checkpoint={member}", "output=run"]) == 0
    monkeypatch.setattr(build, "create", no_model)
    assert main(["ensemble", "--checkpoints", str(member)]) == 0
    changed(member, member, metrics={})
    assert main(["ensemble", "--checkpoints", str(member), "--output", "changed"]) == 1
    assert "a model was made" in capsys.readouterr().err


def test_the_newest_predictions_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(predictions, "KEPT", 2)
    made = predictions.Predictions(["a"], torch.tensor([[0.5, 0.5]]), ["x", "y"], ["0", "1"])
    origins = [predictions.Origin(letter * 64, "images", "none", "fp32") for letter in "abc"]
    for origin in origins:
        predictions.keep(made, origin)
    assert [predictions.stored(tmp_path / "x.ckpt", ["a"], origin) is not None for origin in origins] == [
        False,
        True,
        True,
    ]
    assert predictions.stored(tmp_path / "x.ckpt", ["b"], origins[2]) is None, "other images"


def test_what_another_version_of_the_trainer_predicted_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "cache"))
    for version in ("old", "new", "renamed"):
        (tmp_path / version / "conf").mkdir(parents=True)
        (tmp_path / version / "a.py").write_text("")
        (tmp_path / version / "conf" / "config.yaml").write_text("a: 1" if version == "old" else "a: 2")
    (tmp_path / "renamed" / "a.py").rename(tmp_path / "renamed" / "b.py")
    codes = [provenance.code_fingerprint(tmp_path / version) for version in ("old", "new", "renamed")]
    assert len(set(codes)) == 3
    made = predictions.Predictions(["a"], torch.tensor([[0.5, 0.5]]), ["x", "y"], ["0", "1"])
    now = predictions.Origin("0" * 64, "images", "none", "fp32")
    old = replace(now, code=codes[0])
    predictions.keep(made, old)
    predictions.save(tmp_path / "predictions.npz", made, old)
    assert predictions.stored(tmp_path / "x.ckpt", ["a"], now) is None
    assert predictions.stored(tmp_path / "x.ckpt", ["a"], old) is not None
    monkeypatch.setattr(
        provenance, "version", lambda name: "0.1" if name == "pillow" else importlib.metadata.version(name)
    )
    assert provenance.software_fingerprint.__wrapped__() != now.code, "another Pillow decodes other pixels"


def test_an_ensemble_json_of_the_first_format_is_still_read(trained: list[Path]) -> None:
    members = [str(run / "best.ckpt") for run in trained]
    assert main(["ensemble", "--checkpoints", *members, "--weights", "1", "2"]) == 0
    content = json.loads(Path("ensemble.json").read_text())
    old = {
        "format": 1,
        "method": content["method"],
        "members": [{key: entry[key] for key in ("checkpoint", "sha256", "weight")} for entry in content["members"]],
    }
    Path("ensemble.json").write_text(json.dumps(old))
    assert main(["predict", "checkpoint=ensemble.json", "output=old"]) == 0
    assert Path("old/submission.csv").read_bytes() == Path("submission.csv").read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["predict", "checkpoint={first}", "tta=lihgt"],
            "--tta lihgt: unknown views; did you mean 'light'?",
        ),
        (["ensemble", "--checkpoints", "{first}", "--weights", "gredy"], "did you mean 'greedy'?"),
        (["ensemble", "--checkpoints", "{first}", "--weights", "1", "x"], "x is not a number"),
        (["ensemble", "--checkpoints", "{first}", "--weights", "nan"], "unknown weights"),
    ],
)
def test_a_wrong_option_is_one_clear_error(
    trained: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main([word.format(first=trained[0] / "best.ckpt") for word in words]) == 64
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_students_of_folds_are_one_model_if_each_teacher_held_out_the_same_fold(
    folds: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their teachers are other files, but folds of one model themselves. Any other teachers differ."""
    for fold, teacher in enumerate(folds):
        monkeypatch.setenv("RUN_DIR", str(tmp_path / str(fold)))
        words = ["data.folds=3", f"data.fold={fold}", "training.max_steps=1", "training.batch_size=8"]
        assert main(["train", *TINY, *words, f"training.teachers=[{teacher}]"]) == 0
    students = [ensemble_file.load(tmp_path / str(fold) / "best.ckpt") for fold in range(3)]
    (member,) = ensemble_file.group(students)
    assert [part.path for part in member.parts] == [part.path for part in students] and not member.missing()

    first, second = (part.checkpoint.validation["split_fingerprint"] for part in students[:2])
    teacher = ensemble_file.load(folds[0])
    assert ensemble_file.taught_by(teacher.checkpoint, "ab" * 32, first).startswith("fold of ")
    assert ensemble_file.taught_by(teacher.checkpoint, "ab" * 32, second) == "ab" * 8, "it saw the held-out images"
    unlike = replace(students[1].checkpoint, provenance={**students[1].checkpoint.provenance, "teachers": "ab" * 8})
    assert len(ensemble_file.group([students[0], replace(students[1], checkpoint=unlike), students[2]])) == 2
