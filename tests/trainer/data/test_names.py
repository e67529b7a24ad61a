"""One visible name is one class and one file; names that are not UTF-8 are refused with the command that repairs them."""

from __future__ import annotations

import io
import json
import os
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from tests.trainer.conftest import draw
from trainer.base import spelling
from trainer.base.errors import DataError
from trainer.cli.main import main
from trainer.config.compose import compose
from trainer.config.schema import DataConfig
from trainer.data import leaks
from trainer.data.duplicates import equal_files
from trainer.data.split import Split
from trainer.data.table import read_test, read_training
from trainer.images.files import find_image

NAMES = ("송장", "견적서")
CP949 = b"\xbc\xdb\xc0\xe5"
"""송장 in the encoding of Korean Windows."""


def nfd(name: str) -> str:
    return unicodedata.normalize("NFD", name)


def faults(root: Path) -> str:
    with pytest.raises(DataError) as raised:
        read_training(root, DataConfig())
    return str(raised.value)


def write_csv(root: Path, rows: list[str], header: str = "ID,target") -> Path:
    """A page below train/ for each name in the rows, unless it is there."""
    (root / "train").mkdir(parents=True, exist_ok=True)
    (root / "train.csv").write_text("\n".join([header, *rows]), encoding="utf-8")
    return root


def write_pages(folder: Path, names: list[str], first: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names, start=first):
        draw(number % 3, number).save(folder / name, "PNG")


def test_a_class_folder_without_a_visible_name_is_a_fault(tmp_path: Path) -> None:
    for folder in ("\u200b", "견적서"):
        write_pages(tmp_path / "data" / "train" / folder, ["a.png", "b.png"])
    assert "train: the folder '\\u200b' has no visible character in its name; rename it" in faults(tmp_path / "data")


@pytest.mark.parametrize(
    "other",
    [
        nfd,
        lambda name: f" {name}  ",
        lambda name: f"\ufeff{name}",
        lambda name: f"{name}\u200b",
        lambda name: f"\x1b{name}",
    ],
)
def test_labels_and_groups_that_look_alike_are_one(tmp_path: Path, other: object) -> None:
    root = tmp_path / "data"
    write_pages(root / "train", [f"{number}.png" for number in range(8)])
    change = other if callable(other) else nfd
    rows = [
        f'{number}.png,"{change(NAMES[number % 2]) if number > 3 else NAMES[number % 2]}",'
        f'"{change("문서") if number > 5 else "문서" if number > 3 else ""}"'
        for number in range(8)
    ]
    table = read_training(write_csv(root, rows, "ID,target,group"), DataConfig())
    assert table.class_names == sorted(NAMES) and Counter(table.targets) == {0: 4, 1: 4}
    assert Counter(table.groups) == {"문서": 4, "": 4}
    (root / "meta.csv").write_text(f"target,class_name\n{NAMES[0]},{change('가')}\n{change(NAMES[1])},나\n")
    assert read_training(root, DataConfig()).class_names == ["나", "가"]


def test_class_folders_that_look_alike_are_one_class(tmp_path: Path) -> None:
    for folder, names in ((NAMES[0], ["a.png", "b.png"]), (nfd(NAMES[0]), ["c.png"]), (NAMES[1], ["a.png", "b.png"])):
        write_pages(tmp_path / "train" / folder, names, len(names))
    table = read_training(tmp_path, DataConfig())
    assert table.class_names == sorted(NAMES)
    assert [i for i in table.ids if i.startswith(NAMES[0])] == [f"{NAMES[0]}/{name}.png" for name in "abc"]
    assert all(find_image(tmp_path, i) == path for i, path in zip(table.ids, table.paths, strict=True))
    write_pages(tmp_path / "train" / nfd(NAMES[0]), ["a.png"])
    assert f"train/{nfd(NAMES[0])}/a.png has the same visible name in another Unicode form" in faults(tmp_path)


def test_two_files_with_one_visible_name_are_an_error(tmp_path: Path) -> None:
    write_pages(tmp_path / "train" / "x", ["é.png", nfd("é.png")])
    write_pages(tmp_path / "train" / "y", ["1.png", "2.png"], 2)
    assert "another file has the same visible name (one in Unicode form NFD, one in Unicode form NFC)" in faults(
        tmp_path
    )


def test_names_that_differ_only_in_case_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate(("invoice", "Invoice", "form")):
        write_pages(tmp_path / "train" / name, ["1.png", "2.png"], 2 * number)
    assert len(read_training(tmp_path, DataConfig()).class_names) == 3
    assert capsys.readouterr().out.count("classes 'Invoice' and 'invoice' differ only in the case of letters") == 1


