"""The cache of decoded images: decoded once however many read it, and never wrong."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.trainer.conftest import draw
from trainer.images import cache as decoded
from trainer.images import cache_folder, decode, examined
from trainer.images.read_page import fitted

LIMIT = decode.Limit(100, cv2.INTER_LINEAR)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "decoded"


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    made = [tmp_path / f"{name}.jpg" for name in "dacb"]
    for seed, path in enumerate(made):
        draw(seed % 3, seed).resize((120 + seed, 150)).save(path, quality=90)
    return made


def images(paths: list[Path], gigabytes: float | None = None, fingerprint: str = "f") -> decode.Images:
    return decode.shared(paths, [path.name for path in paths], LIMIT, gigabytes, fingerprint)


def only(cache: Path) -> cache_folder.Cache:
    (found,) = cache_folder.caches(cache)
    return found


def test_what_the_cache_gives_is_what_decoding_gives(cache: Path, paths: list[Path]) -> None:
    plain = [decode.decode(path, LIMIT) for path in paths]
    assert [max(image.shape) for image in plain] == [100] * 4
    for _ in range(2):
        its = images(paths)
        for row in range(4):
            assert np.array_equal(its(row), plain[row])
        its.close()
    assert (only(cache).decoded, only(cache).decodes, only(cache).in_use) == (4, 4, False)
    assert not any(path.name.startswith(".") for path in cache.iterdir())


def test_another_order_of_the_rows_finds_the_same_images(cache: Path, paths: list[Path]) -> None:
    first = images(paths)
    wanted = {path: first(row).copy() for row, path in enumerate(paths)}
    turned = images(paths[::-1])
    assert all(np.array_equal(turned(row), wanted[path]) for row, path in enumerate(paths[::-1]))
    assert only(cache).decodes == 4


def test_other_pixels_are_another_cache(cache: Path, paths: list[Path]) -> None:
    for fingerprint in ("one", "two"):
        images(paths, fingerprint=fingerprint)(0)
    assert len(cache_folder.caches(cache)) == 2


def test_damaged_pixels_are_decoded_anew(cache: Path, paths: list[Path]) -> None:
    its = images(paths)
    right = its(2).copy()
    its.close()
    with (only(cache).folder / "pixels").open("r+b") as file:
        file.seek(int(np.load(only(cache).folder / "index.npy")[its.cache.slots[2], 0]) + 5)  # type: ignore[union-attr]
        file.write(b"\x55\xaa\x55")
    again = images(paths)
    assert np.array_equal(again(2), right)
    assert only(cache).decodes == 2
    assert np.array_equal(images(paths)(2), right) and only(cache).decodes == 2


def test_what_does_not_fit_is_a_fixed_subset(cache: Path, paths: list[Path]) -> None:
    size = sum(decode.decode(path, LIMIT).nbytes for path in paths)
    for _ in range(2):
        its = images(paths, size / 2 / 1e9)
        for row in range(4):
            assert np.array_equal(its(row), decode.decode(paths[row], LIMIT))
    kept = only(cache).about["kept"]
    assert 1 <= kept <= 2 and (only(cache).decoded, only(cache).decodes) == (kept, kept)


def test_room_is_made_by_what_is_unused_the_longest_and_never_by_what_is_in_use(cache: Path, paths: list[Path]) -> None:
    size = sum(decode.decode(path, LIMIT).nbytes for path in paths)
    room = 2.5 * size / 1e9
    for name in ("old", "used"):
        its = images(paths, room, name)
        its(0)
        if name == "old":
            its.close()
    old, used = (
        next(c for c in cache_folder.caches(cache) if c.about["data_fingerprint"] == n) for n in ("old", "used")
    )
    os.utime(used.folder / "meta.json", (1, 1))
    third = images(paths, room, "third")
    assert not old.folder.exists() and used.folder.exists()
    fourth = images(paths, room, "fourth")
    assert used.folder.exists(), "the process still reads it"
    assert third.cache is not None and fourth.cache is not None
    assert sum(fourth.cache.index[:, 0] >= 0) < 4
    assert np.array_equal(its(0), decode.decode(paths[0], LIMIT))


def test_a_full_or_closed_cache_costs_nothing_but_time(
    cache: Path, paths: list[Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    its = images(paths)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    assert np.array_equal(its(0), decode.decode(paths[0], LIMIT)) and its(1).shape[2] == 3
    assert capsys.readouterr().out.count("No space left on device") == 1
    monkeypatch.undo()
    monkeypatch.setenv("CACHE_DIR", str(paths[0]))
    assert images(paths).cache is None
    assert "cannot store decoded images: Not a directory" in capsys.readouterr().out
    monkeypatch.delenv("CACHE_DIR")
    assert images(paths).cache is None and capsys.readouterr().out == ""


def test_a_cache_travels_to_other_processes(cache: Path, paths: list[Path]) -> None:
    its = images(paths)
    wanted = its(1).copy()
    assert np.array_equal(pickle.loads(pickle.dumps(its))(1), wanted)
    assert only(cache).decodes == 1


READER = """
import sys, time
from pathlib import Path
import numpy as np
from trainer.images import decode as pixels
paths = sorted(Path(sys.argv[1]).glob("*.jpg"))
its = pixels.shared(paths, [p.name for p in paths], pixels.Limit(100, 1), None, "f")
real, slow = pixels.decode, float(sys.argv[2])
def decode(path, limit):
    time.sleep(slow if path != paths[0] else 0)
    return real(path, limit)
