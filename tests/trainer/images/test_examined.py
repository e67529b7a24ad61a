"""Each image file is read once for all runs: what is hashed is what is checked."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.opened import counting
from tests.trainer.conftest import draw
from trainer.config.schema import DataConfig
from trainer.data import check, duplicates
from trainer.data.split import Split
from trainer.data.table import content_fingerprint
from trainer.images import decode, examined
from trainer.images.cache_folder import caches
from trainer.training import run as training


@pytest.fixture(autouse=True)
def another_process() -> None:
    """Nothing is known of earlier tests."""
    examined._known.clear()


@pytest.fixture
def opens(tmp_path: Path) -> Iterator[Counter[str]]:
    """How often each file of the data is opened."""
    with counting(tmp_path / "data") as counted:
        yield counted


def write(folder: Path, count: int) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(b"%d" % (number % 3 if number < 6 else number + 100))
    return paths


def pages(folder: Path, count: int) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        draw(number % 3, number).resize((50, 40 + number)).save(path)
    return paths


def once(paths: list[Path]) -> dict[str, int]:
    return {path.name: 1 for path in paths}


def test_a_run_reads_a_file_once_and_the_next_run_none(
    tmp_path: Path, opens: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "cache"))
    paths = write(tmp_path / "data", 8)
    opens.clear()
    whole = content_fingerprint(paths)
    pairs = duplicates.equal_files(paths)
    assert opens == once(paths)
    assert [(pair.a, pair.b) for pair in pairs] == [(0, 3), (1, 4), (2, 5)]
    assert examined.digests(paths) == [hashlib.sha256(path.read_bytes()).digest() for path in paths]
    (tmp_path / "data").rename(tmp_path / "mounted elsewhere")  # as in a container
    moved = [tmp_path / "mounted elsewhere" / path.name for path in paths]
    examined._known.clear()  # another process
    with counting(tmp_path / "mounted elsewhere") as later:
        assert content_fingerprint(moved) == whole and not later
        moved[2].write_bytes(b"another")
        later.clear()
        examined._known.clear()
        assert content_fingerprint(moved) != whole and later == {"2.jpg": 1}


def test_one_read_checks_hashes_and_measures(
    tmp_path: Path, opens: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "cache"))
    paths = pages(tmp_path / "data", 5)
    opens.clear()

    def all_of_it() -> list[object]:
        return [list(examined.unreadable(paths)), content_fingerprint(paths), [examined.shape(path) for path in paths]]

    found = all_of_it()
    assert opens == once(paths) and found[0] == [] and found[2] == [(40 + number, 50) for number in range(5)]
    examined._known.clear()
    assert all_of_it() == found and opens == once(paths), "another process reads none"


def test_a_file_more_is_one_file_to_read(tmp_path: Path, opens: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "cache"))
    paths = pages(tmp_path / "data", 7)
    assert not list(examined.unreadable(paths[:5]))
    examined._known.clear()
    opens.clear()
    assert not list(examined.unreadable(paths)) and opens == once(paths[5:])
    examined._known.clear()
    os.utime(paths[0], ns=(1, 1))
    assert not list(examined.unreadable(paths[1:3])) and not list(examined.unreadable(paths))
    assert opens == once([paths[0], *paths[5:]])


def test_equal_names_sizes_and_times_are_not_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of one scanner without compression, unpacked from archives; and a file whose time was restored."""
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "cache"))
    folders = [tmp_path / name / "train" for name in ("a", "b")]
    for number, folder in enumerate(folders):
        folder.mkdir(parents=True)
        for name in ("0.bmp", "1.bmp"):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / name)
            os.utime(folder / name, ns=(10**18, 10**18))
    sets = [sorted(folder.iterdir()) for folder in folders]
    for paths in (*sets, *sets):
        examined._known.clear()  # another process
        assert not list(examined.unreadable(paths))
        assert examined.digests(paths) == [hashlib.sha256(path.read_bytes()).digest() for path in paths]
    with counting(tmp_path) as later:
        for paths in sets:
            examined._known.clear()
            content_fingerprint(paths)
    assert not [name for name in later if name.endswith(".bmp")], "each set is known"
    sets[0][0].write_bytes(sets[1][0].read_bytes())
    os.utime(sets[0][0], ns=(10**18, 10**18))
    examined._known.clear()
    assert content_fingerprint(sets[0][:1]) == content_fingerprint(sets[1][:1])
    examined._known.clear()
    assert examined.digests(sets[0])[0] == examined.digests(sets[1])[0]
    Image.new("RGB", (8, 8), (9, 9, 9)).save(sets[0][1])  # within one process
    stamp = examined.stamp(sets[0][1])
    os.utime(sets[0][1], ns=(10**18, 10**18))
    assert not examined.is_same(sets[0][1], stamp)
    assert examined.digests(sets[0])[1] == hashlib.sha256(sets[0][1].read_bytes()).digest()


