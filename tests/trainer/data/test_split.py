"""The split is what was asked for: groups stay whole, the share is right, and a data folder's own split is used."""

from __future__ import annotations

import csv
import json
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.base.errors import DataFolderError
from launcher.job.data_folder import _why_no_data
from launcher.record.reuse import DataDigests
from tests.trainer.conftest import CLASSES, draw, write_documents
from trainer.base.errors import DataError
from trainer.base.names import GROUPED
from trainer.cli.main import main
from trainer.config.schema import DataConfig
from trainer.data.rows import Table
from trainer.data.split import Split, split_images
from trainer.data.table import classes_of, read_training


def pages(per_class: list[int], groups: list[str] | None = None) -> Table:
    """A table of images that are not read."""
    targets = [target for target, count in enumerate(per_class) for _ in range(count)]
    ids = [f"{number}.jpg" for number in range(len(targets))]
    names = [f"c{number}" for number in range(len(per_class))]
    return Table(ids, [Path(i) for i in ids], targets, names, names, groups)


def split(table: Table, **settings: object) -> Split:
    return split_images(table, DataConfig(**settings))  # type: ignore[arg-type]


def check_groups_are_whole(table: Table, made: Split) -> None:
    assert table.groups is not None
    named = [{table.groups[row] for row in side} - {""} for side in (made.train, made.val)]
    assert not named[0] & named[1]
    assert sorted([*made.train, *made.val]) == list(range(len(table)))


@pytest.mark.parametrize("blank", [0.1, 0.3, 0.5, 0.67, 0.9, 1.0])
def test_a_blank_group_is_a_group_of_its_own(blank: float) -> None:
    chance = random.Random(1)
    groups = [f"g{row // 2}" if chance.random() >= blank else "" for row in range(200)]
    table = pages([50] * 4, groups)
    made = split(table)
    check_groups_are_whole(table, made)
    assert len(made.val) == 40
    assert all(8 <= count <= 12 for count in Counter(table.targets[row] for row in made.val).values())
    folds = [split(table, folds=5, fold=fold) for fold in range(5)]
    assert sorted(row for fold in folds for row in fold.val) == list(range(200))
    for fold in folds:
        check_groups_are_whole(table, fold)
        assert 36 <= len(fold.val) <= 44


def test_the_advice_for_a_leak_leaves_the_split_as_it_is(tmp_path: Path) -> None:
    """One pair gets a group, all other cells are blank, or what programs write for a blank one."""
    root = write_documents(tmp_path / "data")
    lines = (root / "train.csv").read_text().splitlines()
    blanks = ["", "nan", " ", "#N/A"]
    rows = [f"{line},{'pair' if n < 2 else blanks[n % 4]}" for n, line in enumerate(lines[1:])]
    (root / "train.csv").write_text("\n".join([lines[0] + ",group", *rows]))
    table = read_training(root, DataConfig())
    assert table.groups is not None and Counter(table.groups) == {"pair": 2, "": 34}
    assert len(split(table).val) == 7


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.2, 0.3, 0.33, 0.4, 0.5, 0.6, 0.8])
@pytest.mark.parametrize("kind", ["pairs", "mixed", "many classes", "uneven"])
def test_the_share_is_what_was_asked_within_one_group(fraction: float, kind: str) -> None:
    chance = random.Random(3)
    per_class = {"many classes": [30] * 40, "uneven": [400, 100, 20, 12]}.get(kind, [60] * 5)
    count = sum(per_class)
    if kind == "mixed":
        groups = [chance.choice(["", f"big{row // 20}", f"small{row // 3}"]) for row in range(count)]
    else:
        groups = [f"g{row // (2 if kind == 'pairs' else 4)}" for row in range(count)]
    table = pages(per_class, groups)
    for seed in (1, 2):
        made = split(table, val_fraction=fraction, split_seed=seed)
        check_groups_are_whole(table, made)
        largest = max(Counter(group or str(row) for row, group in enumerate(groups)).values())
        assert abs(len(made.val) - fraction * count) <= largest
        held = Counter(table.targets[row] for row in made.val)
        assert (
            all(1 <= held[target] < count for target, count in enumerate(per_class)) or fraction * min(per_class) <= 4
        )
        assert split(table, val_fraction=fraction, split_seed=seed) == made
    assert split(table, val_fraction=fraction, split_seed=3).val != made.val


def test_the_row_order_does_not_change_which_groups_are_for_validation() -> None:
    table = pages([60] * 3, [f"g{row // 3}" for row in range(180)])
    order = list(range(180))
    random.Random(0).shuffle(order)
    mixed = Table(
        *([getattr(table, name)[row] for row in order] for name in ("ids", "paths", "targets")),
        table.class_names,
        table.labels,
        [(table.groups or [])[row] for row in order],
    )
    assert {table.ids[row] for row in split(table).val} == {mixed.ids[row] for row in split(mixed).val}


