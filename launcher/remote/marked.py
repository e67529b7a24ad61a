"""What the server's command prints, without what its login shell prints before: a start file may greet anybody.

Also a program between rsync and ssh: `marked.py MARKER SSH…` runs ssh and passes on its output after the marker's line.
Imports nothing of the launcher.
"""

from __future__ import annotations

import os
import secrets
import select
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

PIECE = 2**18


@dataclass(frozen=True)
class Marker:
    """A line that separates the shell's words from the command's. No command line contains it, only its two halves."""

    halves: tuple[str, str] = field(default_factory=lambda: (secrets.token_hex(8), secrets.token_hex(8)))

    @property
    def line(self) -> str:
        return "".join(self.halves)

    @property
    def script(self) -> str:
        """The command of any shell that prints the line."""
        return "printf '\\n%s%s\\n' " + " ".join(self.halves)


def after(printed: bytes, marker: str) -> bytes:
    """What follows the marker's line. Empty if there is no such line: the command did not start."""
    return printed.partition(f"\n{marker}\n".encode())[2]


def relay(source: int, marker: str, write: Callable[[bytes], object], out: int | None = None) -> None:
    """Pass on what follows the marker's line, until the source ends. Raises BrokenPipeError once nobody reads `out`."""
    poller = select.poll()
    poller.register(source, select.POLLIN)
    if out is not None:
        poller.register(out, 0)
    wanted, held, begun = f"\n{marker}\n".encode(), b"", False
    while True:
        if any(descriptor == out for descriptor, _ in poller.poll()):
            raise BrokenPipeError
        piece = os.read(source, PIECE)
        if not piece:
            return
        if begun:
            write(piece)
            continue
        held += piece
        before, found, rest = held.partition(wanted)
        if found:
            begun, held = True, b""
            if rest:
                write(rest)
        else:
            held = before[-len(wanted) :]


def main() -> int:
    """See the module."""

    def write(piece: bytes) -> None:
        view = memoryview(piece)
        while view:
            try:
                view = view[os.write(1, view) :]
            except BlockingIOError:  # rsync shares this pipe and has made it non-blocking
                select.select([], [1], [])

    process = subprocess.Popen(sys.argv[2:], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        relay(process.stdout.fileno(), sys.argv[1], write)
    except (BrokenPipeError, KeyboardInterrupt):
        process.terminate()
    return process.wait()


if __name__ == "__main__":
    sys.exit(main())
