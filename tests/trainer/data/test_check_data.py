"""Duplicates, leaks, labels that disagree: planted ones are found, and pages that only look alike are not."""

from __future__ import annotations

import csv
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.trainer.conftest import write_documents
from trainer.cli.main import main
from trainer.config.schema import DataConfig
from trainer.data import duplicates
from trainer.data.drawn import write_sample_data
from trainer.data.split import split_images
from trainer.data.table import read_training
from trainer.images import reading

TURNS = tuple(Image.Transpose)
Change = Callable[[Image.Image, random.Random], Image.Image]


def scaled(image: Image.Image, chance: random.Random) -> Image.Image:
    """As Pillow does, smoothed, or as OpenCV and torch do by default, unsmoothed."""
    import cv2

    share = chance.uniform(0.25, 0.9)
    size = (round(image.width * share), round(image.height * share))
    if chance.random() < 0.5:
        return image.resize(size, chance.choice((Image.Resampling.LANCZOS, Image.Resampling.BILINEAR)))
    return Image.fromarray(cv2.resize(np.asarray(image), size, interpolation=cv2.INTER_LINEAR))


def encoded(image: Image.Image, chance: random.Random) -> Image.Image:
    return image


def laid(image: Image.Image, chance: random.Random) -> Image.Image:
    return image.transpose(chance.choice(TURNS))


def all_three(image: Image.Image, chance: random.Random) -> Image.Image:
    return laid(scaled(image, chance), chance)


CHANGES: tuple[Change, ...] = (scaled, encoded, laid, all_three)


def plant(sources: list[Path], place: Path, per_change: int, seed: int = 0) -> dict[Path, Path]:
    """Copies of random `sources` in `place`, by their source: equal files, equal pixels, and every change in turn."""
    chance = random.Random(seed)
    place.mkdir(exist_ok=True)
    made: dict[Path, Path] = {}
    for number in range(per_change):
        copy, png = place / f"copy-{number}.jpg", place / f"pixels-{number}.png"
        made[copy], made[png] = chance.choice(sources), chance.choice(sources)
        shutil.copy(made[copy], copy)
        reading.open_image(made[png]).save(png)
        for change in CHANGES:
            path = place / f"{change.__name__}-{number}.jpg"
            made[path] = chance.choice(sources)
            change(reading.open_image(made[path]), chance).save(path, quality=chance.randint(30, 90))
    return made


def check_recall(originals: list[Path], made: dict[Path, Path]) -> duplicates.Duplicates:
    """Every exact copy and 95 % of the others are found, with how they lie; nothing is found that is not one image."""
    paths = [*originals, *made]
    found = duplicates.find_duplicates(paths, [duplicates.look(path) for path in paths])
    pairs = {(paths[pair.a], paths[pair.b]): pair for pair in found.pairs}
    root = {**{path: path for path in originals}, **made}
    assert [(a.name, b.name) for a, b in pairs if root[a] != root[b]] == [], "different pages taken for one"
    missed = [path.name for path, source in made.items() if (source, path) not in pairs]
    assert not [name for name in missed if name.startswith(("copy", "pixels"))]
    assert len(missed) <= 0.05 * len(made), missed
    kinds = {
        path.stem.partition("-")[0]: pairs[source, path].kind
        for path, source in made.items()
        if path.name not in missed
    }
    assert kinds == {"copy": "file", "pixels": "pixels", **{change.__name__: "look" for change in CHANGES}}
    for path, source in made.items():
        if path.name not in missed:
            turn = pairs[source, path].turn
            image = duplicates.turned(np.asarray(reading.open_image(path).convert("L")), turn)
            assert (
                duplicates.difference(np.asarray(reading.open_image(source).convert("L")), image)
                < duplicates.DIFFERENCE
            )
    return found


def test_planted_duplicates_are_found_and_pages_of_one_kind_are_not(tmp_path: Path) -> None:
    write_sample_data(tmp_path / "data", 6, 5, 1, 0, False)
    originals = sorted((tmp_path / "data" / "train").iterdir())
    found = check_recall(originals, plant(originals, tmp_path / "planted", 3))
    assert found.compared <= found.candidates


