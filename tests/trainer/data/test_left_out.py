"""Nothing of a data folder is left out in silence."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.trainer.conftest import draw, write_documents
from trainer.base.errors import DataError
from trainer.cli.main import main
from trainer.config.schema import DataConfig
from trainer.data import table as tables
from trainer.data.table import read_test, read_training
from trainer.images import files
from trainer.images.reading import open_image
from trainer.predict.predict import test_images as predicted_images

HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAcdtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAADRpbG9j"
    "AAAAAERAAAIAAQAAAAAB6wABAAAAAAAAAHAAAgAAAAACWwABAAAAAAAAACQAAAA4aWluZgAAAAAAAgAAABVpbmZlAgAAAAABAABodmMxAAAAABVp"
    "bmZlAgAAAQACAABFeGlmAAAAAA5waXRtAAAAAAABAAABBmlwcnAAAADlaXBjbwAAAHVodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEAB"
    "DAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQApQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbqrprm4CGgwIAAAAyAAAADAIRiAAEABkQBwXPBiQAAABNj"
    "b2xybmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABAAAAAQAAAAChjbGFwAAAAIAAAAAEAAAAQAAAAAf///+AAAAAC////0AAAAAIAAAAQcGl4aQAA"
    "AAADCAgIAAAACWlyb3QDAAAAGWlwbWEAAAAAAAAAAQABBoECAwWEhgAAABppcmVmAAAAAAAAAA5jZHNjAAIAAQABAAAAnG1kYXQAAABsKAGvCch5"
    "QoNAIszIxiXmaqisExyVmyGBreeP1vqXyithcHqDdoCUKqC0zlNqESZPdpbLJJz+NH9ZRIE4Nq+JYtsa6P43pewtJ4MKCy0LlxZOTo9A7F4hmamP"
    "kjqAb0DR1AMAjWUgxTSdqKv8AAAABkV4aWYAAE1NACoAAAAIAAEBEgADAAAAAQAGAAAAAAAA"
)
"""A photo of a phone, 32 × 16 and turned by a quarter: red in the upper right corner of 16 × 32."""


def write_classes(root: Path, per_class: int = 4) -> Path:
    for kind, name in enumerate(("form", "letter")):
        (root / "train" / name).mkdir(parents=True)
        for number in range(per_class):
            draw(kind, number).save(root / "train" / name / f"{number}.png")
    return root


def test_every_suffix_of_images_is_taken(tmp_path: Path) -> None:
    Image.init()
    for suffix in files.SUFFIXES:
        assert Image.registered_extensions()[suffix] in {*Image.OPEN, "MPO"}, suffix  # Pillow opens MPO as JPEG
    for suffix in (".jp2", ".avif", ".jfif", ".jpe", ".j2k", ".apng", ".JPG", ".dib", ".ppm", ".tga", ".webp"):
        draw(0, 1).save(tmp_path / f"{suffix[1:]}{suffix}")
    (tmp_path / "heic.HEIC").write_bytes(HEIC)
    table = predicted_images(tmp_path)
    assert len(table) == 12
    assert all(np.asarray(open_image(path)).std() > 1 for path in table.paths)
    assert files.find_image(tmp_path, "avif", "test") == tmp_path / "avif.avif"


def test_a_photo_of_a_phone_is_upright(tmp_path: Path) -> None:
    (tmp_path / "x.heic").write_bytes(HEIC)
    pixels = np.asarray(open_image(tmp_path / "x.heic")).astype(int)
    assert pixels.shape == (32, 16, 3)
    assert abs(pixels[3, 13] - (200, 30, 30)).max() < 20 and pixels[3, 2].min() > 240 and pixels[28, 13].min() > 240


def test_what_is_left_out_is_one_line_in_every_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_classes(tmp_path / "data")
    (root / "test").mkdir()
    draw(0, 8).save(root / "test" / "scan.png")
    for folder in (root / "train" / "form", root / "test"):
        for name in ("a.pdf", "b.PDF", "c.docx", "noise", "Thumbs.db", ".DS_Store"):
            (folder / name).touch()
        (folder / ".ipynb_checkpoints").mkdir()
        draw(0, 9).save(folder / ".ipynb_checkpoints" / "a-checkpoint.png")
        (folder / "@eaDir" / "0.png").mkdir(parents=True)
        draw(0, 9).save(folder / "@eaDir" / "0.png" / "SYNOPHOTO.jpg")
    draw(0, 9).save(root / "train" / "loose.png")
    expected = (
        "left out: 4 files that are no images (2 .pdf, 1 without suffix, 1 .docx), 1 image in .ipynb_checkpoints/, "
        "1 image in @eaDir/"
    )
    assert main(["check-data", "--quick", "--data", str(root)]) == 0
    said = capsys.readouterr().out
    assert f"note: {expected}, 1 image in train/ beside its class folders" in said and said.count("left out") == 1
    assert ".pdf: make an image of each page: `pdftoppm" in said and "8 training images" in said
    assert main(["check-data", "--data", str(root), "--output", str(tmp_path / "out"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["images"] == {"train": 8, "validation": 2, "test": 1}
    assert [expected in note for note in report["notes"]] == [True, True]
    assert predicted_images(root).ids == ["scan.png"]
    assert f"note: {expected}" in capsys.readouterr().out
    monkeypatch.setattr(files, "SUFFIXES", tuple(s for s in files.SUFFIXES if s not in files.HEIC))
    (root / "test" / "phone.heic").write_bytes(HEIC)
    predicted_images(root)
    assert ".heic: install the reader: `pip install pi-heif`" in capsys.readouterr().out


def test_images_that_no_table_names_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_documents(tmp_path / "data")
    for name in ("unlabelled.png", "b.png", "c.png", "a.png"):
        draw(0, 9).save(root / "train" / name)
    draw(0, 9).save(root / "test" / "more.png")
    (root / "val").mkdir()
    (root / "test" / "page.pdf").touch()
    read_training(root, DataConfig())
    said = capsys.readouterr().out
    assert "left out: 4 images of train/, which are not in train.csv (a.png, b.png, c.png, …), val/, because" in said
    predicted_images(root)
    said = capsys.readouterr().out
    assert "left out: 1 image of test/, which is not in sample_submission.csv (more.png)" in said and "1 .pdf" in said


def test_links_and_folders_are_reported_with_all_other_errors(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "data")
    form = root / "train" / "form"
    (form / "gone.jpg").symlink_to("/nowhere/a.jpg")
    (form / "circle.jpg").symlink_to("circle.jpg")
    (form / "folder.jpg").mkdir()
    os.mkfifo(form / "pipe.jpg")
    (form / "0.png").write_bytes(b"")
    (form / "again").symlink_to(form)  # a circle of folders ends
    with pytest.raises(DataError) as raised:
        read_training(root, DataConfig())
    said = str(raised.value)
    for expected in (
        "train/form/gone.jpg: is a link to /nowhere/a.jpg, which does not exist; copy the file, or remove the link",
        "train/form/circle.jpg: is a link to circle.jpg, which does not exist",
        "train/form/folder.jpg: is a folder with the name of an image; rename or remove it",
        "train/form/pipe.jpg: is no regular file",
        "train/form/0.png: the file is empty",
        "5 errors",
    ):
        assert expected in said
    (root / "test").mkdir()
    (root / "test" / "gone.jpg").symlink_to("/nowhere/a.jpg")
    with pytest.raises(DataError, match=r"test/gone\.jpg: is a link to /nowhere/a\.jpg"):
        read_test(root)


def test_links_that_tables_name_are_reported_once(tmp_path: Path) -> None:
    root = write_documents(tmp_path / "data")
    for folder, name in (("train", "0-000.jpg"), ("test", "t0.jpg")):
        (root / folder / name).unlink()
        (root / folder / name).symlink_to("gone.jpg")
    with pytest.raises(DataError) as raised:
        read_training(root, DataConfig())
    assert str(raised.value).startswith("train.csv:2: train/0-000.jpg: is a link to gone.jpg, which does not exist")
    assert "1 error in" in str(raised.value)
    with pytest.raises(DataError, match=r"sample_submission\.csv:7: test/t0\.jpg: is a link"):
        read_test(root)


def test_linked_folders_are_read(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "data")
    shutil.move(root / "train" / "form", tmp_path / "elsewhere")
    (root / "train" / "form").mkdir()
    (root / "train" / "form" / "linked").symlink_to(tmp_path / "elsewhere")
    assert [i for i in read_training(root, DataConfig()).ids if "form" in i] == [
        f"form/linked/{n}.png" for n in range(4)
    ]


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, real = write_classes(tmp_path / "data"), os.scandir

    def scandir(path: object) -> object:
        if str(path).endswith("form"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match="train/form: the folder cannot be read: Permission denied"):
        read_training(root, DataConfig())


@pytest.mark.parametrize("closed", ["train", "train/form", "train.csv", "a picture", "test"])
def test_what_this_user_may_not_read_is_an_error_with_its_place(closed: str) -> None:
    """As another user, if this is root. A folder that may be listed and not searched, and a file."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        root = (write_documents if closed == "train.csv" else write_classes)(Path(folder) / "data")
        (root / "test").mkdir(exist_ok=True)
        picture = next(path for path in sorted((root / "train").rglob("*")) if path.is_file())
        shutil.copy(picture, root / "test" / f"a{picture.suffix}")
        path = picture if closed == "a picture" else root / closed
        read = (lambda: predicted_images(root)) if closed == "test" else (lambda: read_training(root, DataConfig()))
        read()  # imports: that user may not read Python's library
        os.utime(path, (0, 0))  # another file than the one that was read
        path.chmod(0o444 if path.is_dir() else 0)
        before = os.geteuid()
        try:
            os.seteuid(65534 if before == 0 else before)
            with pytest.raises(DataError) as raised:
                read()
        finally:
            os.seteuid(before)
            path.chmod(0o755)
    place = str(path) if closed in ("train", "train.csv", "test") else str(path.relative_to(root))
    assert re.search(rf"{re.escape(place)}: (the (folder|file) )?cannot be read: Permission denied", str(raised.value))
    assert "Errno" not in str(raised.value) and "has no image" not in str(raised.value)


