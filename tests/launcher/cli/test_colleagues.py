"""Another user, who may read a runs folder but change nothing in it, can look at all of it."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.record.find import list_runs
from launcher.record.journal import append_event, create_run
from launcher.record.request import RunRequest
from tests.launcher.conftest import REPOSITORY
from trainer.base.files import write_json

CODE = """
import glob, importlib, io, os, pkgutil, statistics, sys
import launcher, rich.live, rich.table, rich.console
for module in pkgutil.walk_packages(launcher.__path__, "launcher."):
    if not module.name.endswith(("__main__", "marked")):
        importlib.import_module(module.name)
from launcher.__main__ import main
table = rich.table.Table("✓", title="x", caption="y")
table.add_row("…")
rich.console.Console(file=io.StringIO(), width=40).print(table)  # imports the rest: what follows may not read it
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
main(sys.argv[1:])
"""


@pytest.fixture
def shared_runs() -> Iterator[Path]:
    """A runs folder with a submission whose launcher and one of whose runs have vanished. Others may read it."""
    root = Path(tempfile.mkdtemp(prefix="colleague-", dir="/tmp"))
    submission = root / "runs" / "job-20261130-101500"
    for number, states in enumerate((("starting", "running"), ("starting", "running", "succeeded"), ()), start=1):
        run_dir = submission / f"00{number}-resnet34"
        create_run(run_dir, RunRequest(run_dir.name, number, "train", ["train"], config={"model": "resnet34"}))
        for state in states:
            append_event(run_dir, state, host=os.uname().nodename, engine="native")  # type: ignore[arg-type]
        (run_dir / "log.txt").write_text("epoch 1\nepoch 2\n")
    write_json(submission / "002-resnet34" / "metrics.json", {"val_f1": 0.5})
    (submission / "002-resnet34" / "best.ckpt").write_text("weights")
    runs = {"name": submission.name, "engine": "native", "runs": ["001-resnet34"], "steps": []}
    write_json(submission / "submission.json", runs)
    subprocess.run(["chmod", "-R", "a+rX,go-w", root], check=True)
    if os.getuid() != 0:
        subprocess.run(["chmod", "-R", "a-w", root], check=True)
    yield root / "runs"
    subprocess.run(["chmod", "-R", "u+w", root], check=True)
    shutil.rmtree(root)


def launcher(runs: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "LAUNCHER_RUNS": str(runs),
        "HOME": "/",
        "DOCKER_HOST": "unix:///x",
    }
    command = [sys.executable, "-c", CODE, *words]
    return subprocess.run(command, cwd="/tmp", env=environment, capture_output=True, text=True)


def contents(runs: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(runs.rglob("*")) if path.is_file()}


def test_a_colleague_can_look_and_changes_nothing(shared_runs: Path) -> None:
    before = contents(shared_runs)
    seen = launcher(shared_runs, "status", "--json")
    assert seen.returncode == 0, seen.stderr
    status = json.loads(seen.stdout)
    assert [run["state"] for run in status["runs"]] == ["running", "succeeded", "queued"]
    assert "only its owner's launcher can record its end" in status["runs"][0]["reason"]
    shown = launcher(shared_runs, "status")
    assert shown.returncode == 0 and "can record its end" in shown.stdout.replace("\n", " "), shown.stderr
    logs = launcher(shared_runs, "logs", "1", "--tail", "1")
    assert (logs.returncode, logs.stdout) == (0, "epoch 2\n"), logs.stderr
    collected = launcher(shared_runs, "collect")
    assert collected.returncode == 0 and "0.5000" in collected.stdout, collected.stderr
    assert "leaderboard.csv is not written: " in collected.stdout and "Permission denied" in collected.stdout
    assert "the champion is not updated: " in collected.stdout
    attached = launcher(shared_runs, "attach")
    assert attached.returncode == 1 and "no launcher is running this submission" in attached.stderr
    replayed = launcher(shared_runs, "replay")
    assert replayed.returncode == 0 and "✓ 001-resnet34" in replayed.stdout, replayed.stderr
    assert contents(shared_runs) == before
    assert len(list_runs(shared_runs / "job-20261130-101500")) == 3


@pytest.mark.parametrize("words", [["stop"], ["resume"], ["exec", "RUNS/job-20261130-101500/001-resnet34"]])
def test_what_a_colleague_may_not_do_is_one_clear_error(shared_runs: Path, words: list[str]) -> None:
    before = contents(shared_runs)
    done = launcher(shared_runs, *(word.replace("RUNS", str(shared_runs)) for word in words))
    assert done.returncode == 1 and done.stderr.count("error: ") == 1, done.stdout + done.stderr
    owner, me = (pwd.getpwuid(uid).pw_name for uid in (os.getuid(), 65534 if os.getuid() == 0 else os.getuid()))
    if os.getuid() == 0:
        said = f"job-20261130-101500: belongs to {owner}, and you ({me}) may not change it; ask {owner}, or run the"
        assert said in done.stderr and "sudo -u '#0' launcher …" in done.stderr, done.stderr
    assert "unexpected" not in done.stderr and "Traceback" not in done.stderr
    assert contents(shared_runs) == before


def test_a_submission_that_may_not_be_looked_into_is_not_denied(shared_runs: Path) -> None:
    """Nobody is told that there is none, and to start one."""
    (submission,) = (path for path in shared_runs.iterdir() if path.name.startswith("job"))
    submission.chmod(0o700 if os.getuid() == 0 else 0)
    for words in (["status"], ["logs", "1"], ["stop", submission.name]):
        done = launcher(shared_runs, *words)
        assert done.returncode == 1 and f"you may not look into {submission.name}" in done.stderr, done.stderr
    submission.chmod(0o755)


@pytest.mark.parametrize("hidden", [".state", ".state/002-resnet34"])
def test_records_that_may_not_be_read_are_no_runs_without_success(shared_runs: Path, hidden: str) -> None:
    (submission,) = (path for path in shared_runs.iterdir() if path.name.startswith("job"))
    (submission / hidden).chmod(0o700 if os.getuid() == 0 else 0)
    owner = pwd.getpwuid(os.getuid()).pw_name
    if hidden == ".state":
        said = f"may not read the records of its runs, {submission / hidden}; ask {owner}, or run the command as that"
        words = ("status", "collect", "logs 1", "stop", "resume", "attach", "replay", "status --json", "collect --json")
        for command in words:
            done = launcher(shared_runs, *command.split())
            assert done.returncode == 1 and said in done.stderr and not done.stdout, done.stdout + done.stderr
            assert done.stderr.count("\n") == 1 and f"sudo -u '#{os.getuid()}' launcher …" in done.stderr
    else:
        done = launcher(shared_runs, "collect")
        said = "as far as is known: the records of 1 run cannot be used: "
        assert said in done.stdout and "002-resnet34/events.jsonl: Permission denied" in done.stdout, done.stdout
    (submission / hidden).chmod(0o755)
