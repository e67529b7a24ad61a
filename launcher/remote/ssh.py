"""The launcher on a server, over the system's ssh. A command uses one connection."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import IO, Any

import click

from launcher import __version__
from launcher.base.errors import EXIT_INTERRUPTED, RunError, UnknownNameError, stopped_watching
from launcher.job import document
from launcher.remote.host import Host
from launcher.remote.marked import Marker, after, relay
from trainer.base.errors import EXIT_USAGE

OPTIONS = {
    "BatchMode": "yes",  # a question that nobody sees would wait for ever
    "ConnectTimeout": "20",
    "ServerAliveInterval": "15",  # notices a connection that died while this machine slept
    "ServerAliveCountMax": "4",
    "ControlPersist": "no",
    "RemoteCommand": "none",
    "ClearAllForwardings": "yes",
    "PermitLocalCommand": "no",
}
PATIENCE = 60
"""Seconds to wait for a silent server."""
EXIT_SSH = 255
"""ssh's own exit code: no connection, or it was lost."""


@dataclass(frozen=True)
class Connection:
    """An open connection. Further sessions use it without another login."""

    host: Host
    ssh: list[str]
    """The ssh command with its options, without the destination."""
    master: subprocess.Popen[bytes]
    marker: Marker = field(default_factory=Marker)

    def lost(self) -> bool:
        """Whether the connection has ended. It may take a moment until this is known."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.master.wait(1)
        return self.master.poll() is not None


def ssh_command() -> list[str]:
    """The ssh command: $LAUNCHER_SSH, else ssh. Raises RunError if it is missing."""
    command = shlex.split(os.environ.get("LAUNCHER_SSH") or "ssh")
    if not command or shutil.which(command[0]) is None:
        name = command[0] if command else "ssh"
        raise RunError(
            f"{name}: --host needs ssh, which is not installed here; on Debian: apt-get install openssh-client"
        )
    return command


@contextlib.contextmanager
def connect(host: Host) -> Iterator[Connection]:
    """Log in. Raises RunError with a fix if that fails."""
    command = ssh_command()
    # A socket's path has at most about 100 characters, and the temporary folder of some systems uses half of them.
    folder = Path(tempfile.mkdtemp(prefix="launcher-", dir="/tmp"))
    options = [word for name, value in OPTIONS.items() for word in ("-o", f"{name}={value}")]
    shared = [*command, *options, "-o", f"ControlPath={folder / 's'}", "-o"]
    master = None
    try:
        with (folder / "said").open("wb") as errors:
            # The master lives as long as its `cat` on the server, and `cat` as long as this process, so a killed
            # launcher leaves nothing. It has its own process session, so that Ctrl-C first ends the processes that use
            # it.
            master = subprocess.Popen(
                [*shared, "ControlMaster=yes", "-o", "LogLevel=ERROR", "-T", host.destination, "exec cat"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
        deadline = time.monotonic() + PATIENCE
        while not (folder / "s").exists():
            if master.poll() is not None or time.monotonic() > deadline:
                raise _why_not(host, (folder / "said").read_text(errors="replace"))
            time.sleep(0.02)
        yield Connection(host, [*shared, "ControlMaster=no", "-o", "LogLevel=QUIET"], master)
    finally:
        if master is not None:
            master.kill()  # it may notice a softer signal only at its next ServerAliveInterval
            master.wait()
            assert master.stdin is not None
            master.stdin.close()
        shutil.rmtree(folder, ignore_errors=True)


def _why_not(host: Host, errors: str) -> RunError:
    """Turn ssh's output after a failed login into one error with a fix."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    last = lines[-1] if lines else f"no answer within {PATIENCE} s"
    by_hand = shlex.join([*ssh_command(), host.destination])
    text = errors.lower()
    if "host identification has changed" in text:
        return RunError(
            f"{host.given}: the server's host key differs from the known one: the server was reinstalled, or "
            "another machine answers under its name. Ask its administrator, then run: "
            f"ssh-keygen -R {host.server.strip('[]')}, {by_hand}"
        )
    if "host key" in text:
        return RunError(f"{host.given}: the server's host key is unknown ({last}); accept it once: {by_hand}")
    if "permission denied" in text or "authentication" in text:
        return RunError(
            f"{host.given}: the login was refused ({last}); --host needs a key, because it never asks for a password: "
            f"ssh-copy-id {host.destination} (and ssh-add if the key has a passphrase)"
        )
    if "could not resolve" in text:
        return UnknownNameError(f"{host.given}: no such server ({last}); check the name, or ~/.ssh/config")
    return RunError(f"{host.given}: cannot be reached ({last}); try: {by_hand}")


def launcher_script(host: Host, words: Sequence[str], before: str = "") -> str:
    """The shell script that starts the launcher on the server with these words. `before`: a command to run first."""
    return (
        f"{enter(host)}"
        "if [ -x .venv/bin/launcher ]; then l=.venv/bin/launcher; "
        "elif command -v launcher >/dev/null 2>&1; then l=launcher; "
        f"else {_say_error(_no_launcher(host))}; exit 1; fi; "
        # The standard input of this script is the job file.
        f'v=$("$l" --version </dev/null) || {{ {_say_error(_broken(host))}; exit 1; }}; '
        f'[ "$v" = {__version__} ] || printf "note: the launcher on %s is version %s, this one {__version__}\\n" '
        f'{quote(host.destination)} "$v" >&2; '
        f'{before}exec "$l" {shlex.join(words)}'
    )