def invoice(number: str) -> Image.Image:
    from PIL import ImageDraw, ImageFont

    page = Image.new("L", (700, 900), 250)
    pen = ImageDraw.Draw(page)
    for line in range(30):
        pen.text(
            (60, 60 + 25 * line), f"Item {line} of the same order  {line * 7 % 13}.00", 20, ImageFont.load_default(16)
        )
    pen.text((450, 30), number, 20, ImageFont.load_default(16))
    return page


def test_pages_that_differ_in_one_number_are_two(tmp_path: Path) -> None:
    for name, number in (("a", "No. 4711"), ("b", "No. 4713"), ("c", "No. 4711")):
        invoice(number).save(tmp_path / f"{name}.jpg", quality=95 if name < "c" else 50)
    paths = [tmp_path / f"{name}.jpg" for name in "abc"]
    found = duplicates.find_duplicates(paths, [duplicates.look(path) for path in paths])
    assert [(pair.a, pair.b) for pair in found.pairs] == [(0, 2)]
    assert found.compared == 3, "the pages were not even alike"


def test_empty_and_noisy_sheets_are_no_duplicates(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    for number in range(4):
        noise = (
            chance.integers(246, 256, (200, 150), np.uint8)
            if number < 2
            else np.full((200 + number, 150), 250, np.uint8)
        )
        Image.fromarray(noise).save(tmp_path / f"{number}.png")
    paths = sorted(tmp_path.glob("*.png"))
    assert duplicates.find_duplicates(paths, [duplicates.look(path) for path in paths]).pairs == []


@pytest.fixture
def leaking(tmp_path: Path) -> tuple[Path, str, str]:
    """A data folder in which a validation image is a copy of a training image of another class; both IDs."""
    root = write_documents(tmp_path / "leaking", per_class=8)
    table = read_training(root, DataConfig())
    split = split_images(table, DataConfig())
    held = split.val[0]
    other = next(row for row in split.train if table.targets[row] != table.targets[held])
    shutil.copy(table.paths[other], table.paths[held])
    return root, table.ids[other], table.ids[held]


def test_a_leak_is_refused_by_both_commands_with_its_rows_and_the_way_out(
    leaking: tuple[Path, str, str], train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, source, copy = leaking
    rows = [row["ID"] for row in csv.DictReader((root / "train.csv").open())]
    assert main(["check-data", f"data.root={root}", "--output", "out"]) == 65
    seen = capsys.readouterr()
    for image_id in (source, copy):
        assert f"train.csv:{rows.index(image_id) + 2}: train/{image_id}" in seen.err
    allow = f"data.allowed_leaks=[{min(source, copy, key=rows.index)}]"
    assert allow in seen.err and "See out/check_data.json. Then remove" in seen.err and "group" in seen.err
    assert "check-data" not in seen.err, "the user has just run it"
    assert "LEAK, TWO LABELS" in seen.out and "CONTRADICTORY LABELS" in seen.out
    report = json.loads((tmp_path / "out" / "check_data.json").read_text())
    assert report["leaks"] == 1 and report["contradictory_labels"] == 1
    (pair,) = report["duplicates"]
    assert {pair["a"]["side"], pair["b"]["side"]} == {"train", "validation"} and pair["kind"] == "file"
    with Image.open(tmp_path / "out" / "duplicates.png") as picture:
        assert len(picture.convert("L").getcolors() or range(300)) > 20, "a blank picture"

    assert train(tmp_path / "run", data=root) == 65
    listing = "List them with `python -m trainer check-data`"
    assert capsys.readouterr().err == seen.err.replace("See out/check_data.json", listing), "the same words from train"
    for allowed in (source, copy):
        assert main(["check-data", f"data.root={root}", f"data.allowed_leaks=[{allowed}]"]) == 0
    assert "allowed leak" in capsys.readouterr().out
    few = ["training.epochs=1", "training.batch_size=8", "training.max_steps=1"]
    assert train(tmp_path / "run", f"data.allowed_leaks=[{copy}]", *few, data=root) == 0


def test_a_turned_leak_is_found_too_and_a_group_column_keeps_it_together(
    leaking: tuple[Path, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    root, source, copy = leaking
    with Image.open(root / "train" / source) as image:
        image.transpose(Image.Transpose.ROTATE_90).save(root / "train" / copy, quality=95)
    assert main(["check-data", f"data.root={root}"]) == 65
    assert "the same picture, rotated by" in capsys.readouterr().err
    text = (root / "train.csv").read_text().splitlines()
    group = {source: "x", copy: "x"}
    lines = [f"{line},{group.get(line.partition(',')[0], line.partition(',')[0])}" for line in text[1:]]
    (root / "train.csv").write_text("\n".join([f"{text[0]},group", *lines]))
    assert main(["check-data", f"data.root={root}"]) == 0


def test_json_sizes_and_test_images_that_are_training_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_documents(tmp_path / "data", per_class=4)
    shutil.copy(root / "train" / "1-002.jpg", root / "test" / "t3.jpg")
    assert main(["check-data", f"data.root={root}", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((tmp_path / "check_data.json").read_text())
    assert report["test_images"] == {"with_duplicate": 1, "without_duplicate": 5}
    assert report["duplicates"][0]["b"]["id"] == "t3.jpg" and report["leaks"] == 0
    assert [entry["images"] for entry in report["classes"]] == [4, 4, 4]
    assert 60 <= report["sizes"]["train"]["width"]["min"] <= report["sizes"]["train"]["width"]["median"] <= 90


def test_faults_are_reported_beside_what_the_other_images_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_documents(tmp_path / "data", per_class=6)
    (root / "train" / "0-001.jpg").write_bytes(b"broken")
    (root / "test" / "t1.jpg").write_bytes(b"")
    shutil.copy(root / "train" / "1-002.jpg", root / "test" / "t3.jpg")
    assert main(["check-data", f"data.root={root}"]) == 65
    seen = capsys.readouterr()
    assert "train.csv:3: train/0-001.jpg: not a readable image" in seen.err
    assert "test/t1.jpg: the file is empty" in seen.err
    assert "test images with a duplicate in the training images: 1" in seen.out
    assert len(json.loads((tmp_path / "check_data.json").read_text())["faults"]) == 2


def test_sides_and_groups_are_counted_and_no_picture_is_without_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_documents(tmp_path / "data", per_class=4)
    lines = (root / "train.csv").read_text().splitlines()
    groups = ["group", *(["a", "b", ""] * 4)]
    splits = ["split", *(["train", "train", "train", "val"] * 3)]
    rows = [",".join(row) for row in zip(lines, groups, splits, strict=True)]
    (root / "train.csv").write_text("\n".join(rows))
    (tmp_path / "duplicates.png").write_bytes(b"of an earlier check")
    assert main(["check-data", f"data.root={root}", "data.group_column=group"]) == 65  # groups are on both sides
    said = capsys.readouterr().out
    assert "12 readable training images, not split because of the errors, 3 classes" in said
    assert "2 groups; 4 images without one" in said and "  images\n" in said and "validation" not in said
    report = json.loads((tmp_path / "check_data.json").read_text())
    assert report["images"]["validation"] is None and report["groups"] == {"groups": 2, "images_without": 4}
    assert not (tmp_path / "duplicates.png").exists()
    assert main(["check-data", f"data.root={root}", "data.group_column=none"]) == 0
    said = capsys.readouterr().out
    assert "9 images for training, 3 for validation (the folder's own split: column split of train.csv)" in said
    assert "group" not in said and "  images  validation" in said


@pytest.mark.parametrize("broken", [False, True])
def test_a_class_of_one_image_is_told_as_it_is_before_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: bool
) -> None:
    """Also if its other images are broken, and other faults are not hidden."""
    root = write_documents(tmp_path / "data", per_class=6)
    (root / "meta.csv").unlink()
    with (root / "train.csv").open("a") as table:
        table.write("lonely.jpg,9\n" + "lost.jpg,9\n" * broken + "0-099.jpg,0\n")
    shutil.copy(root / "train" / "0-001.jpg", root / "train" / "lonely.jpg")
    (root / "train" / "lost.jpg").write_bytes(b"broken")
    for words in ([], ["--quick"]):
        assert main(["check-data", *words, f"data.root={root}"]) == 65
        error = capsys.readouterr().err
        assert "train/0-099.jpg: the file is missing" in error and "unexpected" not in error
        assert ("has one image" in error) != broken


@pytest.mark.parametrize("rows", ["0-000.jpg,0\n0-001.jpg,0\n", ""])
def test_a_folder_without_any_readable_image_is_reported_by_its_rows(
    rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data" / "train").mkdir(parents=True)
    for name in ("0-000.jpg", "0-001.jpg"):
        (tmp_path / "data" / "train" / name).write_bytes(b"broken")
    (tmp_path / "data" / "train.csv").write_text(f"ID,target\n{rows}")
    assert main(["check-data", f"data.root={tmp_path / 'data'}"]) == 65
    seen = capsys.readouterr()
    said = "train.csv:3: train/0-001.jpg: not a readable image" if rows else "train.csv:1: no rows"
    assert said in seen.err and "duplicates: none" in seen.out
    assert json.loads((tmp_path / "check_data.json").read_text())["duplicates"] == []


def test_many_equal_pages_are_counted_and_the_worst_pairs_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    (root / "train").mkdir(parents=True)
    names = [f"{number:03d}.png" for number in range(300)]
    invoice("No. 1").resize((70, 90)).save(root / "train" / names[0])
    for name in names[1:]:
        shutil.copy(root / "train" / names[0], root / "train" / name)
    (root / "train.csv").write_text("ID,target\n" + "".join(f"{name},{row % 2}\n" for row, name in enumerate(names)))
    assert main(["check-data", f"data.root={root}"]) == 65
    seen = capsys.readouterr()
    pairs = 300 * 299 // 2
    assert f"duplicates: {pairs} " in seen.out
    assert f"{pairs - 40} more; see check_data.json, which has the worst 1,000" in seen.out
    assert seen.out.splitlines()[-1] == "written: check_data.json, duplicates.png"
    assert "more; see check_data.json" in seen.err and "List them with" not in seen.err, "they are listed already"
    report = json.loads((tmp_path / "check_data.json").read_text())
    assert len(report["duplicates"]) == 1000 and report["duplicates_not_listed"] == pairs - 1000
    assert all(pair["leak"] and pair["contradictory"] for pair in report["duplicates"])
    held = report["images"]["validation"]
    assert report["leaks"] == held * (300 - held) and f"{report['leaks']} leaks across the split" in seen.err


@pytest.mark.parametrize(
    ("allowed", "code", "said"),
    [("[nope.jpg]", 65, "unknown training image 'nope.jpg'"), ("[1]", 64, "a list of IDs")],
)
def test_what_is_allowed_must_exist(
    allowed: str, code: int, said: str, documents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check-data", f"data.root={documents}", f"data.allowed_leaks={allowed}"]) == code
    assert said in capsys.readouterr().err


@pytest.mark.shared
def test_real_pages_of_one_template_are_told_apart_and_planted_ones_found(shared: Path, tmp_path: Path) -> None:
    """Invoices of one hotel differ in a room number and some dates; tickets in a time."""
    images = shared / "documents" / "train"
    with (shared / "documents" / "train.csv").open() as rows:
        labels = {row["ID"]: row["target"] for row in csv.DictReader(rows)}
    hard = sorted(image_id for image_id, label in labels.items() if label in ("2", "6"))
    easy = sorted(image_id for image_id, label in labels.items() if label not in ("2", "6"))[::12]
    named = {"4b57015d.jpg", "de7bb35e.jpg", *hard[::3], *easy}
    originals = [images / image_id for image_id in sorted(named)]
    check_recall(originals, plant(originals, tmp_path / "planted", 3))


@pytest.mark.shared
@pytest.mark.slow
def test_the_whole_real_set_has_no_duplicate(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-data", f"data.root={shared / 'documents'}", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["duplicates"] == [] and report["compared"]["at_full_size"] > 50