pixels.decode = decode
print("open", flush=True)
sys.stdin.readline()
for row in range(len(paths)):
    assert np.array_equal(its(row), real(paths[row], its.limit))
"""


def reader(folder: Path, slow: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", READER, str(folder), str(slow)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None and process.stdout.readline() == "open\n"
    return process


def begin(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_processes_side_by_side_decode_each_image_once(cache: Path, paths: list[Path], tmp_path: Path) -> None:
    both = [reader(tmp_path, 0.05), reader(tmp_path, 0.05)]
    for process in both:
        begin(process)
    assert [process.wait(60) for process in both] == [0, 0]
    assert (only(cache).decoded, only(cache).decodes) == (4, 4)


def test_a_process_that_is_killed_leaves_images_absent_and_claims_free(
    cache: Path, paths: list[Path], tmp_path: Path
) -> None:
    process = reader(tmp_path, 600)
    begin(process)
    until = time.monotonic() + 60
    while only(cache).decoded < 1 and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.05)  # by now it is most likely in the midst of the second, which it has claimed
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = only(cache)
    assert found.decoded == 1 and not found.in_use
    other = reader(tmp_path, 0)
    begin(other)
    assert other.wait(60) == 0
    assert (only(cache).decoded, only(cache).decodes) == (4, 4)


def test_what_killed_processes_left_half_made_is_swept_away(cache: Path, paths: list[Path]) -> None:
    for name, age in ((cache_folder.MAKING + "old", 7200), (cache_folder.MAKING + "new", 0), (".gone-1-x", 0)):
        (cache / name).mkdir(parents=True)
        os.utime(cache / name, (time.time() - age,) * 2)
    images(paths)
    assert sorted(path.name for path in cache.iterdir() if path.name.startswith(".")) == [cache_folder.MAKING + "new"]


def test_a_jump_of_the_clock_sweeps_no_folder_away_that_is_being_made(cache: Path) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    with decoded.new_folder(cache / "made", {"in_use": 0}, {}) as temporary:
        os.utime(temporary, (time.time() - 7200,) * 2)
        cache_folder.sweep(cache)
        assert (temporary / "meta.json").is_file()
    assert (cache / "made" / "meta.json").is_file()


def scan(path: Path, orientation: int | None = None) -> None:
    from PIL import Image

    page = draw(1, 3).resize((1240, 1754), Image.Resampling.BICUBIC)
    for place in range(100, 1700, 23):  # thin rules, as forms have them
        page.paste((0, 0, 0), (100, place, 1100, place + 1))
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    page.save(path, quality=90, exif=exif)


@pytest.mark.parametrize("orientation", [None, 6])
def test_a_scan_is_decoded_small_and_looks_the_same(tmp_path: Path, orientation: int | None) -> None:
    """Nearer to the whole page averaged down than a linear resize of it, which drops thin rules."""
    path = tmp_path / "scan.jpg"
    scan(path, orientation)
    whole: NDArray[np.uint8] = decode.decode(path, None)
    assert whole.shape == ((1754, 1240, 3) if orientation is None else (1240, 1754, 3))
    limit = decode.Limit(300, cv2.INTER_LINEAR)
    height, width = fitted(whole.shape[:2], 300)
    made = decode.decode(path, limit)
    assert made.shape == (height, width, 3) and max(height, width) == 300
    best = cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA).astype(float)
    plain = cv2.resize(whole, (width, height), interpolation=cv2.INTER_LINEAR)
    assert np.abs(made - best).mean() < 0.6 * np.abs(plain - best).mean() < 10


def test_all_pixels_come_from_the_cache_only_where_it_has_them(cache: Path, paths: list[Path]) -> None:
    small = decode.shared(paths, [p.name for p in paths], decode.Limit(150, 1), None, "f")
    assert np.array_equal(small.whole(0), decode.decode(paths[0], None))
    assert only(cache).decodes == 1
    assert images(paths).whole(1).shape == decode.decode(paths[1], None).shape


def test_a_full_cache_needs_no_header(cache: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The next run knows the shapes from the cache: headers of 100,000 files would take half a minute."""
    first = images(paths)
    wanted = [first(row) for row in range(4)]

    def header(path: Path) -> tuple[int, int]:
        raise AssertionError(f"{path} is opened")

    monkeypatch.setattr(examined, "page_shape", header)
    again = images(paths)
    assert all(np.array_equal(again(row), wanted[row]) for row in range(4))
    monkeypatch.setattr(decode, "DECODERS", ("another Pillow",))
    with pytest.raises(AssertionError, match="is opened"):
        images(paths)