@pytest.mark.parametrize(
    ("written", "file"),
    [
        ("송장 1.png", nfd("송장 1.png")),
        (nfd("송장 1.png"), "송장 1.png"),
        ("송장 1", nfd("송장 1.png")),
        ("a.jpg", "a.JPG"),
        ("a.JPEG", "a.jpeg"),
        (" a.png ", "a.png"),
        ("sub\\a.png", "sub/a.png"),
        ("train\\a.png", "a.png"),
        ("./a.png", "a.png"),
        ("train/a.png", "a.png"),
        ("C:\\Users\\kim\\data\\train\\a.png", "a.png"),
        ("\\\\server\\share\\train\\sub\\a.png", "sub/a.png"),
        ("/home/kim/project/data/train/a.png", "a.png"),
        ("D:/데이터/혼자_2.PNG", "혼자_2.png"),
        ("C:\\a.png", "a.png"),
        ("/scans/2024/a.PNG", "a.png"),
        ("data/train/sub/송장.png", f"sub/{nfd('송장.png')}"),
        (f"{nfd('하위')}/a", "하위/a.PNG"),
        ("a.v2", "a.v2.png"),
        ("a\u200b.png", "a.png"),
    ],
)
def test_an_id_finds_its_file(tmp_path: Path, written: str, file: str) -> None:
    root = tmp_path / "data"
    write_pages((root / "train" / file).parent, [Path(file).name])
    write_pages(root / "train", [f"other {number}.png" for number in range(4)], 1)
    rows = [f'"{written}",0', *(f"other {number}.png,{number % 2}" for number in range(4))]
    table = read_training(write_csv(root, rows), DataConfig())
    assert table.paths[0] == root / "train" / file
    assert find_image(root, table.ids[0]) == root / "train" / file
    (root / "sample_submission.csv").write_text(f'ID\n"{written.replace("train", "test")}"\n')
    (root / "train").rename(root / "test")
    test = read_test(root)
    assert test.paths == [root / "test" / file] and test.ids == [written.replace("train", "test").strip()]


@pytest.mark.parametrize(
    ("written", "files", "said"),
    [
        ("a", ["a.png", "a.jpg"], "2 files have this name: train/a.jpg, train/a.png; write the name as one of them"),
        ("a.Jpg", ["a.jpg", "a.JPG"], "2 files have this name: train/a.JPG, train/a.jpg"),
        ("A.png", ["a.png"], "the file is missing; did you mean 'a.png'?"),
        ("../train/a.png", ["a.png"], "the file is missing: an ID is a path inside the folder, without '..'"),
        ("/etc/passwd", ["a.png"], "the file is missing"),
        (
            "D:/x/a.png",
            ["s/a.png", "t/a.PNG"],
            "2 files have the name 'a.png': train/s/a.png, train/t/a.PNG; write the",
        ),
        ("D:/x/b.png", ["a.png"], "the file is missing"),
        ("D:/2024/a.png", ["2023/a.png"], "the file is missing; did you mean '2023/a.png'?"),
        ("D:/데이터/A.PNG", ["a.png"], "the file is missing; did you mean 'a.png'?"),
        ("", ["a.png"], "the ID is empty"),
        ("sub", ["sub/a.png"], "is a folder"),
    ],
)
def test_an_id_with_no_file_or_several_says_why(tmp_path: Path, written: str, files: list[str], said: str) -> None:
    for file in files:
        write_pages((tmp_path / "train" / file).parent, [Path(file).name])
    assert said in faults(write_csv(tmp_path, [f'"{written}",0', f"{files[0]},1"]))


def test_a_class_whose_other_images_are_missing_has_not_one_image(tmp_path: Path) -> None:
    write_pages(tmp_path / "train", ["a.png", "b.png", "c.png"])
    said = faults(write_csv(tmp_path, ["a.png,0", "b.png,0", "c.png,1", "D:/x/lost.png,1"]))
    assert "train/D:/x/lost.png: the file is missing" in said and "one image" not in said
    said = faults(write_csv(tmp_path, ["a.png,0", "b.png,0", "lost.png,1"]))
    assert "train/lost.png: the file is missing" in said and "of one class" not in said
    for name, pages in (("x", ["a.png", "b.png"]), ("y", ["a.png"])):
        write_pages(tmp_path / "folders" / "train" / name, pages, 5 * (name == "y"))
    (tmp_path / "folders" / "train" / "y" / "b.png").symlink_to("nowhere.png")
    said = faults(tmp_path / "folders")
    assert "train/y/b.png: is a link to nowhere.png" in said and "one image" not in said


