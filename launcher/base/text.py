"""Text that others wrote: its end, without what a terminal would obey, on a terminal of any encoding."""

from __future__ import annotations

import codecs
import errno
import io
import os
import re
import stat
import sys
from pathlib import Path
from typing import BinaryIO

from trainer.base.brief import in_brief

WIDTH = 120
"""Columns of a line for people."""
LAST = 20_000
"""Bytes at the end of a log that are searched for its last message."""
FARTHEST = 2**28
"""Bytes at the end of a log that are searched for its last lines."""
_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor movements
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x90\x98\x9c-\x9f]*(?:\x07|\x1b\\|\x9c)"  # OSC: titles, links
    r"|\x1b[ -/]*[0-~]"
)
_INCOMPLETE = re.compile(r"(?:\x1b(?:\[[0-?]*[ -/]*|[\]PX^_][^\x07\x1b\x9c]*\x1b?|[ -/]*)?|\x9b[0-?]*[ -/]*|\r)\Z")
_LONGEST = 300
"""Characters of the longest sequence whose end is waited for."""
_BLOCK = 2**16
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # also reversals of text direction
_PLAIN = str.maketrans(
    {"✓": "+", "✗": "x", "×": "x", "▶": ">", "→": "->", "–": "-", "—": "-", "…": "...", "·": ".", "≈": "~", "±": "+-"}
)  # fmt: skip


def printable(text: str) -> str:
    """The text without escape sequences and control characters; tabs and ends of lines stay."""
    if _CONTROL.search(text) is None:
        return text
    text = _SEQUENCE.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    return _CONTROL.sub("", text)


def one_line(text: str, most: int = 500) -> str:
    """The beginning of a text that somebody else wrote, as one line without control characters, in
    brief. Bytes that are not UTF-8 stay surrogates."""
    return in_brief(printable(text[: 4 * most]), most)


def relative(path: Path) -> str:
    """The path relative to the working directory; absolute if somebody has deleted that."""
    try:
        return os.path.relpath(path)
    except FileNotFoundError:
        return str(path)


def wrapped(line: str, indent: str = "  ", width: int = WIDTH) -> str:
    """A long line as several, which begin with `indent` from the second on. It is broken at its semicolons as far as
    that is enough, so that most commands in it stay whole.

    >>> print(wrapped("note: nothing runs; continue with: launcher resume job", width=40))
    note: nothing runs;
      continue with: launcher resume job
    """
    if len(line) <= width:
        return line
    import textwrap

    lines: list[str] = []
    parts = line.split("; ")
    for part in (f"{part};" if number < len(parts) else part for number, part in enumerate(parts, start=1)):
        if lines and len(lines[-1]) + len(part) < width:
            lines[-1] += f" {part}"
            continue
        begin = indent if lines else ""
        lines += textwrap.wrap(
            part, width, initial_indent=begin, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )  # fmt: skip
    return "\n".join(lines)


def open_log(path: Path) -> BinaryIO:
    """A log, which a run may have exchanged for anything. Raises OSError unless it is a regular file, and no link."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def tail(path: Path, begin: int = 0, most: int = LAST) -> str:
    """The end of a log: at most `most` bytes after byte `begin`. Empty if it cannot be read; see `open_log`.

    Bytes that are not UTF-8 become surrogates, as in names of files.
    """
    try:
        with open_log(path) as file:
            return end(file, begin, most)
    except OSError:
        return ""


def end(file: BinaryIO, begin: int = 0, most: int = LAST) -> str:
    """See `tail`. Raises OSError."""
    file.seek(max(begin, file.seek(0, os.SEEK_END) - most))
    return file.read(most).decode(errors="surrogateescape")


def last_lines(file: BinaryIO, count: int) -> int:
    """The position in the file at which its last `count` lines begin. Reads it from its end, in pieces, but not more
    than `FARTHEST` bytes."""
    end = position = file.seek(0, os.SEEK_END)
    if count <= 0:
        return end
    while position > max(0, end - FARTHEST):
        size = min(_BLOCK, position)
        position -= size
        file.seek(position)
        block = file.read(size)
        at = len(block) - 1 if position + size == end and block.endswith(b"\n") else len(block)
        while (at := block.rfind(b"\n", 0, at)) >= 0:
            count -= 1
            if count == 0:
                return position + at + 1
    return position


class Pieces:
    """Decodes a log that is read in pieces. A character or escape sequence that is not complete waits for its end."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="surrogateescape")
        self._held = ""

    def text(self, piece: bytes, final: bool = False) -> str:
        """The printable text of the next piece. `final`: there is no further piece."""
        text = self._held + self._decoder.decode(piece, final)
        self._held = ""
        match = None if final else _INCOMPLETE.search(text, max(0, len(text) - _LONGEST))
        if match is not None:
            text, self._held = text[: match.start()], match[0]
        return printable(text)


class PlainWriter(io.TextIOWrapper):
    """A stream of text to a terminal or pipe: see `printable`. Never fails for a character that it cannot encode."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        # click replaces a stream in ASCII by one of its own; so this one encodes ASCII before it writes
        self._replaced = stream  # it would close the buffer at its own end
        self._ascii = codecs.lookup(stream.encoding).name == "ascii"
        super().__init__(
            stream.buffer,
            encoding="latin-1" if self._ascii else stream.encoding,
            errors=_ON_TERMINAL if stream.isatty() else _IN_PIPE,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )

    def write(self, text: str) -> int:
        """See `io.TextIOWrapper`."""
        self.write_styled(printable(text))
        return len(text)

    def write_styled(self, text: str) -> None:
        """Write text with its escape sequences, which the launcher itself made."""
        super().write(text.translate(_PLAIN).encode("ascii", _TO_ASCII).decode("latin-1") if self._ascii else text)


def plain_streams() -> None:
    """Make `PlainWriter`s of this process's standard output and error output."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if type(stream) is io.TextIOWrapper:  # not a stream of a test
            stream.flush()
            setattr(sys, name, PlainWriter(stream))


def _replacing(raw: bool, error: UnicodeError) -> tuple[str | bytes, int]:
    """Handler of encoding errors: similar ASCII, or `?`. Bytes of a name that are not UTF-8: as they are if `raw`, else
    like `\\xb0`."""
    assert isinstance(error, UnicodeEncodeError)
    replaced: list[bytes] = []
    for character in error.object[error.start : error.end]:
        code = ord(character)
        if 0xDC80 <= code <= 0xDCFF:
            replaced.append(bytes([code - 0xDC00]) if raw else b"\\x%02x" % (code - 0xDC00))
        else:
            replaced.append(character.translate(_PLAIN).encode("ascii", "replace"))
    joined = b"".join(replaced)
    return (joined if raw else joined.decode("ascii")), error.end


_ON_TERMINAL, _IN_PIPE, _TO_ASCII = "launcher.terminal", "launcher.pipe", "launcher.ascii"
codecs.register_error(_ON_TERMINAL, lambda error: _replacing(False, error))
codecs.register_error(_IN_PIPE, lambda error: _replacing(True, error))
codecs.register_error(_TO_ASCII, lambda error: _replacing(True, error))
