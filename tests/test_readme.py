"""The README's commands, run as they stand there: it cannot go stale."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(sh|python)([^\n]*)\n(.*?)^```$", README, re.S | re.M)


def test_every_block_of_commands_is_run_or_says_why_not() -> None:
    assert BLOCKS
    for _, words, _ in BLOCKS:
        assert not words.strip() or words.strip().startswith("no-test: ")


def test_the_commands_run_as_they_stand(tmp_path: Path) -> None:
    """In an empty folder with the project's jobs/, one after another as a user would type them."""
    (tmp_path / "jobs").symlink_to(REPOSITORY / "jobs")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment["DOCKER_HOST"] = (
        "unix:///nonexistent/docker.sock"  # what --engine auto finds must not depend on the host
    )
    environment["CUDA_VISIBLE_DEVICES"] = ""
    for name in ("RUN_DIR", "DATA_DIR", "CACHE_DIR", "LAUNCHER_RUNS"):
        environment.pop(name, None)
    for language, words, block in BLOCKS:
        if words.strip():
            continue
        if language == "python":
            (tmp_path / "page.jpg").write_bytes(next((tmp_path / "data" / "test").glob("*.jpg")).read_bytes())
        command = {"sh": ["bash", "-euxo", "pipefail", "-c"], "python": [sys.executable, "-c"]}[language]
        done = subprocess.run([*command, block], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    for made in (
        "submission.csv",
        "predictions.npz",
        "analysis_results/confusion_matrix.png",
        "analysis_results/report.html",
        "runs/champion/best_model.ckpt",
    ):
        assert (tmp_path / made).exists(), made


@pytest.mark.parametrize("target", ["demo", "test", "test-full", "lint", "bench", "help", "format"])
def test_the_targets_it_names_exist(target: str) -> None:
    done = subprocess.run(["make", "--dry-run", target], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_files_it_names_exist() -> None:
    for path in re.findall(r"`((?:jobs|images)/[\w.-]+)`", README):
        assert (REPOSITORY / path).exists(), path