def test_an_unreadable_file_is_examined_again_and_the_others_are_not(
    tmp_path: Path, opens: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "cache"))
    paths = pages(tmp_path / "data", 4)
    paths[1].write_bytes(b"broken")
    paths[2].write_bytes(b"")
    opens.clear()
    first = list(examined.unreadable(paths))
    assert [row for row, _ in first] == [1, 2] and opens == once([paths[0], paths[1], paths[3]])
    assert examined.digests(paths[:2]) == [hashlib.sha256(path.read_bytes()).digest() for path in paths[:2]]
    examined._known.clear()
    opens.clear()
    assert list(examined.unreadable(paths)) == first and opens == {"1.png": 1}


def test_a_damaged_cache_is_none(tmp_path: Path, opens: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "cache"))
    paths = write(tmp_path / "data", 3)
    whole = content_fingerprint(paths)
    for stored in (tmp_path / "cache" / "examined").glob("[!.]*"):
        stored.write_bytes(stored.read_bytes()[:-1])
    examined._known.clear()
    opens.clear()
    assert content_fingerprint(paths) == whole and opens == once(paths)
    (tmp_path / "cache").rename(tmp_path / "aside")
    (tmp_path / "cache").write_text("no folder")
    examined._known.clear()
    assert content_fingerprint(paths) == whole


def test_sets_that_nobody_asks_for_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "cache"))
    paths = write(tmp_path / "data", 3)
    content_fingerprint(paths[:2])
    (old,) = (tmp_path / "cache" / "examined").glob("[!.]*")
    os.utime(old, (time.time() - 2 * examined.OLD,) * 2)
    examined._known.clear()
    content_fingerprint(paths)
    assert not old.exists() and len(list((tmp_path / "cache" / "examined").glob("[!.]*"))) == 1


def test_without_a_cache_each_process_reads_once(tmp_path: Path, opens: Counter[str]) -> None:
    paths = write(tmp_path / "data", 5)
    opens.clear()
    assert content_fingerprint(paths) == content_fingerprint(paths) and opens == once(paths)


READER = """
import sys, time
from pathlib import Path
from trainer.images import examined
real, read = examined.opened, []
def slow(path):
    time.sleep(0.05)
    read.append(path)
    return real(path)
examined.opened = slow
print("ready", flush=True)
sys.stdin.readline()
assert not list(examined.unreadable(sorted(Path(sys.argv[1]).iterdir())))
print(len(read))
"""


def test_two_processes_at_once_read_each_file_once(tmp_path: Path) -> None:
    pages(tmp_path / "data", 6)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-c", READER, str(tmp_path / "data")]
    both = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    for process in both:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    assert sorted(int(process.communicate(timeout=60)[0]) for process in both) == [0, 6]


def test_training_reads_each_file_once_before_the_first_epoch_and_the_next_run_none(
    tmp_path: Path, documents: Path, train: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Besides, the first run decodes an image of each class, to try the transforms."""
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(training, "fit", lambda run: {})
    for name, expected in (("first", {1: 33, 2: 3}), ("second", {})):
        examined._known.clear()
        with counting(documents / "train") as counted:
            assert train(tmp_path / name) == 0
        assert Counter(counted.values()) == expected


def test_check_data_reads_a_file_once_to_check_and_once_to_compare(tmp_path: Path, documents: Path) -> None:
    with counting(documents / "train") as counted:
        checked = check.check(DataConfig(root=str(documents)))
    assert set(counted.values()) == {2} and not checked.pairs


def test_pixels_of_a_file_that_has_changed_since_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "cache"))
    paths = pages(tmp_path / "data", 2)
    fingerprint = content_fingerprint(paths)
    its = decode.shared(paths, ["a", "b"], None, None, fingerprint)
    before = Image.open(paths[0]).convert("RGB").copy()
    Image.new("RGB", before.size, (1, 2, 3)).save(paths[0])
    assert np.array_equal(its(0)[0, 0], (1, 2, 3)) and its(1).shape == (41, 50, 3)
    (cache,) = caches(tmp_path / "cache" / "decoded")
    assert cache.decoded == 1, "the name of the cache stands for other bytes"
    before.save(paths[0])
    assert content_fingerprint(paths) == fingerprint
    again = decode.shared(paths, ["a", "b"], None, None, fingerprint)
    assert np.array_equal(again(0), np.asarray(before))


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
