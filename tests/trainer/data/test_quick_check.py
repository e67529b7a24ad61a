"""`check-data --quick`: what training would refuse of the data, for many configurations at once."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest

from tests.trainer.conftest import write_documents
from trainer.cli.main import main
from trainer.config.compose import compose
from trainer.data import quick_check


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of four images, and a fourth of two."""
    root = write_documents(tmp_path_factory.mktemp("few") / "data", per_class=4)
    (root / "meta.csv").open("a").write("3,letters\n")
    for number, name in enumerate(("0-000.jpg", "1-000.jpg")):
        shutil.copyfile(root / "train" / name, root / "train" / f"3-{number}.jpg")
        with (root / "train" / f"3-{number}.jpg").open("ab") as file:
            file.write(b"\0")  # else it would be a leak
        (root / "train.csv").open("a").write(f"3-{number}.jpg,3\n")
    return root


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["training.batch_size=16"], "training.batch_size=16: 9 training images are fewer than one batch, and"),
        (["training.batch_size=16", "training.drop_last=false"], ""),
        (["training.batch_size=9"], ""),
        (["data.val_fraction=0.2"], "data.val_fraction=0.2: 14 images in 4 classes cannot be split: validation gets 3"),
        (["data.val_fraction=0.8"], "data.val_fraction=0.8: 14 images in 4 classes cannot be split: training gets 2"),
        (["data.folds=5"], "data.folds=5: 14 images in 4 classes cannot be split: a class has at most 4 images"),
        (["data.folds=2"], ""),
        (
            [
                "data.img_size=64",
                "data.train_transforms=[{Resize:{height:64,width:64}},{GaussianBlur:{blur_limit:-3}}]",
            ],
            "data.train_transforms.1: GaussianBlur: OpenCV",
        ),
        (
            ["data.img_size=64", "data.val_transforms=[{Resize:{height:64,width:32}}]"],
            "data.val_transforms: returns 64×32×3 uint8, but the model needs 64×64×3 uint8;",
        ),
        (["data.img_size=64"], ""),
        (["data.allowed_leaks=[nope.jpg]"], "data.allowed_leaks: unknown training image 'nope.jpg'"),
    ],
)
def test_each_configuration_has_its_own_errors(few: Path, words: list[str], said: str) -> None:
    base = ["training.batch_size=4", "data.val_fraction=0.3"]
    config = compose([f"data.root={few}", *base, *words])
    answers = quick_check.check(config.data, [config, compose([f"data.root={few}", *base])])
    own, other = answers.configurations
    assert other.errors == [] and answers.errors == [] and answers.images == 14
    assert own.errors == [] if not said else len(own.errors) == 1 and own.errors[0].startswith(said), own.errors


def test_the_remedies_in_the_messages_work(few: Path) -> None:
    words = ["data.val_fraction=0.29", "training.batch_size=4"]
    for remedy in (
        words,
        [*words, "data.folds=4"],
        [*words, "training.batch_size=5"],
        [*words, "data.val_fraction=0.71"],
    ):
        config = compose([f"data.root={few}", *remedy])
        (answer,) = quick_check.check(config.data, [config]).configurations
        assert not answer.errors or remedy[-1] == "data.val_fraction=0.71", (remedy, answer.errors)


def test_a_class_without_a_validation_image_is_noted_for_its_fold(few: Path) -> None:
    configs = [
        compose([f"data.root={few}", "training.batch_size=2", "data.folds=4", f"data.fold={n}"]) for n in range(4)
    ]
    answers = quick_check.check(configs[0].data, configs)
    notes = [note for answer in answers.configurations for note in answer.notes]
    assert len(notes) == 2 and all(
        note.startswith("data.folds=4: class letters (2 images) has no validation image in this split")
        for note in notes
    )
    assert all(not answer.errors for answer in answers.configurations)


def test_equal_files_on_both_sides_are_errors_of_the_split(tmp_path: Path) -> None:
    root = write_documents(tmp_path / "data", per_class=4)
    for number in range(1, 4):
        shutil.copyfile(root / "train" / "0-000.jpg", root / "train" / f"0-00{number}.jpg")
    config = compose([f"data.root={root}", "training.batch_size=2", "data.val_fraction=0.3"])
    (answer,) = quick_check.check(config.data, [config]).configurations
    assert answer.errors and "a validation image is the same file as" in answer.errors[0]


def test_test_images_are_read_for_steps_that_predict(tmp_path: Path) -> None:
    root = write_documents(tmp_path / "data", per_class=4)
    base = compose([f"data.root={root}"]).data
    assert quick_check.check(base, [], test=True).test == []
    (root / "test" / "t0.jpg").write_bytes(b"no image")
    (line,) = quick_check.check(base, [], train=False, test=True).test
    assert line.startswith("test/t0.jpg: not a readable image")
    shutil.rmtree(root / "test")
    assert len(quick_check.check(base, [], test=True).test) == 6, "sample_submission.csv names them"
    (root / "sample_submission.csv").unlink()
    assert quick_check.check(base, [], test=True).test == [
        f"{root}: no test images: add sample_submission.csv, or images in test/"
    ]


def test_the_launcher_gets_json_and_a_person_text(
    few: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["check-data", "--quick", "--data", str(few), "data.val_fraction=0.3"]
    assert main(words) == 0 and "14 training images without errors" in capsys.readouterr().out
    assert main([*words, "data.folds=5"]) == 65 and "error: data.folds=5: 14 images" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps([["training.batch_size=64"], ["training.batch_size=4"]])))
    assert main([*words, "--configurations"]) == 65
    answer = json.loads(capsys.readouterr().out)
    assert [len(each["errors"]) for each in answer["configurations"]] == [1, 0] and answer["errors"] == []