def test_many_errors_are_counted_and_written_down(tmp_path: Path) -> None:
    root = write_documents(tmp_path / "data", per_class=40)
    for path in (root / "train").glob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(DataError) as raised:
        read_training(root, DataConfig(), tmp_path / "all.txt")
    assert len(str(raised.value).splitlines()) == tables.MOST + 2
    assert len((tmp_path / "all.txt").read_text().splitlines()) >= 120
    (root / "sample_submission.csv").write_text("ID\n" + "\n".join(f"{n}.jpg" for n in range(200)))
    with pytest.raises(DataError) as raised:
        predicted_images(root)
    assert len(str(raised.value).splitlines()) == tables.MOST + 2 and "200 errors" in str(raised.value)


def test_one_image_or_a_folder_of_images_can_be_predicted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_classes(tmp_path / "data")
    page = root / "train" / "form" / "0.png"
    assert predicted_images(page).paths == [page]
    assert predicted_images(page.parent).ids == ["0.png", "1.png", "2.png", "3.png"]
    for folder in (root, root / "train"):
        with pytest.raises(DataError, match="no test images: add sample_submission"):
            predicted_images(folder)
    write_documents(tmp_path / "more")
    assert len(predicted_images(tmp_path / "more" / "test")) == 6
    capsys.readouterr()


