"""Tables as people make them are read where they have one meaning. Otherwise the error says what was seen."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.trainer.conftest import write_documents
from trainer.base.errors import DataError
from trainer.config.schema import DataConfig
from trainer.data.rows import Table
from trainer.data.table import read_test, read_training
from trainer.predict.predictions import Origin, Predictions, write
from trainer.report import analyze
from trainer.scores.val_predictions import Validation

KOREAN = "ID,target\n0-000.jpg,송장\n0-001.jpg,송장\n1-000.jpg,견적서\n1-001.jpg,견적서\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = write_documents(tmp_path / "data", per_class=2)
    (folder / "meta.csv").unlink()
    return folder


def read(root: Path, content: str | bytes, name: str = "train.csv") -> Table:
    (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_training(root, DataConfig())


def said(root: Path, content: str | bytes, name: str = "train.csv") -> str:
    with pytest.raises(DataError) as raised:
        read(root, content, name)
    return str(raised.value)


@pytest.mark.parametrize(
    "content",
    [
        KOREAN.encode("cp949"),
        KOREAN.encode("euc-kr"),
        KOREAN.encode("utf-8-sig"),
        KOREAN.encode("utf-16"),
        b"\xff\xfe" + KOREAN.replace(",", "\t").encode("utf-16-le"),
        b"\xfe\xff" + KOREAN.encode("utf-16-be"),
        KOREAN.encode("utf-16-le"),
        KOREAN.encode("utf-32"),
        KOREAN.replace(",", ";").encode("cp949"),
        KOREAN.replace("\n", "\r\n").encode("cp949"),
    ],
)
def test_encodings_of_spreadsheets_are_read(root: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    assert read(root, content).class_names == ["견적서", "송장"]
    notes = capsys.readouterr().out
    assert ("note: train.csv is not in UTF-8; it was read as CP949" in notes) == ("송".encode("cp949") in content)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(",", ";"),
        lambda text: text.replace(",", "\t"),
        lambda text: text.replace(",", "|"),
        lambda text: "sep=;\n" + text.replace(",", ";"),
        lambda text: text.replace("\n", ",\n"),
        lambda text: text.replace("\n", ",\n").replace("ID,target,", "ID,target"),
        lambda text: text.replace("\n", ",,,\n").replace("ID,target,,,", "ID,target"),
        lambda text: text + "\n\n",
        lambda text: text + ",\n , \n,,,\n",
        lambda text: text.replace("1-000", "\n,\n1-000"),
        lambda text: text.replace(",", " , "),
        lambda text: text.replace(",송장", ",송장  "),
        lambda text: text.replace("ID,target", " id , Target "),
        lambda text: text.replace("ID,target", "\ufeffID,target"),
        lambda text: "".join(f",{line}\n" if n == 0 else f"{n},{line}\n" for n, line in enumerate(text.splitlines())),
        lambda text: "".join(f'"{line.replace(",", chr(34) + "," + chr(34))}"\n' for line in text.splitlines()),
        lambda text: "".join(",".join(reversed(line.split(","))) + "\n" for line in text.splitlines()),
        lambda text: text.replace("\n", "\r"),
    ],
)
def test_one_meaning_is_read(root: Path, change: Callable[[str], str]) -> None:
    table = read(root, change(KOREAN))
    assert table.ids == ["0-000.jpg", "0-001.jpg", "1-000.jpg", "1-001.jpg"]
    assert [table.class_names[target] for target in table.targets] == ["송장", "송장", "견적서", "견적서"]


def test_a_row_is_named_by_its_line(root: Path) -> None:
    text = 'ID,target,note\n0-000.jpg,0,"two\nlines"\n\n0-001.jpg,0,\nnope.jpg,1,\n1-000.jpg,1,\n1-001.jpg,1,\n'
    assert "train.csv:6: train/nope.jpg: the file is missing" in said(root, text)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            "0-000.jpg,송장\n",
            "train.csv:1: no column 'ID'; valid: 0-000.jpg, 송장 (columns: 0-000.jpg, 송장); the first line must be: ID,target",
        ),
        ("ID target\n0-000.jpg 0\n", "(the line has no known separator); the first line must be: ID,target"),
        ("ID,target\n0-000.jpg,0\na, b.jpg,0\n", "train.csv:3: 3 values, but the header has 2"),
        ("ID,target\na, b.jpg,0\n", 'write a value that contains a separator in quotation marks: "a, b.jpg"'),
        ("ID,target,target\n0-000.jpg,0,1\n", "train.csv:1: column 'target' occurs twice"),
        ('ID,target\n0-000.jpg,0\n"0-001.jpg,0\n', "train.csv:3: not a CSV file: a quotation mark is not closed"),
        ("ID,target\n0-000.jpg,0\n,1\n", "train.csv:3: train/: the ID is empty"),
        (
            "ID,target\n0-000.jpg,\n0-001.jpg,nan\n1-000.jpg,1\n1-001.jpg,1",
            "train.csv:3: ID '0-001.jpg': label 'nan' is empty",
        ),
        ("ID,target\n", "train.csv:1: no rows below the header"),
        (b"\xff\xfeI", "not a text file in utf-16"),
        ("ID,target\n0-000.jpg,0\n0-0\0.jpg,0\n", "train.csv:3: not a text file: the line has a byte of zero"),
        ("ID,target\n1-000.jpg,請求書\n".encode("cp932"), "train.csv:2: not in UTF-8: "),
        ("ID,target\n1-000.jpg,請求書\n".encode("cp932"), "in CP932 line 2 is '1-000.jpg,請求書'"),
        ("ID,target\n1-000.jpg,发票请求书\n".encode("gb18030"), "in GB18030 line 2 is '1-000.jpg,发票请求书'"),
        (
            "ID,target\n1-000.jpg,café 1\n".encode("cp1252"),
            "iconv -f CP1252 -t UTF-8 train.csv > new.csv (in Excel: save as 'CSV UTF-8')",
        ),
    ],
)
def test_what_has_no_meaning_or_two_says_what_was_seen(root: Path, content: str | bytes, expected: str) -> None:
    assert expected in said(root, content)


@pytest.mark.parametrize(
    ("labels", "meta", "names", "in_submission"),
    [
        (["0.0", "0.0", "10.0", "2.0"], None, ["0", "2", "10"], ["0", "2", "10"]),
        (["3", "3.0", "4", "4.0"], None, ["3", "4"], ["3", "4"]),
        (["3.0", "3 ", "4", "4.0"], "3,a\n4,b\n", ["a", "b"], ["3", "4"]),
        (["3", "3", "4", "4"], "3.0,a\n4.0,b\n", ["a", "b"], ["3", "4"]),
        (["a", "3", "b", "b"], "3,a\n4,b\n", ["a", "b"], ["3", "4"]),
        (["3", "3", "04", "4"], "03,a\n4,b\n", ["a", "b"], ["03", "4"]),
        (["1.0", "1.0", "1.5", "1.5"], None, ["1.0", "1.5"], ["1.0", "1.5"]),
        (["3", "3.0", "other", "other"], None, ["3", "other"], ["3", "other"]),
        (["01", "01", "1", "1"], None, ["01", "1"], ["01", "1"]),
        (["1", "1", "9" * 5000, "9" * 5000], None, ["1", "9" * 5000], ["1", "9" * 5000]),
        (["1", "1", "9" * 5000, "b"], "1,a\n" + "9" * 5000 + ",b\n", ["a", "b"], ["1", "9" * 5000]),
    ],
)
def test_labels_of_other_programs(
    root: Path, labels: list[str], meta: str | None, names: list[str], in_submission: list[str]
) -> None:
    if meta is not None:
        (root / "meta.csv").write_text("target,class_name\n" + meta)
    ids = ("0-000.jpg", "0-001.jpg", "1-000.jpg", "1-001.jpg")
    (root / "train.csv").write_text(
        "ID,target\n" + "".join(f"{i},{label}\n" for i, label in zip(ids, labels, strict=True))
    )
    try:
        table = read_training(root, DataConfig())
    except DataError as error:
        assert labels[2] == "10.0" and "has one image" in str(error)  # the order of the classes is what counts here
        return
    assert table.class_names == names and table.labels == in_submission


def test_the_nearest_label_is_named(root: Path) -> None:
    (root / "meta.csv").write_text("target,class_name\n0,Invoice\n1,form\n")
    assert "label 'invoice' is out of range; meta.csv has 0 to 1; did you mean 'Invoice'?" in said(
        root, "ID,target\n0-000.jpg,invoice\n0-001.jpg,0\n1-000.jpg,1\n1-001.jpg,form\n"
    )


def test_a_sample_submission_of_a_spreadsheet_is_read(root: Path) -> None:
    text = (root / "sample_submission.csv").read_text()
    names = [line.split(",")[0] for line in text.splitlines()[1:]]
    (root / "sample_submission.csv").write_bytes(
        (text.replace(",", ";").replace("\n", ";\n") + ";;\n").encode("utf-16")
    )
    assert read_test(root).ids == names
    (root / "sample_submission.csv").write_text(text + "t0.jpg,0\nx.jpg,0\n")
    with pytest.raises(DataError) as raised:
        read_test(root)
    assert "sample_submission.csv:8: ID 't0.jpg' is already in row 7" in str(raised.value)
    assert "sample_submission.csv:9: test/x.jpg: the file is missing" in str(raised.value)


def submission(folder: Path, ids: list[str], labels: list[str]) -> bytes:
    folder.mkdir(exist_ok=True)
    probabilities = torch.eye(len(labels))[[n % len(labels) for n in range(len(ids))]]
    write(Predictions(ids, probabilities, labels, labels), folder, Origin("0" * 64, "x", "none", "fp32"))
    return (folder / "submission.csv").read_bytes()


def test_a_submission_opens_in_excel_and_a_competition_accepts_it(tmp_path: Path) -> None:
    """In ASCII it is what it always was. With Korean it has a byte order mark, which pandas and Python leave out."""
    assert submission(tmp_path / "a", ["t0.jpg", "t1.jpg"], ["0", "1"]) == b"ID,target\nt0.jpg,0\nt1.jpg,1\n"
    content = submission(tmp_path / "b", ["쪽 1.jpg", "쪽 2.jpg"], ["송장", "견적서"])
    assert content == b"\xef\xbb\xbf" + "ID,target\n쪽 1.jpg,송장\n쪽 2.jpg,견적서\n".encode()
    frame = pd.read_csv(tmp_path / "b" / "submission.csv")
    assert frame.to_dict("list") == {"ID": ["쪽 1.jpg", "쪽 2.jpg"], "target": ["송장", "견적서"]}
    with (tmp_path / "b" / "submission.csv").open(encoding="utf-8-sig") as file:
        assert [row["ID"] for row in csv.DictReader(file)] == ["쪽 1.jpg", "쪽 2.jpg"]


def test_a_submission_can_be_the_next_table(root: Path) -> None:
    """Result files are read by the trainer itself, too."""
    content = submission(root, ["0-000.jpg", "0-001.jpg", "1-000.jpg", "1-001.jpg"], ["송장", "견적서"])
    assert read(root, content).class_names == ["견적서", "송장"]


def test_the_classification_report_opens_in_excel(tmp_path: Path) -> None:
    targets = torch.tensor([0, 1, 1]).numpy()
    validation = Validation(["a", "b", "c"], targets, torch.eye(2)[[0, 1, 0]].numpy(), ["송장", "견적서"])
    analyze.write_table(validation, tmp_path / "classification_report.csv")
    assert (tmp_path / "classification_report.csv").read_bytes().startswith(b"\xef\xbb\xbfclass,precision")
    assert pd.read_csv(tmp_path / "classification_report.csv", index_col="class").loc["송장", "recall"] == 1


def test_a_pipe_is_no_table(root: Path) -> None:
    (root / "meta.csv").unlink(missing_ok=True)
    os.mkfifo(root / "meta.csv")
    with pytest.raises(DataError, match=r"meta\.csv: is no regular file"):
        read_training(root, DataConfig())
