"""Code of a run that attacks the launcher: by links, pipes and devices in its directory, by names that it exchanges, and
by the content of its files. For more tries: `python -m tests.launcher.hostile.stage --help`."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from launcher.base.errors import DataFolderError, RunError
from launcher.cli import live, watch
from launcher.engines.docker import recipe
from launcher.engines.docker.engine import check_cache
from launcher.job import remarks
from launcher.record import folders, predictions, reuse, trainer_figures, trainer_files
from launcher.record.journal import append_event, create_run, read_status
from launcher.record.request import RunRequest
from launcher.results import champion, collect, leaderboard
from tests.launcher.hostile import fuzz
from tests.launcher.hostile.stage import (
    AS_ROOT,
    ATTACKS,
    FILES,
    RUNS,
    Stage,
    attack,
    attack_commands,
    hard_link,
    link,
    pipe,
    printed_by,
    staged,
)

FUZZED = int(os.environ.get("FUZZED", "2000"))
"""Contents of each JSON file; a tenth of it for the predictions, which take longer. CI and `make test`: 2,000."""
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="another user's process is needed, and only root can start it")


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder that another user can reach, other than pytest's."""
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        yield Path(folder)


@pytest.fixture
def stage(root: Path) -> Iterator[Stage]:
    with staged(root) as made:
        yield made


@pytest.mark.skipif(sys.platform != "linux", reason="names are exchanged by renameat2, which Linux alone has")
@pytest.mark.parametrize("how", ATTACKS, ids=lambda how: how.__name__)
def test_a_run_reaches_nothing_through_the_launcher(how: Callable[[Stage, Path], None], root: Path) -> None:
    if os.geteuid() != 0 and how in AS_ROOT:
        pytest.skip("only root can prepare this")
    attack(root, how, list(FILES), tries=10)


