"""The cache of prepared images: made once for all runs, the ones that take longest first, and never wrong."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from trainer.images import cache_folder
from trainer.images.prepared import FILES, Prepared, open_prepared
from trainer.images.read_page import Pixels

SIZE, COUNT = 16, 6
BYTES = SIZE * SIZE * 3


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "decoded"


def image(row: int) -> Pixels:
    return np.random.default_rng(row).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def opened(limit: float = 1e9) -> Prepared:
    found = open_prepared("k" * 64, SIZE, range(COUNT), {"folder": "data"}, int(limit))
    assert found is not None
    return found


def only(cache: Path) -> cache_folder.Cache:
    (found,) = cache_folder.caches(cache)
    return found


class Maker:
    """Makes images, slowly in CPU time if `seconds` says so, and counts."""

    def __init__(self, seconds: Callable[[int], float] = lambda row: 0) -> None:
        self.made: list[int] = []
        self.seconds = seconds

    def __call__(self, row: int) -> Pixels:
        self.made.append(row)
        until = time.thread_time() + self.seconds(row)
        while time.thread_time() < until:
            pass
        return image(row)

    def read(self, its: Prepared) -> None:
        for row in range(COUNT):
            assert np.array_equal(its.get(row, lambda row=row: self(row)), image(row))  # type: ignore[misc]


def test_the_second_run_makes_none_and_gets_the_same_pixels(cache: Path) -> None:
    first, second = Maker(), Maker()
    its = opened()
    first.read(its)
    first.read(its)
    assert sorted(first.made) == list(range(COUNT)) and only(cache).in_use
    second.read(pickle.loads(pickle.dumps(its)))
    its.close()
    second.read(opened())
    assert second.made == []
    assert (only(cache).decoded, only(cache).decodes, only(cache).about["kept"]) == (COUNT, COUNT, COUNT)
    assert not any(path.name.startswith(".") for path in cache.iterdir())


def test_those_that_take_longest_stay_if_there_is_no_room_for_all(cache: Path) -> None:
    its = opened(limit=2.5 * BYTES)
    slow = Maker(lambda row: 0.02 if row in (2, 5) else 0.001)
    slow.read(its)
    slow.read(its)
    assert slow.made[:COUNT] == list(range(COUNT))
    assert slow.made[COUNT:] == [0, 1, 3, 4], "only the two that took longest are on disk"
    again = Maker()
    again.read(opened(limit=2.5 * BYTES))
    assert again.made == [0, 1, 3, 4], "quick ones do not replace slow ones"
    assert only(cache).size <= 2 * 4096 + 4 * 4096 and only(cache).about["bytes"] == 2 * BYTES


def test_a_damaged_image_is_made_again(cache: Path) -> None:
    Maker().read(opened())
    with (only(cache).folder / "pixels").open("r+b") as file:
        file.seek(3 * BYTES + 5)
        file.write(b"\x55\xaa\x55")
    with (only(cache).folder / "places").open("r+b") as file:
        file.write(b"\xff\xff\xff\x7f")
    for expected in ([0, 3], []):
        maker = Maker()
        maker.read(opened())
        assert maker.made == expected


@pytest.mark.parametrize("part", FILES)
def test_what_another_user_may_have_written_is_not_read(
    cache: Path, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    its = opened()
    Maker().read(its)
    its.close()
    path = only(cache).folder / part
    if os.geteuid() == 0:
        os.chown(path, 12345, 12345)
        assert refused() and "another user may have written it" in capsys.readouterr().out
        os.chown(path, 0, 0)
    path.chmod(0o666)
    assert refused() and "another user may have written it" in capsys.readouterr().out
    path.chmod(0o644)
    assert not refused()
    path.rename(path.with_name("aside"))
    path.symlink_to("aside")
    assert refused()


def refused() -> bool:
    return open_prepared("k" * 64, SIZE, range(COUNT), {}, 10**9) is None


def test_files_are_private_whatever_the_umask(cache: Path) -> None:
    code = f"import os; os.umask(0); import sys; sys.path[:0] = {sys.path!r}\n" + (
        "from trainer.images.prepared import open_prepared\n"
        f"assert open_prepared('k' * 64, {SIZE}, range({COUNT}), {{}}, 10**9) is not None"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert not refused()


def test_a_full_disk_and_a_closed_folder_change_nothing_but_the_time(
    cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    its = opened()
    maker = Maker()
    monkeypatch.setattr(os, "pwrite", full)
    maker.read(its)
    maker.read(its)
    assert capsys.readouterr().out.count("No space left on device") == 1
    assert len(maker.made) == 2 * COUNT
    monkeypatch.undo()
    monkeypatch.setenv("CACHE_DIR", str(Path(__file__)))
    assert refused() and "cannot store prepared images: Not a directory" in capsys.readouterr().out
    monkeypatch.delenv("CACHE_DIR")
    assert refused() and capsys.readouterr().out == ""


def test_a_cache_that_is_read_only_serves(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    its = opened()
    its.get(1, lambda: image(1))
    its.close()
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and real(path, mode))  # root may write all
    before = {path.name: path.read_bytes() for path in only(cache).folder.iterdir()}
    for _ in range(2):
        maker = Maker()
        maker.read(opened())
        assert maker.made == [0, 2, 3, 4, 5]
    assert {path.name: path.read_bytes() for path in only(cache).folder.iterdir()} == before


READER = """
import sys, time
import numpy as np
from tests.trainer.images.test_prepared import COUNT, image, opened
its, made = opened(float(sys.argv[1])), 0
def make(row):
    global made
    made += 1
    until = time.thread_time() + 0.0002 * 1.3 ** min(made, 16)  # longer each time, so that it replaces another
    while time.thread_time() < until:
        pass
    return image(row)
print("open", flush=True)
sys.stdin.readline()
for _ in range(int(sys.argv[2])):
    for row in range(COUNT):
        assert np.array_equal(its.get(row, lambda: make(row)), image(row))
print(made)
"""


@pytest.mark.parametrize(("limit", "passes"), [(1e9, 1), (2.5 * BYTES, 40)])
def test_processes_side_by_side_read_the_right_pixels(cache: Path, limit: float, passes: int) -> None:
    """With room for two of six images they also exchange each other's."""
    both = [
        subprocess.Popen(
            [sys.executable, "-c", READER, str(limit), str(passes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for _ in range(2)
    ]
    for process in both:
        assert process.stdout is not None and process.stdout.readline() == "open\n"
    outputs = [process.communicate("\n", timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    if limit > COUNT * BYTES:
        assert sum(int(output) for output in outputs) == COUNT, "each is made once"
    else:
        assert only(cache).decoded == 2 and only(cache).decodes > 2


@pytest.mark.parametrize(("name", "size"), [("places", 0), ("places", 5), ("state", 3), ("pixels", 0), ("pixels", 100)])
def test_files_cut_short_cost_nothing_but_time(
    cache: Path, name: str, size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    Maker().read(opened())
    os.truncate(only(cache).folder / name, size)
    its = open_prepared("k" * 64, SIZE, range(COUNT), {"folder": "data"}, 10**9)
    if its is None:
        assert "damaged; remove it: launcher cache prune --all" in capsys.readouterr().out
        return
    Maker().read(its)
    Maker().read(its)
