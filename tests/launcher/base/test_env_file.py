"""`.env` is read by the launcher as by the trainer, and said once; the environment wins, and values are never shown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launcher.base import env_file
from tests.launcher.conftest import Lab


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("WANTED", "SET", "OTHER", "EMPTY", "QUOTED"):
        monkeypatch.setenv(name, "from the environment")  # so that it is taken back afterwards
        if name != "SET":
            monkeypatch.delenv(name)
    return tmp_path


def test_the_environment_wins_and_the_rest_is_said_by_name(folder: Path) -> None:
    (folder / ".env").write_text(
        "# x\nexport WANTED = a # comment\nSET=b\nOTHER='${SET} c'\nEMPTY=\nNOTHING\nQUOTED=\"1\\n2\"\n"
    )
    env_file.load()
    assert [os.environ[name] for name in ("WANTED", "SET", "EMPTY", "QUOTED")] == [
        "a",
        "from the environment",
        "",
        "1\n2",
    ]
    assert "NOTHING" not in os.environ
    assert env_file.notes() == [f"note: {folder}/.env sets WANTED, OTHER, EMPTY, QUOTED"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"WANTED=\xff\n", "not text in UTF-8"),
        (b"WANTED=a\n'x\n", ".env:2: not NAME=VALUE"),
        (b"WANTED=a\x00b\n", "no variable can have"),
        (None, "cannot be read (Permission denied)"),
    ],
)
def test_a_bad_file_is_a_note_and_ends_no_command(
    folder: Path, content: bytes | None, said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / ".env").write_bytes(content or b"WANTED=a")
    if content is None:

        def refused(*more: object, **rest: object) -> None:
            raise PermissionError(13, "Permission denied", ".env")

        monkeypatch.setattr(Path, "open", refused)
    env_file.load()
    assert any(said in note for note in env_file.notes())
    assert capfd.readouterr().err == ""


def test_runs_get_what_dotenv_says_and_nothing_shows_a_secret(lab: Lab) -> None:
    (lab.root / "data").rename(lab.root / "elsewhere")
    (lab.root / ".env").write_text("DATA_DIR=elsewhere\nTOKEN=hidden-value\nCACHE_DIR=~/unused\n")
    lab.environment["HOME"] = str(lab.root)
    lab.plan = {"*": {"exit": 3}}
    lab.job("overrides: {model.pretrained: false}\nsecrets: [TOKEN]\n")
    planned, submitted = lab.launcher("plan", "job.yaml"), lab.launcher("submit", "job.yaml", "--engine", "native")
    note = f"note: {lab.root}/.env sets DATA_DIR, TOKEN, CACHE_DIR"
    assert (
        planned.stdout.count(note) == 1 and submitted.stdout.count(note) == 1 and "is not set" not in submitted.stdout
    )
    (begin,) = lab.journal("begin")
    assert begin["env"]["DATA_DIR"] == str(lab.root / "elsewhere") and begin["secrets"]["TOKEN"][0] == "hidden-value"
    assert "TOKEN" not in begin["env"]
    seen = [planned.stdout, planned.stderr, submitted.stdout, submitted.stderr, lab.launcher("status").stdout]
    files = [path.read_text(errors="replace") for path in lab.runs.rglob("*") if path.is_file()]
    assert not any("hidden-value" in text for text in (*seen, *files))