def test_two_rows_with_one_file_are_an_error(tmp_path: Path) -> None:
    write_pages(tmp_path / "train", ["송장.png", "b.png", "c.png"])
    said = faults(
        write_csv(tmp_path, ["송장.png,0", f"{nfd('송장')}.png,1", "송장,1", "b.png,0", "c.png,1", "B.PNG,1"])
    )
    assert "train.csv:3: ID '송장.png' is already in row 2" in said
    assert "train.csv:4: ID '송장' names the file of train.csv:2; remove one row" in said
    assert "train.csv:7: train/B.PNG: the file is missing; did you mean 'b.png'?" in said and "3 errors" in said


def not_utf8(folder: Path, name: bytes = CP949, suffix: bytes = b"") -> Path:
    path = Path(os.fsdecode(bytes(folder) + b"/" + name + suffix))
    folder.mkdir(parents=True, exist_ok=True)
    return path


@pytest.mark.parametrize("what", ["class", "image", "test", "listed"])
def test_names_that_are_not_utf8_are_refused_before_anything_starts(
    tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "data"
    for number, name in enumerate(("x", "y")):
        write_pages(root / "train" / name, ["1.png", "2.png"], 2 * number)
    if what == "class":
        not_utf8(root / "train").mkdir()
    elif what == "listed":
        write_csv(root, [f"{c}/{n}.png,{c}" for c in "xy" for n in (1, 2)])
        draw(0, 9).save(not_utf8(root / "train", suffix=b".png"), "PNG")
    else:
        draw(0, 9).save(not_utf8(root / ("test" if what == "test" else "train/x"), suffix=b".png"), "PNG")
    monkeypatch.setenv("RUN_DIR", str(tmp_path / "run"))
    commands = [["check-data", "--data", str(root), "--output", str(tmp_path / "out")]]
    if what != "test":
        commands += [
            ["train", "--data", str(root), "model.name=test_resnet"],
            ["check-data", "--quick", "--data", str(root)],
        ]
    for command in commands:
        assert main(command) == 65
        said = capsys.readouterr().err
        assert said.isprintable() or "\n" in said
        assert "\\xbc\\xdb\\xc0\\xe5" in said and "the name is not UTF-8 (in CP949 it is '송장" in said
        assert f"{spelling.REPAIR} {root}" in said
    assert not (tmp_path / "run" / "log.txt").exists()
    if what == "test":
        with pytest.raises(DataError, match=r"test/\\xbc\\xdb\\xc0\\xe5\.png: the name is not UTF-8"):
            read_test(root)


def test_the_way_out_of_a_leak_can_be_typed(tmp_path: Path) -> None:
    """Hydra reads names in Korean only in quotation marks."""
    for name in NAMES:
        write_pages(tmp_path / "train" / name, ["1.png", "사본.png", "it's.png"])
    table = read_training(tmp_path, DataConfig())
    split = Split([row for row in range(6) if row % 2], [row for row in range(6) if not row % 2])
    with pytest.raises(DataError) as raised:
        leaks.refuse(table, split, equal_files(table.paths), [])
    word = str(raised.value).split('"')[1]
    allowed = compose([word]).data.allowed_leaks
    assert f"{NAMES[1]}/사본.png" in allowed
    leaks.refuse(table, split, equal_files(table.paths), [nfd(name) for name in allowed])
    with pytest.raises(DataError, match="unknown training image"):
        leaks.refuse(table, split, [], ["없음.png"])


def test_a_run_with_names_in_two_forms_ends_with_one_name_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    for number, name in enumerate((*NAMES, nfd(NAMES[0]))):
        write_pages(
            root / "train" / name, [f"{nfd('쪽')} {page}.png" for page in range(4 * number, 4 * number + 4)], 4 * number
        )
    monkeypatch.setenv("RUN_DIR", str(tmp_path / "run"))
    tiny = ["model.name=test_resnet", "model.pretrained=false", "data.img_size=64", "training.num_workers=0"]
    assert main(["train", "--data", str(root), *tiny, "training.epochs=1", "training.batch_size=4", "device=cpu"]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["class_names"] == sorted(NAMES)
    capsys.readouterr()
    words = [
        "--checkpoint",
        str(tmp_path / "run" / "best.ckpt"),
        "--data",
        str(root),
        "--output",
        str(tmp_path / "out"),
    ]
    assert main(["analyze", *words]) == 0
    said = capsys.readouterr()
    assert "no picture" not in said.out and "Warning" not in said.err + said.out


@pytest.mark.parametrize("encoding", ["ascii", "cp949", "utf-8"])
def test_any_terminal_can_show_any_name(tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = not_utf8(tmp_path)
    for number, name in enumerate(("é", "領収書")):
        write_pages(root / "train" / name, ["1.png", "2.png", "3.png", "4.pdf"], 4 * number)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    assert main(["check-data", "--quick", "--data", str(root), "data.val_fraction=0.34"]) == 0
    sys.stdout.flush()
    shown = sys.stdout.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert "6 training images without errors" in shown and "\\udcbc" in shown and "2 .pdf" in shown