def test_unreadable_test_images_can_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_documents(tmp_path / "data")
    (root / "test" / "t0.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="--skip_unreadable"):
        predicted_images(root)
    table = predicted_images(root, skip_unreadable=True)
    assert table.ids == [f"t{n}.jpg" for n in (5, 4, 3, 2, 1)]
    said = capsys.readouterr().out
    assert "left out: test/t0.jpg: the file is empty" in said and "note: 1 of 6 images cannot be read" in said
    for path in (root / "test").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError) as raised:
        predicted_images(root, skip_unreadable=True)
    assert "--skip_unreadable" not in str(raised.value)


def test_images_with_a_wrong_label_are_in_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_documents(tmp_path / "data")
    (root / "train.csv").write_text((root / "train.csv").read_text().replace(",2", ",9"))
    (root / "meta.csv").write_text("target,class_name\n0,a\n1,b\n2,b\n")
    with pytest.raises(
        DataError, match=r"label '9' is out of range(.|\n)*class_name 'b' occurs 2 times|occurs 2(.|\n)*'9'"
    ):
        read_training(root, DataConfig())
    said = capsys.readouterr().out
    assert "not in train.csv" not in said and "case of letters" not in said


def test_a_split_under_a_name_that_is_not_read_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables, folders = write_documents(tmp_path / "tables"), write_classes(tmp_path / "folders")
    (tables / "Dev.csv").write_text("ID,target\n")
    for root in (tables, folders):
        (root / "dev").mkdir()
    read_training(tables, DataConfig())
    assert "left out: Dev.csv, dev/, which nothing reads (the names of a val" in capsys.readouterr().out
    read_training(folders, DataConfig())
    assert "left out: dev/, which nothing reads" in capsys.readouterr().out
    classes = tmp_path / "folders" / "train"
    (classes / "dev").mkdir()
    draw(1, 1).save(classes / "dev" / "0.png")
    draw(1, 2).save(classes / "dev" / "1.png")
    assert read_training(classes, DataConfig()).class_names == ["dev", "form", "letter"], "without train/ it is a class"
    assert "nothing reads" not in capsys.readouterr().out
