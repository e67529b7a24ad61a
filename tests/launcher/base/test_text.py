"""The text of others: nothing in it moves a terminal, nothing in it ends a command, whatever the terminal can show."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.base.text import Pieces, PlainWriter, last_lines, printable, tail
from tests.launcher.conftest import REPOSITORY

ODD = [
    ("a\x1b[2Jb", "ab"),
    ("\x1b]0;title\x07x", "x"),
    ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
    ("\x1b[38;5;1mred\x1b[0m", "red"),
    ("\x9b2J\x9d0;t\x9c|", "|"),
    ("\x1bc\x1b(Bx\x1b7", "x"),
    ("\x1b]0;no end", "0;no end"),
    ("50%\r100%\r\nok", "50%\n100%\nok"),
    ("\r\x1b0\n", "\n\n"),
    ("a\0\0\x07\x08\x7f\x85b", "ab"),
    ("a\u202eb\u2066c", "abc"),
    ("한글 ✓ é\t.", "한글 ✓ é\t."),
]


@pytest.mark.parametrize(("text", "expected"), ODD)
def test_what_a_terminal_would_obey_is_left_out(text: str, expected: str) -> None:
    assert printable(text) == expected


@given(
    st.text(st.sampled_from("\x1b\x9b[]mJ0;?\x07\\\r\nab ✓é"), max_size=30).map(lambda text: text.encode()),
    st.integers(1, 4),
)
def test_a_log_in_pieces_is_the_log(text: bytes, size: int) -> None:
    pieces = Pieces()
    joined = "".join(pieces.text(text[at : at + size]) for at in range(0, len(text), size)) + pieces.text(
        b"", final=True
    )
    assert joined == printable(text.decode())


@pytest.mark.parametrize("begin", ["\x9d", "\x90", "\x1b]", "\x9b", "\x1b[", "\x1b", "\x98a", "\x1bP\x9d"])
def test_a_log_of_beginnings_alone_is_read_once(begin: str) -> None:
    """In time that grows with the square of the length, this would take an hour."""
    assert "\x9d" not in printable(begin * 2**18 + "end") and printable(begin * 2**18 + "\n").endswith("\n")


def test_a_sequence_without_an_end_is_not_waited_for() -> None:
    assert Pieces().text(b"\x1b]0;" + b"x" * 1000).endswith("xxx")


@pytest.mark.parametrize("encoding", ["ascii", "iso8859-1", "cp949", "utf-8"])
@given(st.text(max_size=20))
def test_any_text_can_be_written_to_any_terminal(encoding: str, text: str) -> None:
    class Terminal(io.BytesIO):
        def isatty(self) -> bool:
            return True

    for raw in (Terminal(), io.BytesIO()):
        PlainWriter(io.TextIOWrapper(raw, encoding=encoding)).write(text + "✓→\udcb0\ud800")


def test_a_terminal_without_check_marks_shows_similar_characters() -> None:
    raw = io.BytesIO()
    out = PlainWriter(io.TextIOWrapper(raw, encoding="ascii"))
    out.write("✓ é → …\udcb0")
    out.flush()
    assert raw.getvalue() == b"+ ? -> ...\xb0"


@pytest.mark.parametrize("encoding", ["iso8859-1"])
def test_commands_print_in_the_terminals_encoding(encoding: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(REPOSITORY)}
    for words in (["plan", "model=resnet34"], ["status", "né✓"]):
        done = subprocess.run(
            [sys.executable, "-m", "launcher", *words], cwd=tmp_path, env=environment, capture_output=True
        )
        assert b"Unicode" not in done.stderr
        (done.stdout + done.stderr).decode(encoding)


def test_only_the_end_of_a_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    with log.open("wb") as file:
        file.truncate(8 * 2**30)  # sparse; reading it whole would take all memory
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + b"\n".join(b"line %d" % number for number in range(5)) + b"\n")
    assert printable(tail(log)).strip().endswith("line 3\nline 4")
    with log.open("rb") as file:
        file.seek(last_lines(file, 2))
        assert file.read() == b"line 3\nline 4\n"


@pytest.mark.parametrize(
    ("content", "count", "expected"),
    [
        (b"", 3, b""),
        (b"a", 1, b"a"),
        (b"a\nb", 1, b"b"),
        (b"a\nb\n", 1, b"b\n"),
        (b"a\nb\n\n", 1, b"\n"),
        (b"a\nb\n", 2, b"a\nb\n"),
        (b"a\nb\n", 9, b"a\nb\n"),
        (b"a\n", 0, b""),
        (b"x" * 70_000 + b"\ny\n" + b"z" * 70_000 + b"\n", 2, b"y\n" + b"z" * 70_000 + b"\n"),
        (b"\n" * 200_000, 100_000, b"\n" * 100_000),
    ],
)
def test_the_last_lines_are_counted_from_the_end(content: bytes, count: int, expected: bytes) -> None:
    file = io.BytesIO(content)
    assert content[last_lines(file, count) :] == expected


@pytest.mark.parametrize("kind", ["link", "fifo", "folder", "nothing"])
def test_a_log_that_is_no_file_is_not_opened(tmp_path: Path, kind: str) -> None:
    log = tmp_path / "log.txt"
    (tmp_path / "secret").write_text("secret")
    if kind == "link":
        log.symlink_to(tmp_path / "secret")
    elif kind == "fifo":
        os.mkfifo(log)
    elif kind == "folder":
        log.mkdir()
    assert tail(log) == ""
