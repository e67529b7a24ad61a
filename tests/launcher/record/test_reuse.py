"""Submitting again: what equals an earlier run is reused, and nothing else is."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from launcher.record import reuse
from launcher.record.find import find_run, find_submission, list_submissions
from launcher.record.folders import state_folder
from tests.launcher.conftest import Lab, seeds
from trainer.config.compose import compose
from trainer.config.plain import to_dict


def data_of(folder: Path, weights: Path | None, cache: Path, teachers: Sequence[Path] = ()) -> str:
    return reuse.DataDigests(cache).digest(folder, weights, teachers)


@pytest.fixture
def full(lab: Lab) -> Lab:
    """A lab with something to train on."""
    (lab.root / "data" / "train.csv").write_text("ID,target\na.jpg,0\n")
    (lab.root / "data" / "train" / "a.jpg").write_bytes(b"image")
    lab.plan = {"seed0": {"f1": 0.7}, "seed1": {"f1": 0.9}}
    return lab


def begun(lab: Lab) -> list[str]:
    return [event["run"].partition("-")[2] for event in lab.journal("begin")]


def test_submitting_again_reuses_equal_runs_and_does_steps_anew(full: Lab) -> None:
    after = "after: [{name: vote, step: ensemble, from: {top: 2}}]\n"
    assert full.launcher("submit", full.job(seeds(2, after)), full.machine()).returncode == 0
    first = full.submission()
    done = full.launcher("submit", full.job(seeds(3, after)), full.machine())
    assert done.returncode == 0, done.stdout
    assert sorted(begun(full)[:2]) == ["seed0", "seed1"] and begun(full)[2:] == ["vote", "seed2", "vote"]
    assert full.states() == {"seed0": "reused", "seed1": "reused", "seed2": "succeeded", "vote": "succeeded"}
    assert f"reused: 2 runs that equal runs of {first.name}" in done.stdout
    second = full.submission()
    assert full.status("1").figures["source"] == f"{first.name}/001-seed0" and second != first
    assert (second / "002-seed1" / "best.ckpt").read_bytes().endswith(b"002-seed1")
    assert (second / "002-seed1" / "best.ckpt").samefile(first / "002-seed1" / "best.ckpt")
    lines = (second / "leaderboard.csv").read_text().splitlines()
    assert lines[1].split(",")[1] == "002-seed1" and ",0.9," in lines[1]
    vote = full.journal("begin")[-1]["argv"]
    assert vote[2] == f"{second}/002-seed1/best.ckpt"
    third = full.launcher("submit", full.job(seeds(1)), full.machine())
    assert third.returncode == 0 and begun(full)[5:] == []
    assert full.status("1").figures["source"] == f"{first.name}/001-seed0", "the origin, not the copy"


@pytest.mark.parametrize("change", ["--fresh", "an override", "an image", "a label", "failed", "an artifact is gone"])
def test_what_differs_is_trained(full: Lab, change: str) -> None:
    if change == "failed":
        full.plan = {"*": {"exit": 1}}
    full.launcher("submit", full.job(seeds(1)), full.machine())
    words = ["--fresh"] if change == "--fresh" else ["training.lr=0.5"] if change == "an override" else []
    if change == "an image":
        (full.root / "data" / "train" / "a.jpg").write_bytes(b"IMAGE")
    if change == "a label":
        (full.root / "data" / "train.csv").write_text("ID,target\na.jpg,1\n")
    if change == "an artifact is gone":
        (full.submission() / "001-resnet34" / "best.ckpt").unlink()
    full.launcher("submit", full.job(seeds(1)), *words, full.machine())
    assert len(begun(full)) == 2


def test_what_changes_no_result_is_no_difference(full: Lab) -> None:
    full.launcher("submit", full.job(seeds(1)), full.machine())
    os.utime(full.root / "data" / "train" / "a.jpg")
    full.launcher("submit", full.job("name: other\n" + seeds(1)), "training.num_workers=1", full.machine())
    assert len(begun(full)) == 1 and full.states() == {"resnet34": "reused"}


def test_runs_of_another_trainer_are_stale_and_taken_only_when_asked_for(full: Lab) -> None:
    full.launcher("submit", full.job(seeds(1)), full.machine())
    path = state_folder(full.submission() / "001-resnet34") / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "code": "of last week"}))
    done = full.launcher("submit", full.job(seeds(1)), full.machine(), "--reuse-stale")
    assert done.returncode == 0 and len(begun(full)) == 1 and full.states() == {"resnet34": "reused"}
    done = full.launcher("submit", full.job(seeds(1)), full.machine(), "--fresh")
    path.write_text(json.dumps({**json.loads(path.read_text()), "identity": "gone"}))
    assert len(begun(full)) == 2, done.stdout
    path = state_folder(full.submission() / "001-resnet34") / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "code": "of last week"}))
    done = full.launcher("submit", full.job(seeds(1)), full.machine())
    assert "--reuse-stale reuses them" in done.stdout and len(begun(full)) == 3


def test_a_reused_run_stays_as_it_was_when_its_source_goes_on(full: Lab) -> None:
    full.launcher("submit", full.job(seeds(1)), full.machine())
    first = full.submission() / "001-resnet34"
    full.launcher("submit", full.job(seeds(1)), full.machine())
    second = full.submission() / "001-resnet34"
    from trainer.base.files import write_text

    write_text(first / "best.ckpt", "another")
    assert (second / "best.ckpt").read_bytes().endswith(b"001-resnet34")


def test_identity_is_the_configuration_but_for_what_changes_nothing() -> None:
    def of(*words: str) -> str:
        return reuse.identity(to_dict(compose(list(words))))

    assert of() == of("training.num_workers=0", "data.root=/elsewhere", "training.pin_memory=false")
    assert of() == of("resume=auto")
    assert of("training.teachers=[a.ckpt]") == of("training.teachers=[b.ckpt]"), "what they hold is compared instead"
    different = [
        of(),
        of("resume=/elsewhere/last.ckpt"),
        of("seed=1"),
        of("model=resnet50"),
        of("training.lr=0.1"),
        of("training.micro_batch=8"),
    ]
    assert len(set(different)) == len(different)


def test_the_fingerprint_is_of_what_files_hold(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "train" / "a").mkdir(parents=True)
        (tmp_path / name / "train" / "a" / "1.png").write_bytes(b"1")
        (tmp_path / name / "test").mkdir()
        (tmp_path / name / "test" / f"{name}.png").write_bytes(name.encode())
    cache = tmp_path / "cache"
    known = data_of(tmp_path / "one", None, cache)
    assert known == data_of(tmp_path / "two", None, cache) == data_of(tmp_path / "one", None, tmp_path)
    (tmp_path / "w").write_bytes(b"weights")
    assert data_of(tmp_path / "one", tmp_path / "w", cache) != known
    taught = data_of(tmp_path / "one", None, cache, [tmp_path / "w"])
    assert taught not in (known, data_of(tmp_path / "one", tmp_path / "w", cache))
    (tmp_path / "v").write_bytes(b"weights")
    assert data_of(tmp_path / "one", None, cache, [tmp_path / "v"]) == taught
    assert data_of(tmp_path / "one", None, cache, [tmp_path / "no such teacher"]) == ""
    (tmp_path / "two" / "train" / "a" / "1.png").rename(tmp_path / "two" / "train" / "a" / "2.png")
    assert data_of(tmp_path / "two", None, cache) != known
    (tmp_path / "empty").mkdir()
    assert data_of(tmp_path / "empty", None, cache) == ""
    assert data_of(tmp_path / "one", tmp_path / "no such weights", cache) == ""
    linked = tmp_path / "linked"  # a class folder elsewhere, and one class folder a class without train/
    linked.mkdir()
    (linked / "train.csv").write_text("ID,target\n")
    (linked / "train").mkdir()
    (linked / "train" / "a").symlink_to(tmp_path / "one" / "train" / "a")
    before = data_of(linked, None, cache), data_of(tmp_path / "one" / "train", None, cache)
    (tmp_path / "one" / "train" / "a" / "1.png").write_bytes(b"changed")
    after = data_of(linked, None, cache), data_of(tmp_path / "one" / "train", None, cache)
    assert before[0] != after[0] and before[1] != after[1]
    known = data_of(tmp_path / "one", None, cache)
    (place,) = [p for p in (cache / "fingerprints").iterdir() if known in p.read_text() and p.stat().st_size][:1]
    place.write_text("{")
    assert data_of(tmp_path / "one", None, cache) == known, "a damaged memory is made anew"


def test_a_file_that_was_changed_in_place_with_its_time_restored_is_another_file(tmp_path: Path) -> None:
    picture = tmp_path / "data" / "train" / "a" / "1.bmp"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(b"one")
    times = picture.stat()
    known = data_of(tmp_path / "data", None, tmp_path / "cache")
    picture.write_bytes(b"two")
    os.utime(picture, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = picture.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (times.st_size, times.st_mtime_ns, times.st_ino)
    assert data_of(tmp_path / "data", None, tmp_path / "cache") != known


def test_an_image_of_another_trainer_is_another_version() -> None:
    from launcher.engines.docker.images import Image

    def image(stale: bool | None) -> Image:
        return Image("sha256:1", ("x:1",), "cpu", "", 0, "", "", "", stale)

    assert reuse.code_of(image(False)) == reuse.code_of(None) != reuse.code_of(image(True)) == "sha256:1"
    assert reuse.code_of(image(None)) == "sha256:1"


def test_the_log_of_a_reused_run_is_said_to_be_elsewhere(full: Lab) -> None:
    full.launcher("submit", full.job(seeds(1)), full.machine())
    first = full.submission()
    full.launcher("submit", full.job(seeds(1)), full.machine())
    shown = full.launcher("logs", f"{full.submission().name}/1")
    assert shown.returncode == 0 and f"see: launcher logs {first.name}/001-resnet34" in shown.stderr


def test_the_latest_submission_is_the_one_made_last_whatever_is_written_into_others(full: Lab) -> None:
    for _ in range(2):
        full.launcher("submit", full.job(seeds(1)), full.machine(), "--fresh")
    older, later = list_submissions(full.runs)
    (older / "leaderboard.csv").unlink()
    (older / "new").touch()
    assert list_submissions(full.runs) == [older, later]
    assert find_run(full.runs, "1").parent == later == find_submission(full.runs)