def test_a_share_that_groups_cannot_give_is_refused_or_said() -> None:
    two_groups_each = pages([20] * 3, [f"c{row // 20}-{row % 2}" for row in range(60)])
    made = split(two_groups_each, val_fraction=0.25)
    said = " ".join(made.notes)
    assert len(made.val) in (10, 20)
    assert re.search(
        rf"data.val_fraction=0.25: {len(made.val)} of 60 images are for validation .*because groups stay whole", said
    )
    with pytest.raises(DataError, match=r"data\.val_fraction=0\.8: of 60 images 48 would be.*only give 30.*=0\.50"):
        split(two_groups_each, val_fraction=0.8)


@pytest.mark.parametrize(
    ("per_class", "settings", "said"),
    [
        (
            [2] * 12,
            {},
            "data.val_fraction=0.2: 24 images in 12 classes cannot be split: validation gets 5, and each class needs one there; use data.val_fraction=0.5",
        ),
        (
            [4] * 3,
            {"val_fraction": 0.9},
            "training gets 1, and each class needs one there; use data.val_fraction=0.25 to 0.75",
        ),
        ([12] * 3, {"folds": 13}, "a class has at most 12 images, fewer than the 13 parts; use data.folds=12 or fewer"),
    ],
)
def test_too_few_images_name_the_value_that_works(per_class: list[int], settings: dict[str, object], said: str) -> None:
    table = pages(per_class)
    with pytest.raises(DataError) as raised:
        split(table, **settings)
    assert said in str(raised.value)
    key, value = said.split("use data.")[1].split(",")[0].split()[0].split("=")
    assert split(table, **{key: int(value) if key == "folds" else float(value)}).val


def test_unseen_classes_are_one_line() -> None:
    (note,) = split(pages([2] * 30 + [100]), folds=5).notes
    assert note.startswith("data.folds=5: classes c1 (2 images), ") and len(note) < 400
    assert " and 8 more have no validation image in this split; F1 is not measured there; use fewer folds" in note


def test_an_own_split_without_images_of_a_class_does_not_blame_a_share() -> None:
    """data.val_fraction has no effect there."""
    table = replace(pages([3, 3]), own_split="val.csv", held_out=[False, False, True, False, False, False])
    (note,) = split(table).notes
    assert note.startswith("the data folder's own split (val.csv): class c1 (3 images) has no validation image")
    assert note.endswith("add images") and "val_fraction" not in note


def test_a_group_column_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    root = write_documents(tmp_path / "data")
    with pytest.raises(DataError, match=r"train\.csv:1: no column 'document', which data\.group_column names"):
        read_training(root, DataConfig(group_column="document"))
    assert read_training(root, DataConfig(group_column="none")).groups is None


def write_classes(folder: Path, per_class: int, first: int = 0) -> None:
    for kind, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(first, first + per_class):
            draw(kind, number).save(folder / name / f"{number}.png")