@pytest.mark.skipif(sys.platform != "linux", reason="as above")
@pytest.mark.parametrize("how", [link, hard_link, pipe], ids=lambda how: how.__name__)
def test_nor_through_its_commands(
    how: Callable[[Stage, Path], None], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent")
    attack_commands(root, how, tries=3)


def test_each_is_refused_by_its_kind(stage: Stage) -> None:
    """Without a race: what lies there when the launcher looks."""
    kinds = {"link": "a link", "pipe": "a pipe", "unix_socket": "a socket", "device": "a device", "folder": "a folder"}
    for how in ATTACKS:
        if how.__name__ in kinds and (os.geteuid() == 0 or how not in AS_ROOT):
            name = f"{how.__name__}.json"
            how(stage, stage.run_dir / name)
            with pytest.raises(RunError, match=f"{name}: is {kinds[how.__name__]}"):
                trainer_files.open_file(stage.run_dir, name)
            assert not trainer_files.has(stage.run_dir, name)
    (stage.run_dir / "analysis_results").rename(stage.run_dir / "before")
    (stage.run_dir / "analysis_results").symlink_to(stage.victims)
    assert not trainer_files.has(stage.run_dir, "analysis_results/report.html")
    stage.check()


@as_root
def test_a_log_that_is_something_else_is_replaced(stage: Stage) -> None:
    for how in ATTACKS:
        (stage.run_dir / "log.txt").unlink()
        how(stage, stage.run_dir / "log.txt")
        trainer_files.write_log(stage.run_dir, "one\n")
        trainer_files.write_log(stage.run_dir, "two\n")
        assert trainer_files.log_end(stage.run_dir).endswith("one\ntwo\n")
        assert (stage.run_dir / "log.txt").stat().st_uid == stage.run_dir.stat().st_uid
    stage.check()


@as_root
def test_only_the_present_owners_files_are_handed_over(stage: Stage) -> None:
    new = stage.submission / "003-c"
    create_run(new, RunRequest("003-c", 3, "train", ["train"]))
    (new / "own").mkdir()
    (new / "own" / "file").write_text("x")
    (new / "anothers").mkdir()
    (new / "anothers" / "file").hardlink_to(stage.victims / "secret")
    os.chown(new / "anothers", 1000, 1000)
    (new / "link").symlink_to(stage.victims / "secret")
    trainer_files.hand_over(new, (1000, 1000))
    owners = {str(path.relative_to(new)): path.lstat().st_uid for path in (new, *new.rglob("*"))}
    assert owners == {".": 1000, "own": 1000, "own/file": 1000, "anothers": 1000, "anothers/file": 0, "link": 0}
    (new / "anothers" / "file").unlink()
    stage.check()


@as_root
def test_root_executes_nothing_that_another_user_wrote(stage: Stage) -> None:
    """The request names a command, the journal names processes."""
    from launcher.engines.native import execute
    from launcher.record import lease
    from launcher.supervise import stopping

    os.chown(stage.submission, 1000, 1000)
    run_dir = stage.submission / "003-c"
    create_run(run_dir, RunRequest("003-c", 3, "train", ["train"]))
    for call in (lambda: execute.execute(run_dir), lambda: stopping.stop(stage.submission, [run_dir], 1)):
        with pytest.raises(RunError, match="sub: belongs to uid 1000"):
            call()
    with pytest.raises(RunError, match="sub: belongs to uid 1000"), lease.hold(stage.submission):
        pass


def test_submit_says_that_runs_are_processes_of_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert remarks.as_root(contained=True) == [] and "execute as root" in remarks.as_root(contained=False)[0]
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert remarks.as_root(contained=False) == []


@as_root
def test_another_users_links_lead_nowhere(stage: Stage) -> None:
    """In place of the folders of the launcher itself, in a runs folder that the user owns."""
    os.chown(stage.runs, 1000, 1000)
    stage.submission.rename(stage.runs / "aside")
    stage.submission.symlink_to(stage.victims)
    os.lchown(stage.submission, 1000, 1000)
    for call in (
        lambda: folders.write(stage.submission / "leaderboard.csv", b"x"),
        lambda: append_event(stage.run_dir, "queued"),
        lambda: trainer_files.write_log(stage.run_dir, "x"),
    ):
        with pytest.raises((OSError, RunError), match="sub is a link"):
            call()
    stage.check()


# -- contents


def typed(value: object) -> bool:
    """Only finite numbers and texts without control characters."""
    if isinstance(value, dict):
        return all(typed(each) for each in value.values())
    if isinstance(value, list):
        return all(typed(each) for each in value)
    if isinstance(value, str):
        return value.isprintable() and len(value) <= 4096
    return value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))


def test_no_content_of_metrics_or_progress_is_believed(stage: Stage) -> None:
    chance = random.Random(0)
    for _ in range(FUZZED):
        (stage.run_dir / "metrics.json").write_bytes(fuzz.text(chance, fuzz.METRICS))
        figures = trainer_figures.read_metrics(stage.run_dir)
        assert typed(figures) and json.dumps(figures, allow_nan=False)
        assert figures.get("seconds", 0) >= 0 and figures.get("val_f1", 0) <= 1
        (stage.run_dir / "progress.json").write_bytes(fuzz.text(chance, fuzz.PROGRESS))
        progress = trainer_figures.read_progress(stage.run_dir)
        assert progress is None or typed(dataclasses.asdict(progress))


