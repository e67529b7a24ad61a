"""Names, reasons and logs of any bytes, on terminals of any encoding: no command fails, and no terminal obeys them."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.cli import live, tables, watch
from launcher.cli.options import new_console
from launcher.record.journal import Status, append_event, create_run
from launcher.record.request import RunRequest
from launcher.results import leaderboard
from tests.launcher.conftest import Lab
from trainer.base.files import write_json

NASTY = "died\x1b[2J\x1b]0;owned\x07 caf\udce9 한글 ✓\u2028next\x9b31m"


@pytest.fixture
def runs(lab: Lab) -> Lab:
    """A lab of which all names and texts are odd: a folder that is EUC-KR, a reason and a log that clear the screen."""
    lab.root = Path(os.fsdecode(os.fsencode(lab.root) + b"/\xc7\xd1\xb1\xdb \xe9"))
    submission = lab.runs / "job-20261130-101500"
    run_dir = submission / "001-resnet34"
    create_run(
        run_dir, RunRequest(run_dir.name, 1, "train", ["train"], data_dir=str(lab.root), config={"model": NASTY})
    )
    append_event(run_dir, "starting")
    append_event(run_dir, "running")
    append_event(run_dir, "failed", reason=NASTY)
    (run_dir / "log.txt").write_bytes(b"\x1b[2Jone \xe9\r50%\r\ntwo\x1b]0;t\x07\n\x00three\n")
    write_json(submission / "submission.json", {"name": submission.name, "engine": "native", "data_dir": str(lab.root)})
    return lab


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp949"])
def test_every_command_prints_any_text_and_no_escape(runs: Lab, encoding: str) -> None:
    runs.environment["PYTHONIOENCODING"] = encoding
    others = (["attach"], ["replay"]) if encoding == "ascii" else ()
    for words in (["status"], ["logs", "1"], *others, *([["collect"]] if encoding == "utf-8" else [])):
        arguments = runs.arguments() | {"text": False}
        done = subprocess.run([sys.executable, "-m", "launcher", *words], capture_output=True, **arguments)
        printed = done.stdout + done.stderr
        assert b"unexpected" not in printed and b"Traceback" not in printed, printed
        assert not set(printed) & (set(range(32)) - {9, 10}), printed
        assert done.returncode == (1 if words == ["attach"] else 0)
        assert words != ["logs", "1"] or done.stdout.endswith(b"one \xe9\n50%\ntwo\nthree\n")


def test_json_is_utf_8_with_every_byte_of_a_name(runs: Lab) -> None:
    arguments = runs.arguments() | {"text": False}
    done = subprocess.run([sys.executable, "-m", "launcher", "status", "--json"], capture_output=True, **arguments)
    status = json.loads(done.stdout.decode("utf-8"))
    assert status["directory"] == str(runs.runs / "job-20261130-101500")
    assert os.fsencode(status["runs"][0]["directory"]).endswith(b"/001-resnet34")


def test_a_terminal_gets_colours_of_the_launcher_and_nothing_of_a_run(runs: Lab) -> None:
    """On a real terminal, where rich writes escape sequences of its own."""
    own, its = pty.openpty()
    arguments = runs.arguments() | {"text": False}
    arguments["env"] |= {"TERM": "xterm", "COLUMNS": "100"}
    subprocess.run([sys.executable, "-m", "launcher", "status"], stdout=its, stderr=its, **arguments)
    os.close(its)
    shown = b""
    while piece := _read(own):
        shown += piece
    os.close(own)
    assert b"\x1b[1m" in shown, "bold, by rich"
    assert not any(bad in shown for bad in (b"\x1b[2J", b"\x1b]", b"\x07", b"\xc2\x9b", b"\xe9")), shown


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # the other end is closed
        return b""


def test_lines_and_tables_are_clean(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from launcher.base.text import PlainWriter

    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", PlainWriter(io.TextIOWrapper(raw, encoding="utf-8")))
    tables.Announcer(Path("sub")).event("001-x", Status("failed", reason=NASTY))
    row = {
        "name": NASTY,
        "state": "failed",
        "attempt": 1,
        "reason": NASTY,
        "val_f1": None,
        "progress": {},
        "devices": [],
    }
    new_console(width=200).print(
        watch.status_table({"submission": NASTY, "state": "failed", "seconds_left": None, "runs": [row]})
    )
    sys.stdout.flush()
    printed = raw.getvalue()
    assert printed.count(b"died") == 4 and not {0x1B, 7} & set(printed) and b"\xc2\x9b" not in printed
    assert leaderboard.MARK


def test_submit_takes_a_data_folder_of_any_bytes(lab: Lab) -> None:
    folder = os.fsdecode(os.fsencode(lab.root) + b"/\xc7\xd1\xb1\xdb")
    (lab.root / "data").rename(folder)
    words = ("submit", lab.job("overrides: {seed: 1}\n"), "--engine", "native", "--data", folder)
    done = subprocess.run(
        [sys.executable, "-m", "launcher", *words], capture_output=True, **(lab.arguments() | {"text": False})
    )
    assert done.returncode == 0, done.stderr
    (begin,) = lab.journal("begin")
    assert begin["env"]["DATA_DIR"] == folder


def test_the_exit_code_comes_from_the_record_and_not_from_the_words_of_a_reason(tmp_path: Path) -> None:
    paths = [tmp_path / "s" / name for name in ("001-a", "002-b")]
    for path in paths:
        create_run(path, RunRequest(path.name, 1, "train", ["train"]))
    append_event(paths[0], "failed", reason="stopped: out of paper")
    append_event(paths[1], "cancelled", reason="stopped-a is failed (on_failure: stop)", because="stopped-a")
    assert live.exit_code(paths) == 1
    append_event(paths[1], "queued", 2)
    append_event(paths[1], "cancelled", reason="ended on request")
    assert live.exit_code(paths) == 130