def test_limits_are_read_from_the_list() -> None:
    assert decode.Limit.of([{"LongestMaxSize": {"max_size": 64, "interpolation": 3}}]) == decode.Limit(64, 3)
    assert decode.Limit.of([{"LongestMaxSize": {"max_size": 64}}, "HorizontalFlip"]) == decode.Limit(64, 1)
    others: list[list[object]] = [
        [],
        ["HorizontalFlip"],
        [{"LongestMaxSize": {"max_size": [64, 96]}}],
        [{"Resize": {}}],
    ]
    others.append([{"LongestMaxSize": {"max_size": 64, "p": 0.5}}])
    assert [decode.Limit.of(entries) for entries in others] == [None] * 5


def test_the_cache_s_name_says_its_size(cache: Path, paths: list[Path]) -> None:
    images(paths)
    assert only(cache).folder.name.endswith("-100px-1") and only(cache).about["version"] == decoded.VERSION


def test_what_a_run_leaves_in_the_cache_leads_nobody_astray(tmp_path: Path) -> None:
    """The launcher lists and removes caches, perhaps as root, and every run can write there."""
    victim = tmp_path / "victim"
    (victim / "home").mkdir(parents=True)
    (victim / "home" / "meta.json").write_text('{"folder": "secret"}')
    root = tmp_path / "decoded"
    (root / "pipe").mkdir(parents=True)
    for name in ("meta.json", "state", "in_use"):
        os.mkfifo(root / "pipe" / name)
    (root / "linked").mkdir()
    (root / "linked" / "meta.json").symlink_to(victim / "home" / "meta.json")
    (root / "link").symlink_to(victim)
    (root / "wrong").mkdir()
    (root / "wrong" / "meta.json").write_text('{"folder": ["x"], "images": "\\u001b[31m", "bytes": 1e999, "kept": -1}')
    (root / "deep").mkdir()
    (root / "deep" / "meta.json").write_text('{"a":' * 100_000)
    caches = {cache.folder.name: cache.about for cache in cache_folder.caches(root)}
    assert caches == {"pipe": {}, "linked": {}, "wrong": {"images": "\x1b[31m"}, "deep": {}}
    assert not cache_folder.evict(root / "link")
    root.rename(tmp_path / "aside")
    root.symlink_to(victim)
    assert cache_folder.caches(root) == [] and not cache_folder.evict(root / "home")
    (victim / ".gone-1-x").mkdir()
    cache_folder.sweep(root)
    assert (victim / "home" / "meta.json").exists() and (victim / ".gone-1-x").exists()


@pytest.mark.parametrize(
    ("name", "size"), [("index.npy", 0), ("index.npy", 100), ("pixels", 0), ("pixels", 5000), ("state", 0)]
)
def test_files_cut_short_cost_nothing_but_time(cache: Path, paths: list[Path], name: str, size: int) -> None:
    """As after a power cut, or a copy that was interrupted."""
    whole = [decode.decode(path, LIMIT) for path in paths]
    its = images(paths)
    assert all(np.array_equal(its(row), page) for row, page in enumerate(whole))
    its.close()
    os.truncate(only(cache).folder / name, size)
    for _ in range(2):
        its = images(paths)
        for _ in range(2):
            assert all(np.array_equal(its(row), page) for row, page in enumerate(whole))
        its.close()


def test_a_page_that_changed_after_the_check_is_named(tmp_path: Path) -> None:
    path = tmp_path / "page.png"
    draw(0, 0).save(path)
    path.write_bytes(path.read_bytes()[:200])
    for read in (decode.Images([path], None), decode.Images([path], decode.Limit(32, 1))):
        with pytest.raises(OSError, match=r"page\.png: the image can no longer be read: "):
            read(0)
    path.unlink()
    with pytest.raises(FileNotFoundError) as missing:
        decode.Images([path], None)(0)
    assert missing.value.filename == str(path)