def test_no_content_of_the_predictions_is_believed(stage: Stage) -> None:
    chance = random.Random(1)
    loaded = 0
    for _ in range(FUZZED // 10):
        (stage.run_dir / "val_predictions.npz").write_bytes(fuzz.predictions(chance))
        content = predictions.load(stage.run_dir)
        if content is not None:
            loaded += 1
            json.dumps(predictions.scores(content), allow_nan=False)
            predictions.distinguishable(content, [content], collect.figures.columns()["val_f1"])
    assert FUZZED // 200 < loaded < FUZZED // 11


def test_no_content_blinds_the_commands(stage: Stage) -> None:
    """Status, tables, leaderboard and champion go on, and print neither NaN nor control characters."""
    chance = random.Random(2)
    running = stage.submission / "003-c"
    create_run(running, RunRequest("003-c", 3, "ensemble", ["ensemble"]))
    append_event(running, "starting", devices=["0"])
    append_event(running, "running", devices=["0"], host="elsewhere")
    console = Console(file=open(os.devnull, "w"), width=200, markup=False)  # noqa: SIM115, PTH123
    for _ in range(FUZZED // 100):
        for run_dir in (*(stage.submission / name for name in RUNS), running):
            (run_dir / "metrics.json").write_bytes(fuzz.text(chance, fuzz.METRICS))
            (run_dir / "progress.json").write_bytes(fuzz.text(chance, fuzz.PROGRESS))
            (run_dir / "val_predictions.npz").write_bytes(fuzz.predictions(chance))
        status = watch.status_json(stage.submission)
        for run in status["runs"]:
            assert typed(run["progress"]) and typed(run["val_f1"])
            run["host_memory_bytes"] = None
        json.dumps(status, allow_nan=False)
        console.print(watch.status_table(status))
        console.print(live.render({**status, "gpus": []}))
        rows, line = collect.collect(stage.submission)
        assert all(typed(dict(row)) for row in rows) and typed(line)
        console.print(leaderboard.render(rows))


def test_bombs_are_refused(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictions, "UNPACKED", 2**20)
    path = stage.run_dir / "val_predictions.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("ids.npy", "w") as member:
        member.write(b"\0" * (2**20 + 1))
    assert path.stat().st_size < 2**12 and predictions.load(stage.run_dir) is None
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(2000):
            archive.writestr(f"{number:050}.npy", b"")
    assert predictions.load(stage.run_dir) is None
    header = b"{'descr': '|V0', 'fortran_order': False, 'shape': (100000000000,), }"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("class_names", "ids", "targets", "probabilities", "split_fingerprint"):
            archive.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    assert predictions.load(stage.run_dir) is None
    with (stage.run_dir / "log.txt").open("r+b") as log:  # holes are not read
        log.seek(8 * 2**40)
        log.write(b"the end\n")
    assert printed_by(["logs", "sub/001-a", "--runs", str(stage.runs)]).endswith("the end\n")
    (stage.run_dir / "metrics.json").write_bytes(b" " * (trainer_files.LIMITS["metrics.json"] + 1))
    assert trainer_figures.read_metrics(stage.run_dir) == {}


def test_an_ensemble_of_a_run_names_only_files_of_the_runs_folder(stage: Stage) -> None:
    """The Docker engine mounts the members into later runs."""
    outside = stage.victims / "secret"
    inside = stage.submission / RUNS[1] / "best.ckpt"
    (stage.run_dir / "a" / "b").mkdir(parents=True)
    (stage.run_dir / "a" / "b" / "c.ckpt").symlink_to(outside)
    (stage.run_dir / "a" / "b" / "folder").symlink_to(outside.parent)
    (stage.run_dir / "a" / "run.json").write_text("{}")
    (stage.run_dir / "a" / "events.jsonl").write_text("")
    (stage.runs / ".cache").mkdir(exist_ok=True)
    (stage.runs / ".cache" / "evil.ckpt").symlink_to(outside)
    deep = ["a/b/c.ckpt", "a/b/folder", "a/b/folder/secret", "../../.cache/evil.ckpt", "a/b"]
    names = [f"../{RUNS[1]}/best.ckpt", str(outside), "../../../victims/secret", "evil/linked", *deep]
    (stage.run_dir / "evil" / "linked").symlink_to(outside)
    (stage.run_dir / "ensemble.json").write_text(json.dumps({"members": [{"checkpoint": name} for name in names]}))
    assert trainer_figures.ensemble_members(stage.run_dir / "ensemble.json") == [inside]
    own = stage.root / "mine.json"  # the user's own may name any file
    own.write_text(json.dumps({"members": [{"checkpoint": "victims/secret"}]}))
    assert trainer_figures.ensemble_members(own) == [outside]
    (stage.run_dir / "best.ckpt").unlink()
    (stage.run_dir / "best.ckpt").symlink_to(outside)
    assert not trainer_files.is_usable(stage.run_dir / "best.ckpt") and trainer_files.is_usable(inside)
    with pytest.raises(RunError, match=r"best\.ckpt: is a link"):
        trainer_files.open_named(stage.run_dir / "best.ckpt")


def test_a_run_without_its_checkpoint_leaves_the_place_to_the_next(stage: Stage) -> None:
    for name, value in zip(RUNS, (0.9, 0.5), strict=True):
        (stage.submission / name / "metrics.json").write_text(json.dumps({"val_f1": value, "split_fingerprint": "s"}))
    (stage.run_dir / "best.ckpt").unlink()
    (stage.run_dir / "best.ckpt").symlink_to(stage.victims / "secret")
    _, line = collect.collect(stage.submission)
    assert line.startswith(f"champion: sub/{RUNS[1]} ") and reuse._is_whole(stage.submission / RUNS[1])
    assert not reuse._is_whole(stage.run_dir)
    stage.check()


# -- the champion's files


class Stopped(BaseException):
    pass


@pytest.mark.parametrize("old_layout", [False, True])
def test_an_interrupt_at_any_step_leaves_the_champions_files_together(
    old_layout: bool, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = stage.runs / "champion"

    def crown(value: float) -> str:
        metrics: dict[str, Any] = {"val_f1": value, "split_fingerprint": "s"}
        (stage.run_dir / "metrics.json").write_text(json.dumps(metrics))
        (stage.run_dir / "best.ckpt").write_text(f"weights of {value}")
        row = {"run": RUNS[0], "checkpoint": f"{RUNS[0]}/best.ckpt", "monitor": "val_f1", "score": value}
        return champion.crown(stage.submission, row, place, True, "", print)

    def start() -> None:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        if old_layout:
            (place / "best_model.ckpt").write_text("weights of 0.1")
            (place / "champion_info.json").write_text('{"run": "other/001-a", "val_f1": 0.1, "split_fingerprint": "s"}')
        else:
            monkeypatch.undo()
            crown(0.1)

    steps = 0
    for step in range(100):
        start()
        count = iter(range(100))

        def stopping(name: str, call: Callable[..., Any], at: int = step, count: Iterator[int] = count) -> Any:
            def wrapped(*words: Any, **more: Any) -> Any:
                if next(count) == at:
                    raise Stopped(name)
                return call(*words, **more)

            return wrapped

        for name in ("mkdir", "symlink", "rename", "link", "fsync", "unlink"):
            monkeypatch.setattr(os, name, stopping(name, getattr(os, name)))
        try:
            crown(0.9)
        except Stopped:
            steps += 1
        else:
            monkeypatch.undo()
            break
        finally:
            monkeypatch.undo()
        info = json.loads((place / "champion_info.json").read_text())
        assert (place / "best_model.ckpt").read_text() == f"weights of {info['val_f1']}", f"step {step}"
        assert "val_f1 0.9" in crown(0.9) or info["val_f1"] == 0.9
        assert read_status(stage.run_dir).state == "succeeded"
    assert steps > 8 and (place / "best_model.ckpt").read_text() == "weights of 0.9"
    assert sorted(path.name.partition("-")[0] for path in place.iterdir()) == [
        ".lock", "best_model.ckpt", "champion_info.json", "current", "history.csv", "model",
    ]  # fmt: skip


# -- what the engine mounts after the launcher has looked at it


@pytest.fixture
def named(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A run that has a checkpoint, a run that names files, and the cache."""
    first, second = (tmp_path / "runs" / "job-20261130-101500" / name for name in ("001-a", "002-b"))
    for number, path in enumerate((first, second), 1):
        create_run(path, RunRequest(path.name, number, "train", ["train"]))
    (first / "best.ckpt").write_text("weights")
    return first, second, tmp_path / "cache"


def mounted(run_dir: Path, cache: Path, *words: str, **more: Any) -> dict[str, str]:
    """Where a container of a run with these words has which folder or file of the host."""
    request = RunRequest(run_dir.name, 2, "train", ["train", *words], cwd=str(run_dir.parents[2]), **more)
    place = recipe.Place("image", (), (1000, 1000), cache=cache)
    host = recipe.options(request, place, run_dir, 1, [], [])["host_config"]
    return {mount["Target"]: mount["Source"] for mount in host["mounts"] if mount["ReadOnly"]}


@pytest.mark.parametrize("how", ["path", "link", "link of a folder", "two links", "ensemble", "teacher"])
def test_a_file_of_a_run_is_mounted_only_with_its_whole_directory(named: tuple[Path, Path, Path], how: str) -> None:
    """The run can exchange best.ckpt for a link to any file of the host after the launcher's check, and the engine
    follows links. It cannot exchange its directory."""
    first, second, cache = named
    here = first.parents[2]
    words = {
        "path": f"model.weights={first}/best.ckpt",
        "link": "model.weights=link",
        "link of a folder": "model.weights=folder/001-a/best.ckpt",
        "two links": "model.weights=other",
        "ensemble": "training.teachers=[vote/ensemble.json]",
        "teacher": f"training.teachers=[{first}/best.ckpt]",
    }
    (here / "link").symlink_to(first / "best.ckpt")
    (here / "folder").symlink_to(first.parent)
    (here / "other").symlink_to("link")
    (here / "vote").mkdir()
    member = os.path.relpath(first / "best.ckpt", here / "vote")
    (here / "vote" / "ensemble.json").write_text(json.dumps({"members": [{"checkpoint": member}]}))
    seen = mounted(second, cache, words[how])
    expected = {str(first): str(first)}
    if how == "ensemble":
        expected |= {str(here / "vote" / "ensemble.json"): str(here / "vote" / "ensemble.json")}
    assert seen == expected
    request = RunRequest("002-b", 2, "train", ["train", words[how]], cwd=str(here))
    told = recipe.words(request, second, cache)[0][1]
    assert how == "ensemble" or str(first / "best.ckpt") in told, "the container finds it in that directory"


def test_a_file_of_the_cache_is_mounted_only_with_the_whole_cache(named: tuple[Path, Path, Path]) -> None:
    _, second, cache = named
    (cache / "weights").mkdir(parents=True)
    (cache / "weights" / "w.st").write_text("weights")
    assert mounted(second, cache, f"model.weights={cache}/weights/w.st") == {str(cache): str(cache)}


def test_data_that_a_run_can_exchange_is_refused(
    named: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, cache = named
    (first / "data" / "train" / "a").mkdir(parents=True)
    (cache / "data").mkdir(parents=True)
    link = first.parents[2] / "data"
    link.symlink_to(first / "data")
    for folder in (first / "data", link, cache / "data"):
        with pytest.raises(DataFolderError, match=r"the data folder leads into .*, where runs can exchange it"):
            mounted(second, cache, data_dir=str(folder))
    with pytest.raises(DataFolderError, match="a link of the data leads into "):
        mounted(second, cache, links={"/mnt/x": str(first / "data")})
    assert mounted(second, cache, data_dir=str(first.parents[2] / "elsewhere"))["/data"].endswith("/elsewhere")
    monkeypatch.setenv("CACHE_DIR", str(first.parents[2]))
    with pytest.raises(DataFolderError, match=r"containers write to this cache, and the runs folder .* is in it"):
        check_cache(first.parents[1], "/nonexistent")