@pytest.mark.parametrize(
    ("train", "val"), [("train", "val"), ("training", "validation"), ("Train", "Valid"), (".", "val")]
)
def test_an_own_validation_split_is_used_and_said_everywhere(
    tmp_path: Path, train: str, val: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    write_classes(root / train, 6)
    write_classes(root / val, 2, first=4 if train == "." else 20)  # with names that train/ has, too
    if train == ".":
        for path in (root / val).rglob("*.png"):  # no leaks
            draw(CLASSES.index(path.parent.name), 50 + int(path.stem)).save(path)
    (root / "test").mkdir()
    draw(0, 99).save(root / "test" / "x.png")
    table = read_training(root, DataConfig())
    assert table.class_names == sorted(CLASSES) and len(table) == 24 and len(set(table.ids)) == 24
    made = split(table, val_fraction=0.5)
    assert {table.ids[row] for row in made.val} == {
        f"{val}/{path.relative_to(root / val)}" for path in (root / val).rglob("*.png")
    }
    assert made.fingerprint == split(table, val_fraction=0.2, split_seed=7).fingerprint
    with pytest.raises(DataError, match=rf"data\.folds=5.*own validation split \({val}/\)"):
        split(table, folds=5)
    assert main(["check-data", "--data", str(root), "--output", str(tmp_path / "out"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["split_fingerprint"] == made.fingerprint and report["own_split"] == f"{val}/"
    assert report["images"] == {"train": 24, "validation": 6, "test": 1}
    assert _why_no_data(root, {"auto"}) is None
    before = DataDigests(tmp_path / "a").digest(root)
    draw(0, 77).save(root / val / CLASSES[0] / "more.png")
    assert before and DataDigests(tmp_path / "b").digest(root) != before


def test_a_run_trains_on_the_own_split(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    write_classes(root / "training", 4)
    write_classes(root / "validation", 2, first=10)
    assert train(tmp_path / "run", "training.epochs=1", "training.batch_size=4", data=root) == 0
    said = capsys.readouterr().out
    assert "12 training and 6 validation images in 3 classes" in said
    assert "the validation images are the data folder's own: validation/" in said
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["class_names"] == sorted(CLASSES) and metrics["val_images"] == 6


@pytest.mark.parametrize("kind", ["val.csv", "valid.csv with val/", "column"])
def test_an_own_split_in_tables(tmp_path: Path, kind: str) -> None:
    root = write_documents(tmp_path / "data")
    lines = (root / "train.csv").read_text().splitlines()
    held = [line for line in lines[1:] if "-01" in line]
    if kind == "column":
        words = ["train", "valid", "test"]
        chosen = [words[1 if line in held else 2 if "-000" in line else 0] for line in lines[1:]]
        both = [f"{line},{word}" for line, word in zip(lines[1:], chosen, strict=True)]
        (root / "train.csv").write_text("\n".join([f"{lines[0]},Split", *both]))
    else:
        (root / "train.csv").write_text("\n".join(line for line in lines if line not in held))
        (root / kind.split()[0]).write_text("\n".join([lines[0], *held]))
    if "with" in kind:
        (root / "val").mkdir()
        for line in held:
            shutil.move(root / "train" / line.split(",")[0], root / "val")
    table = read_training(root, DataConfig())
    made = split(table)
    expected = {line.split(",")[0] for line in held}
    assert {table.ids[row].removeprefix("val/") for row in made.val} == expected and len(expected) == 6
    assert len(table) == (33 if kind == "column" else 36)


def with_column(root: Path, name: str, values: list[str]) -> None:
    """Write a column into train.csv, with these values in turn."""
    first, *lines = (root / "train.csv").read_text().splitlines()
    rows = [f"{line},{values[row % len(values)]}" for row, line in enumerate(lines)]
    (root / "train.csv").write_text("\n".join([f"{first},{name}", *rows]))


@pytest.mark.parametrize("words", [["train", "train", "test"], ["TRAINING", "Training", "Testing"]])
def test_rows_for_test_are_left_out_without_a_validation_split(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_documents(tmp_path / "data")
    (root / "meta.csv").unlink()
    with_column(root, "split", words)
    text = (root / "train.csv").read_text()  # a table may have any label there
    (root / "train.csv").write_text(
        "\n".join(re.sub(r",\d(,test)", r",-1\1", line, flags=re.I) for line in text.split("\n"))
    )
    table = read_training(root, DataConfig())
    assert len(table) == 24 and table.labels == ["0", "1", "2"] and table.held_out is None
    assert not set(table.ids) & {f"{kind}-{number:03d}.jpg" for kind in range(3) for number in range(2, 12, 3)}
    said = capsys.readouterr().out
    assert (
        "left out: 12 rows of column split of train.csv with the value test\n" in said
        and "not in train.csv" not in said
    )
    assert classes_of(root) == {"0": "0", "1": "1", "2": "2"}


def test_a_column_split_of_other_words_is_said_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_documents(tmp_path / "a")
    with_column(root, "Split", ["left", "right"])
    assert len(read_training(root, DataConfig())) == 36
    assert (
        "note: column Split of train.csv has no effect: none of its values is one of train, " in capsys.readouterr().out
    )
    for name, words, message in (
        ("b", ["train", "dev"], r"train\.csv:3: split 'dev' is unknown; valid: train, .*rename it"),
        ("c", ["val", "test"], r"train\.csv: column split has no row with one of train, training"),
    ):
        root = write_documents(tmp_path / name)
        with_column(root, "split", words)
        with pytest.raises(DataError, match=message):
            read_training(root, DataConfig())


def test_class_folders_have_no_column_of_groups(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", 2)
    for name in ("group", "none"):
        assert read_training(tmp_path, DataConfig(group_column=name)).groups is None
    with pytest.raises(DataError, match=r"data\.group_column=patient: .* has class folders and no train\.csv"):
        read_training(tmp_path, DataConfig(group_column="patient"))


def test_what_is_wrong_with_an_own_split_is_said(tmp_path: Path) -> None:
    def said(root: Path, **settings: object) -> str:
        with pytest.raises(DataError) as raised:
            split_images(read_training(root, config := DataConfig(**settings)), config)  # type: ignore[arg-type]
        return str(raised.value)

    root = tmp_path / "no classes"
    write_classes(root / "train", 2)
    (root / "val").mkdir()
    draw(0, 1).save(root / "val" / "a.png")
    assert "val: has no class folders, so it is no validation split" in said(root)

    root = tmp_path / "other class"
    write_classes(root / "train", 2)
    write_classes(root / "val", 2)
    (root / "val" / CLASSES[0]).rename(root / "val" / "new")
    assert "val/new: class 'new' has no folder with training images" in said(root)

    root = write_documents(tmp_path / "groups")
    (root / "train.csv").write_text("ID,target,group\n0-000.jpg,0,a\n1-000.jpg,1,b\n")
    (root / "val.csv").write_text("ID,target,group\n0-001.jpg,0,a\n1-001.jpg,1,\n")
    assert "group 'a' of column 'group' is on both sides of val.csv" in said(root)
    assert len(split(read_training(root, DataConfig(group_column="none"))).val) == 2

    root = write_documents(tmp_path / "one file")
    (root / "val.csv").write_text("ID,target\n0-001.jpg,0\n")
    assert "val.csv:2: ID '0-001.jpg' names the file of train.csv:3; remove one row" in said(root)


@pytest.mark.parametrize(
    ("folders", "kind", "said"),
    [
        (["training/a", "training/b", "validation/a"], "auto", None),
        (["train/a", "training/a"], "auto", "have one meaning"),
        (["train/a", "val/a", "valid/a"], "auto", "have one meaning"),
        (["training"], "auto", "has neither train.csv nor class folders in training/"),
        (["val/a", "test/a"], "auto", "has neither train.csv nor class folders in train/"),
        (["val/a"], "imagefolder", "has no class folders in train/"),
        (["a", "b"], "csv", "has no train.csv"),
        ([".ipynb_checkpoints", "__MACOSX/a"], "auto", "has neither"),
    ],
)
def test_launcher_and_trainer_judge_a_data_folder_alike(
    tmp_path: Path, folders: list[str], kind: str, said: str | None
) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    try:
        launchers = _why_no_data(tmp_path, {kind})
    except DataFolderError as error:
        launchers = str(error)
    assert launchers is None if said is None else said in str(launchers)
    with pytest.raises(DataError) as raised:
        read_training(tmp_path, DataConfig(format=kind))
    assert ("has no image" if said is None else said) in str(raised.value)


def test_results_of_runs_are_no_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_classes(tmp_path, 2)
    (tmp_path / "outputs" / "20261130-120000-resnet34").mkdir(parents=True)
    (tmp_path / "outputs" / "20261130-120000-resnet34" / "config.yaml").touch()
    draw(0, 0).save(tmp_path / "outputs" / "20261130-120000-resnet34" / "worst.png")
    assert read_training(tmp_path, DataConfig()).class_names == sorted(CLASSES)
    assert "note: left out: outputs/ with results of runs" in capsys.readouterr().out


def test_with_groups_every_result_says_that_its_intervals_are_too_narrow(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_documents(tmp_path / "data")
    lines = (root / "train.csv").read_text().splitlines()
    rows = [f"{line},g{number // 2}" for number, line in enumerate(lines[1:])]
    (root / "train.csv").write_text("\n".join([f"{lines[0]},group", *rows]))
    assert train(tmp_path / "run", "training.epochs=1", "training.batch_size=8", data=root) == 0
    assert f"intervals are too narrow here: {GROUPED}" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["groups"] == "group"
    model, data = str(tmp_path / "run" / "best.ckpt"), ["--data", str(root)]
    assert main(["ensemble", "--checkpoints", model, "--output", "vote"]) == 0
    assert f"intervals are too narrow here: {GROUPED}" in capsys.readouterr().out
    for path in (model, "vote/ensemble.json"):
        assert main(["analyze", "--checkpoint", path, *data]) == 0
        assert f"The intervals are too narrow: {GROUPED}" in Path("analysis_results/report.html").read_text()
    assert main(["export", "--checkpoint", model, "--to", "safetensors", "--images", "1", *data]) == 0
    assert f"They are too narrow: {GROUPED}." in Path("export/safetensors/README.md").read_text()


def test_predictions_and_ensembles_agree_on_an_own_split(train: Callable[..., int], tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_classes(root / "Training", 4)
    write_classes(root / "Val", 2, first=10)
    write_classes(root / "Test", 1, first=20)
    for seed in (1, 2):
        settings = (f"seed={seed}", f"data.split_seed={seed}", "training.epochs=1", "training.batch_size=4")
        assert train(tmp_path / f"run{seed}", *settings, data=root) == 0
    checkpoints = [str(tmp_path / f"run{seed}" / "best.ckpt") for seed in (1, 2)]
    words = ["--data", str(root), "--output", str(tmp_path / "vote"), "--num_workers", "0"]
    assert main(["ensemble", "--checkpoints", *checkpoints, *words]) == 0
    assert json.loads((tmp_path / "vote" / "metrics.json").read_text())["val_images"] == 6
    with (tmp_path / "vote" / "submission.csv").open() as file:
        assert [row["ID"] for row in csv.DictReader(file)] == sorted(f"{name}/20.png" for name in CLASSES)
