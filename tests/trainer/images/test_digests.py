"""Each image file is hashed once for all runs."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import pytest

from trainer.data import duplicates
from trainer.data.split import Split
from trainer.data.table import content_fingerprint
from trainer.images import digests


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read. Nothing is known of earlier tests."""
    names: list[str] = []
    real = digests.sha256
    monkeypatch.setattr(digests, "sha256", lambda path: names.append(path.name) or real(path))
    monkeypatch.setattr(digests, "_known", {})
    return names


def write(folder: Path, count: int) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(b"%d" % (number % 3 if number < 6 else number + 100))
    return paths


def test_a_run_reads_a_file_once_and_the_next_run_none(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "cache"))
    paths = write(tmp_path / "data", 8)
    whole = content_fingerprint(paths)
    pairs = duplicates.equal_files(paths)
    assert sorted(read) == sorted(path.name for path in paths)
    assert [(pair.a, pair.b) for pair in pairs] == [(0, 3), (1, 4), (2, 5)]
    assert digests.digests(paths) == [hashlib.sha256(path.read_bytes()).digest() for path in paths]
    (tmp_path / "data").rename(tmp_path / "mounted elsewhere")  # as in a container
    moved = [tmp_path / "mounted elsewhere" / path.name for path in paths]
    digests._known.clear()  # another process
    assert content_fingerprint(moved) == whole and len(read) == 8
    moved[2].write_bytes(b"another")
    assert content_fingerprint(moved) != whole and read[8:] == ["2.jpg"]


def test_a_changed_time_is_a_changed_file_and_a_damaged_cache_is_none(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "cache"))
    paths = write(tmp_path / "data", 3)
    whole = content_fingerprint(paths)
    os.utime(paths[0], ns=(1, 1))
    assert content_fingerprint(paths) == whole and read[3:] == ["0.jpg"]
    for stored in (tmp_path / "cache" / "digests").iterdir():
        stored.write_bytes(stored.read_bytes()[:-1])
    digests._known.clear()
    assert content_fingerprint(paths) == whole and len(read) == 7


def test_without_a_cache_each_process_reads_once(tmp_path: Path, read: list[str]) -> None:
    paths = write(tmp_path / "data", 5)
    assert content_fingerprint(paths) == content_fingerprint(paths) and len(read) == 5


def test_many_equal_files_are_few_pairs_and_no_leak_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MOST_PAIRS", 60)
    paths = [tmp_path / f"{number}.jpg" for number in range(40)]
    for number, path in enumerate(paths):
        path.write_bytes(b"blank" if number < 30 else b"%05d" % number)
    pairs = duplicates.equal_files(paths)
    assert len(pairs) <= 60 and {row for pair in pairs for row in (pair.a, pair.b)} == set(range(30))
    for seed in range(20):
        val = set(random.Random(seed).sample(range(40), 8))
        split = Split([row for row in range(40) if row not in val], sorted(val))
        across = [pair for pair in pairs if (pair.a in val) != (pair.b in val)]
        assert bool(across) == (0 < len(val & set(range(30))) < 30) and split.val