def enter(host: Host) -> str:
    """The start of every script: cd to the server's folder, or print one clear error."""
    absent = f"{host.given}: no folder {host.folder}; give the project's folder: --host {_plain(host)}:DIR"
    return f"cd {quote(host.folder)} >/dev/null 2>&1 || {{ {_say_error(absent)}; exit {EXIT_USAGE}; }}; "


def _plain(host: Host) -> str:
    return host.user + host.server


def _no_launcher(host: Host) -> str:
    place = "the login folder" if host.folder == "." else host.folder
    return (
        f"{host.given}: no launcher found: neither .venv/bin/launcher in {place} nor launcher on PATH; give "
        f"the project's checkout with --host {_plain(host)}:DIR, or run there: make install"
    )


def _broken(host: Host) -> str:
    return f"{host.given}: the launcher in {host.folder} does not start; run there: make install"


def _say_error(message: str) -> str:
    return f"printf '%s\\n' {quote('error: ' + message)} >&2"


def session(connection: Connection, script: str, tty: bool = False) -> list[str]:
    """The local command that lets the server's sh run `script`, with any login shell."""
    kind = "-t" if tty else "-T"
    return [*connection.ssh, kind, connection.host.destination, f"sh -c {quote(script)}"]


def read_job(word: str) -> bytes | None:
    """The content of the job file that a command's first word names; None for `key=value`. Raises JobError."""
    if not document.names_file(word):
        return None
    content = document.read_bytes(Path(word))
    document.parse_bytes(content, word)
    return content


def run_command(host: Host, command: str, words: Sequence[str], job: bytes | None = None) -> int:
    """Run a command on the server and print its output here. Returns its exit code. Raises RunError."""
    with connect(host) as connection:
        # On a terminal the command gets a terminal there, too: it can ask, and fit its tables.
        tty = job is None and sys.stdin.isatty() and sys.stdout.isatty()
        with _start(connection, command, words, job, tty=tty) as process:
            try:
                if process.stdout is not None:
                    sys.stdout.flush()
                    relay(process.stdout.fileno(), connection.marker.line, _pass_on, _descriptor(sys.stdout))
                code = process.wait()
            except KeyboardInterrupt:
                if command != "stop":
                    return stopped_watching(f" on {host.given}")
                look = f"launcher status --host {quote(host.given)}"
                click.echo(f"\nStopped waiting; the runs may be stopping on {host.given}. See: {look}", err=True)
                return EXIT_INTERRUPTED
        return checked(connection, code)


def _pass_on(piece: bytes) -> None:
    sys.stdout.buffer.write(piece)
    sys.stdout.flush()


def _descriptor(stream: IO[str]) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError):  # not a file
        return None


def submit(host: Host, command: str, words: Sequence[str], job: bytes | None, runs: str) -> int:
    """Run `submit` or `resume` in the background of the server, and print the next commands.

    `runs` is ` --runs DIR` if given, else empty. Returns the exit code. Raises RunError.
    """
    name = ""
    with connect(host) as connection:
        with _start(connection, command, words, job) as process:
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    if line.rstrip(b"\n") == connection.marker.line.encode():
                        break
                for line in process.stdout:
                    name = name or line.decode(errors="replace").partition(": ")[0]
                    sys.stdout.buffer.write(line)
                    sys.stdout.flush()
                code = process.wait()
            except KeyboardInterrupt:
                look = f"launcher status --host {quote(host.given)}{runs}"
                click.echo(f"\nStopped waiting. Check whether the runs have started on {host.given}: {look}", err=True)
                return EXIT_INTERRUPTED
        code = checked(connection, code)
    if code == 0:
        at = f"{name} --host {quote(host.given)}{runs}"
        click.echo(f"the runs continue there without this machine; see: launcher status {at}")
        click.echo(f"copy the results here: launcher collect {at}")
    return code


def capture(connection: Connection, command: str, words: Sequence[str]) -> bytes:
    """The output of a command on the server. If it fails, this command ends with the same exit code."""
    with _start(connection, command, words, None) as process:
        assert process.stdout is not None
        printed = after(process.stdout.read(), connection.marker.line)
        code = process.wait()
    if checked(connection, code):
        raise click.exceptions.Exit(code)
    return printed


@contextlib.contextmanager
def _start(
    connection: Connection, command: str, words: Sequence[str], job: bytes | None, tty: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command of the launcher there. Without a terminal, its output follows the connection's marker."""
    command_words: list[str] = [command]
    stdin: IO[Any] | int | None = None if tty else subprocess.DEVNULL
    with contextlib.ExitStack() as stack:
        if job is not None:
            command_words.append(f"--job-bytes={len(job)}")
            stdin = stack.enter_context(tempfile.TemporaryFile())
            stdin.write(job)
            stdin.seek(0)
        sys.stdout.flush()
        before = "" if tty else f"{connection.marker.script}; "
        script = launcher_script(connection.host, [*command_words, *words], before)
        process = subprocess.Popen(
            session(connection, script, tty), stdin=stdin, stdout=None if tty else subprocess.PIPE
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def checked(connection: Connection, code: int) -> int:
    """The exit code of the server's command. Raises RunError if the code is ssh's own."""
    if code != EXIT_SSH:
        return code
    look = f"launcher status --host {quote(connection.host.given)}"
    if connection.lost():
        raise RunError(
            f"{connection.host.given}: the connection was lost; runs that were started there continue. See: {look}"
        )
    raise RunError(
        f"{connection.host.given}: the launcher was killed there; runs that it started continue. See: {look}"
    )
