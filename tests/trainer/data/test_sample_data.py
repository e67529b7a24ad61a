"""sample-data: the layout that the trainer reads, the same bytes for the same seed, nothing of the user's replaced."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from trainer.cli.main import main
from trainer.config.schema import DataConfig
from trainer.data.drawn import KINDS
from trainer.data.table import read_test, read_training
from trainer.images import reading


def drawn(root: Path, *words: str) -> Path:
    assert main(["sample-data", str(root), "--per-class", "3", "--test-per-class", "2", *words]) == 0
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_the_trainer_reads_what_was_drawn(tmp_path: Path) -> None:
    root = drawn(tmp_path / "data", "--classes", str(len(KINDS)))
    table = read_training(root, DataConfig())
    assert table.class_names == list(KINDS) and len(table) == 3 * len(KINDS)
    test = read_test(root)
    with (root / "test_labels.csv").open() as file:
        labels = {row["ID"]: row["target"] for row in csv.DictReader(file)}
    assert test.ids == list(labels) and sorted(set(labels.values())) == sorted(str(k) for k in range(len(KINDS)))
    assert len({reading.open_image(path).tobytes() for path in table.paths}) == len(table), "no two are the same"


def test_the_same_seed_draws_the_same_bytes(tmp_path: Path) -> None:
    a, b, c = (drawn(tmp_path / n, "--classes", "3", "--seed", s) for n, s in (("a", "1"), ("b", "1"), ("c", "2")))
    assert contents(a) == contents(b)
    assert not set(contents(a).values()) & {v for k, v in contents(c).items() if k.endswith(".jpg")}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--classes", "99"], "must be from 2 to 10"),
        (["--classes", "1"], "must be from 2 to 10"),
        (["--per-class", "1"], "must be at least 2"),
        (["--classes", "many"], "not a whole number above 0"),
    ],
)
def test_a_count_that_cannot_be_is_refused(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample-data", str(tmp_path / "data"), *words]) == 64
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_only_what_it_drew_is_replaced_and_only_by_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = drawn(tmp_path / "data", "--classes", "2")
    before = contents(root)
    assert main(["sample-data", str(root)]) == 64 and "--force" in capsys.readouterr().err
    assert contents(root) == before
    drawn(root, "--classes", "2", "--seed", "5", "--force")
    assert contents(root) != before
    own = tmp_path / "own"
    own.mkdir()
    (own / "thesis.txt").write_text("years of work")
    assert main(["sample-data", str(own), "--force"]) == 64
    assert (own / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("place", [".", "link", "killed"])
def test_an_empty_folder_is_filled_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """The current folder and a mount cannot be replaced, and a link stays a link."""
    (tmp_path / "real").mkdir()
    if place == "link":
        (tmp_path / "link").symlink_to("real")
    elif place == "killed":
        (tmp_path / "real" / ".drawing-abc").mkdir()
        place = "real"
    monkeypatch.chdir(tmp_path / "real" if place == "." else tmp_path)
    for _ in range(2):
        assert main(["sample-data", place, "--classes", "2", "--per-class", "2", "--force"]) == 0
    assert {path.name for path in (tmp_path / "real").iterdir()} >= {"train.csv", "train", "test", "meta.csv"}
    assert not list(tmp_path.rglob(".drawing-*")) and (place != "link" or (tmp_path / "link").is_symlink())
