"""Data folders: every fault at once by file and row, every kind of image, an honest split."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.trainer.conftest import draw, write_documents
from tests.trainer.images.test_read_page import BACK
from trainer.base.errors import DataError
from trainer.config.schema import DataConfig
from trainer.data import sampling
from trainer.data.rows import Table
from trainer.data.split import split_images
from trainer.data.table import data_root, read_test, read_training
from trainer.images import reading


def read(root: Path, **settings: object) -> Table:
    return read_training(root, DataConfig(**settings))  # type: ignore[arg-type]


def faults(root: Path) -> str:
    with pytest.raises(DataError) as raised:
        read(root)
    return str(raised.value)


def test_csv_layout(documents: Path) -> None:
    table = read(documents)
    assert len(table) == 36
    assert table.class_names == ["stripes", "boxes", "discs"]
    assert table.labels == ["0", "1", "2"]
    assert Counter(table.targets) == {0: 12, 1: 12, 2: 12}
    test = read_test(documents)
    assert test.ids == [f"t{n}.jpg" for n in reversed(range(6))], "the order of sample_submission.csv"


def test_plain_imagefolder(tmp_path: Path) -> None:
    for kind, name in enumerate(("b", "a")):
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(4):
            draw(kind, number).save(tmp_path / "train" / name / f"{number}.png")
    (tmp_path / "test").mkdir()
    draw(0, 9).save(tmp_path / "test" / "x.png")
    for root in (tmp_path, tmp_path / "train"):
        table = read(root)
        assert table.class_names == table.labels == ["a", "b"]
        assert table.ids[0] == "a/0.png" and len(table) == 8
    assert read_test(tmp_path).ids == ["x.png"]


def test_every_fault_is_reported_at_once_by_file_and_row(tmp_path: Path) -> None:
    root = write_documents(tmp_path / "data")
    (root / "train" / "0-000.jpg").unlink()
    (root / "train" / "0-001.jpg").write_bytes(b"")
    (root / "train" / "0-002.jpg").write_text("no image")
    whole = (root / "train" / "0-003.jpg").read_bytes()
    (root / "train" / "0-003.jpg").write_bytes(whole[: len(whole) // 2])
    lines = (root / "train.csv").read_text().splitlines()
    lines[6] = "0-005.jpg,17"
    lines.append("1-000.jpg,1")
    lines.append("../train/1-001.jpg,1")
    shutil.copy(root / "train" / "1-000.jpg", root / "train" / "lone.jpg")
    lines.append("lone.jpg,3")
    (root / "train.csv").write_text("\n".join(lines))
    with (root / "meta.csv").open("a") as meta:
        meta.write("3,lonely\n")
    message = faults(root)
    for expected in (
        "train.csv:2: train/0-000.jpg: the file is missing",
        "train.csv:3: train/0-001.jpg: the file is empty (0 bytes)",
        "train.csv:4: train/0-002.jpg: not a readable image",
        "train.csv:5: train/0-003.jpg: not a readable image",
        "train.csv:7: ID '0-005.jpg': label '17' is out of range; meta.csv has 0 to 3",
        "train.csv:38: ID '1-000.jpg' is already in row 14",
        "train.csv:39: train/../train/1-001.jpg: the file is missing",
        "train.csv:40: train/lone.jpg: class 'lonely' has one image",
        "8 errors",
    ):
        assert expected in message


def test_csv_files_of_spreadsheets_are_read(tmp_path: Path) -> None:
    """Another program's line ends and byte order mark, quotation marks, blank and short lines, a page's whole text in a
    field; no value is a number."""
    root = write_documents(tmp_path / "data", per_class=2)
    ids = ["0-000.jpg", "0-001.jpg", "1-000.jpg", '1 "001", b.jpg']
    (root / "train" / "1-001.jpg").rename(root / "train" / ids[3])
    (root / "meta.csv").unlink()
    rows = ["ID,target,group,text", f"{ids[0]},01,NA,{'x' * 200_000}", f"{ids[1]},01", f'"{ids[2]}",1,"x, y"']
    rows.append('"1 ""001"", b.jpg",1,')
    (root / "train.csv").write_bytes(b"\xef\xbb\xbf" + "\r".join(rows).encode())
    table = read_training(root, DataConfig())
    assert table.ids == ids and table.labels == ["01", "1"] and table.groups == ["NA", "", "x, y", ""]


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("train.csv", "ID,label\nx,0\n", "train.csv:1: no column 'target'"),
        ("train.csv", "ID,target\n", "no rows below the header"),
        ("train.csv", "", "not a CSV file"),
        ("train.csv", 'ID,target\n"a,1\nb,c,d\n', "not a CSV file"),
        ("train.csv", "ID,target\nx,0,1\n", "train.csv:2: 3 values, but the header has 2"),
        ("train.csv", "\nID,target\nx,0\n", "its first line is empty"),
        ("meta.csv", "target,class_name\n0,a\n0,b\n1,a\n2,c\n", "class_name 'a' occurs 2 times"),
        ("sample_submission.csv", "target\n0\n", "no column 'ID'"),
    ],
)
def test_a_broken_table_is_one_clear_error(tmp_path: Path, file: str, content: str, said: str) -> None:
    root = write_documents(tmp_path / "data")
    (root / file).write_text(content)
    with pytest.raises(DataError) as raised:
        read_test(root) if file == "sample_submission.csv" else read(root)
    assert said in str(raised.value)


def test_one_class_alone_is_nothing_to_train_on(tmp_path: Path) -> None:
    root = write_documents(tmp_path / "data")
    lines = (root / "train.csv").read_text().splitlines()
    (root / "train.csv").write_text("\n".join([lines[0], *(line for line in lines[1:] if line.endswith(",0"))]))
    assert "all 12 images are of one class, 'stripes'" in faults(root)


def test_a_missing_folder_names_the_ways_to_give_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"nowhere: the data folder \(DATA_DIR\) does not exist.*sample-data"):
        data_root(DataConfig())


def test_a_checked_set_is_remembered_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_documents(tmp_path / "data")
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "cache"))
    read(root)
    assert len(list((tmp_path / "cache" / "examined").glob("[!.]*"))) == 1
    read(root)
    (root / "train" / "0-000.jpg").write_bytes(b"broken")
    assert "train.csv:2" in faults(root)


def test_split_is_stratified_seeded_and_named(documents: Path) -> None:
    table = read(documents)
    first, again, other = (split_images(table, DataConfig(split_seed=s)) for s in (1, 1, 2))
    assert first == again and first.fingerprint != other.fingerprint
    assert not set(first.train) & set(first.val) and len(first.train) + len(first.val) == len(table)
    assert max(Counter(table.targets[r] for r in first.val).values()) <= 3
    assert {table.targets[r] for r in first.val} == {0, 1, 2}


def test_no_group_is_on_both_sides(tmp_path: Path) -> None:
    root = write_documents(tmp_path / "data")
    lines = (root / "train.csv").read_text().splitlines()
    grouped = [lines[0] + ",group"] + [f"{line},{number // 3}" for number, line in enumerate(lines[1:])]
    (root / "train.csv").write_text("\n".join(grouped))
    table = read(root)
    assert table.groups is not None
    for seed in range(5):
        made = split_images(table, DataConfig(split_seed=seed))
        assert not {table.groups[r] for r in made.train} & {table.groups[r] for r in made.val}


@pytest.mark.parametrize("grouped", [False, True])
def test_folds_hold_out_every_image_once_and_share_a_name(tmp_path: Path, grouped: bool) -> None:
    root = write_documents(tmp_path / "data", per_class=14)
    lines = (root / "train.csv").read_text().splitlines()
    if grouped:
        with_groups = [lines[0] + ",group"] + [f"{line},{number // 2}" for number, line in enumerate(lines[1:])]
        (root / "train.csv").write_text("\n".join(with_groups))
    table = read(root)
    made = [split_images(table, DataConfig(folds=5, fold=k)) for k in range(5)]
    assert sorted(row for fold in made for row in fold.val) == list(range(len(table)))
    assert len({fold.fingerprint for fold in made}) == 5
    assert len({fold.folds_fingerprint for fold in made}) == 1 and made[0].folds_fingerprint
    for fold in made:
        assert sorted([*fold.train, *fold.val]) == list(range(len(table)))
        assert {table.targets[row] for row in fold.val} == {0, 1, 2}
        if table.groups is not None:
            assert not {table.groups[r] for r in fold.train} & {table.groups[r] for r in fold.val}
    other = split_images(table, DataConfig(folds=5, fold=0, split_seed=1))
    assert other.folds_fingerprint != made[0].folds_fingerprint
    assert split_images(table, DataConfig()).folds_fingerprint is None


def test_more_folds_than_images_of_a_class_is_a_clear_error(documents: Path) -> None:
    with pytest.raises(DataError, match=r"data\.folds=13: 36 images in 3 classes cannot be split: .* at most 12"):
        split_images(read(documents), DataConfig(folds=13))


def test_a_class_in_one_group_cannot_be_split(tmp_path: Path) -> None:
    root = write_documents(tmp_path / "data")
    lines = (root / "train.csv").read_text().splitlines()
    (root / "train.csv").write_text(
        "\n".join([lines[0] + ",group"] + [f"{line},{n if line[0] > '0' else 'x'}" for n, line in enumerate(lines[1:])])
    )
    with pytest.raises(DataError, match="every image of class 'stripes' is in group 'x'"):
        split_images(read(root), DataConfig())


def marked() -> Image.Image:
    """Upright: dark in the upper left."""
    page = np.full((40, 60, 3), 255, np.uint8)
    page[:15, :25] = (200, 30, 30)
    return Image.fromarray(page)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path: Path, orientation: int) -> None:
    turn = BACK[orientation]
    stored = marked() if turn is None else marked().transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(np.asarray(reading.open_image(tmp_path / "x.png")), np.asarray(marked()))


@pytest.mark.parametrize(
    "kind", ["L", "1", "P", "RGBA", "LA", "CMYK", "I;16", "I", "F", "P-transparent", "RGB-transparent"]
)
def test_every_kind_of_image_becomes_rgb(tmp_path: Path, kind: str) -> None:
    suffix = {"CMYK": ".jpg", "F": ".tiff", "I": ".tiff"}.get(kind, ".png")
    path = tmp_path / f"x{suffix}"
    grey = Image.new("L", (20, 10), 255)
    grey.paste(51, (0, 0, 10, 10))
    if kind in ("I;16", "I"):
        Image.fromarray(np.asarray(grey).astype(np.uint16 if kind == "I;16" else np.int32) * 257).save(path)
    elif kind == "F":
        Image.fromarray(np.asarray(grey).astype(np.float32) / 255).save(path)
    elif kind in ("RGBA", "LA"):
        alpha = Image.new("L", (20, 10), 255)
        alpha.paste(0, (10, 0, 20, 10))  # the right half is transparent: white paper must shine through
        black = Image.new("L", (20, 10), 0)
        black.paste(51, (0, 0, 10, 10))
        Image.merge(kind, [*([black] * (3 if kind == "RGBA" else 1)), alpha]).save(path)
    elif kind == "P-transparent":
        palette = grey.convert("RGB").quantize(4)
        index = palette.getpixel((15, 5))
        palette.putpalette([0 if i // 3 == index else v for i, v in enumerate(palette.getpalette() or [])])
        palette.save(path, transparency=index)
    elif kind == "RGB-transparent":
        page = Image.new("RGB", (20, 10), (1, 2, 3))
        page.paste((51, 51, 51), (0, 0, 10, 10))
        page.save(path, transparency=(1, 2, 3))
    else:
        grey.convert("RGB" if kind == "CMYK" else "L").convert(kind).save(path)
    out = reading.open_image(path)
    assert (out.mode, out.size) == ("RGB", (20, 10))
    left, right = np.asarray(out)[5, 4].astype(int), np.asarray(out)[5, 16].astype(int)
    assert (abs(left - (0 if kind == "1" else 51)) <= 3).all() and (right >= 252).all()


def test_sampler_shares_an_epoch_among_processes_and_resumes_in_it() -> None:
    rows = list(range(100, 123))
    whole = sampling.EpochSampler(rows, 5, 20)
    whole.set_position(3)
    order = [row for _, row in whole]
    assert len(order) == 20 and all(epoch == 3 for epoch, _ in whole)
    parts = [sampling.EpochSampler(rows, 5, 20, rank, 2) for rank in range(2)]
    for part in parts:
        part.set_position(3)
    assert [row for pair in zip(*parts, strict=True) for _, row in pair] == order
    whole.set_position(3, skip=8)
    assert [row for _, row in whole] == order[8:]
    uneven = [sampling.EpochSampler(rows, 5, 23, rank, 2) for rank in range(2)]
    assert [len(part) for part in uneven] == [12, 12]
    assert {row for part in uneven for _, row in part} == set(rows)
    validation = [sampling.EpochSampler(rows, None, 23, rank, 2) for rank in range(2)]
    assert sorted(row for part in validation for _, row in part) == rows, "no image counts twice"
