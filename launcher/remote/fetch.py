"""A submission brought here from a server by rsync: what was interrupted goes on where it was."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import click

from launcher.base.errors import RunError
from launcher.remote import ssh
from launcher.remote.host import Host
from trainer.base.files import write_text

PARTIAL = ".partial"
"""Folder beside a file of which only a part has come: nobody takes it for the whole."""
HIDDEN = ".submission.json"
"""Becomes submission.json when all is there: until then no command sees the copy."""
VANISHED = 24
"""rsync's exit code where files went away meanwhile: the temporary ones of a run under way."""


def fetch(host: Host, words: Sequence[str], runs_root: Path, quiet: bool = False) -> Path:
    """Bring a submission's directory into `runs_root`, under its name; `words` are what `status` takes there.

    Returns the copy. Raises RunError; what has come by then stays, and is not sent again.
    """
    rsync = shutil.which("rsync")
    if rsync is None:
        raise RunError("collect --host needs rsync, which is not installed here; on Debian: apt-get install rsync")
    with ssh.connect(host) as connection:
        status = _understood(host, ssh.capture(connection, "status", ["--json", *words]))
        name, directory = str(status["submission"]), str(status["directory"])
        if Path(name).name != name or name.startswith("."):
            raise RunError(f"{host.given}: '{name}' cannot be a submission's name")
        description = _description(connection, directory)
        copy = runs_root / name
        _prepare(host, copy, description)
        began = time.monotonic()
        _copy(connection, rsync, directory, copy, quiet)
        _complete(copy, description)
    click.echo(f"{copy}: brought here from {host.given} in {time.monotonic() - began:.1f} s", err=True)
    if status["state"] in ("running", "unattended"):
        click.echo(f"note: it is not over there ({status['state']}); say the same again when it is", err=True)
    return copy


def _understood(host: Host, printed: bytes) -> dict[str, Any]:
    try:
        status: dict[str, Any] = json.loads(printed)
        status["submission"], status["directory"], status["state"]
    except (ValueError, TypeError, KeyError):
        raise RunError(f"{host.given}: what the launcher there prints is no status; is it another version?") from None
    return status


def _description(connection: ssh.Connection, directory: str) -> bytes:
    """The submission.json there; also looks whether rsync is there."""
    host = connection.host
    absent = f"error: {host.given}: collect --host needs rsync there, too; on Debian: apt-get install rsync"
    script = (
        f"{ssh.enter(host)}command -v rsync >/dev/null 2>&1 || {{ printf '%s\\n' {quote(absent)} >&2; exit 1; }}; "
        f"cat {quote(directory)}/submission.json"
    )
    done = subprocess.run(
        ssh.session(connection, script), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False
    )
    if done.returncode:
        ssh.checked(connection, done.returncode)
        raise click.exceptions.Exit(done.returncode)
    return done.stdout


def _prepare(host: Host, copy: Path, description: bytes) -> None:
    """The copy's directory. Raises RunError where one of that name is another submission's."""
    for name in ("submission.json", HIDDEN):
        with contextlib.suppress(FileNotFoundError):
            if (copy / name).read_bytes() != description:
                raise RunError(
                    f"{copy}: is another submission of the same name than the one on {host.given}; "
                    "bring that one elsewhere: --into DIR"
                )
    try:
        if not (copy / "submission.json").exists():
            write_text(copy / HIDDEN, description.decode(errors="replace"))
    except OSError as error:
        raise RunError(f"{copy}: cannot be written to ({error.strerror}); name another folder: --into DIR") from None


def _copy(connection: ssh.Connection, rsync: str, directory: str, copy: Path, quiet: bool) -> None:
    host = connection.host
    # Changing the folder there leaves no path that the various versions of rsync would quote in various ways.
    there = f"cd {quote(host.folder)} >/dev/null && cd {quote(directory)} >/dev/null && rsync"
    command = [
        rsync,
        "-rlpt",  # -a, but files are the user's who collects them
        f"--partial-dir={PARTIAL}",
        "--exclude=.*",  # temporary files, caches
        "--exclude=*.lock",  # nobody here holds them
        "--exclude=/submission.json",
        *(["--progress"] if sys.stderr.isatty() and not quiet else []),
        "-e",
        shlex.join(connection.ssh),
        f"--rsync-path={there}",
        f"{host.user}{host.server}:./",
        f"{copy}/",
    ]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    hint = "what has come is kept; say the same again to go on"
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()  # it had the Ctrl-C too, and puts the part that it has in its place
        click.echo(f"\nstopped; {hint}", err=True)
        raise click.exceptions.Exit(130) from None
    if code in (0, VANISHED):
        return
    if connection.lost():
        raise RunError(f"{host.given}: the connection was lost; {hint}")
    raise RunError(f"{copy}: rsync ended with exit code {code}; {hint}")


def _complete(copy: Path, description: bytes) -> None:
    """Show the copy to every command, as old as the submission is, so that the latest is the one submitted last."""
    if not (copy / HIDDEN).exists():
        return
    with contextlib.suppress(ValueError, KeyError, TypeError):
        created = time.mktime(time.strptime(json.loads(description)["created"], "%Y-%m-%dT%H:%M:%S%z"))
        os.utime(copy / HIDDEN, (created, created))
    (copy / HIDDEN).replace(copy / "submission.json")
