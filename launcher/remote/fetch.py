"""Copies a submission from a server with rsync. An interrupted copy continues where it stopped."""

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

from launcher.base.errors import EXIT_INTERRUPTED, RunError
from launcher.base.fields import is_name
from launcher.record import folders
from launcher.remote import marked, ssh
from launcher.remote.host import Host
from launcher.remote.marked import after

PARTIAL = ".partial"
"""Folder for files that are only partly copied, so that nobody reads them as complete."""
HIDDEN = ".submission.json"
"""Renamed to submission.json when the copy is complete: until then no command sees the copy."""
VANISHED = 24
"""rsync's exit code if files vanished during the copy, as temporary files of a run in progress do."""


def fetch(host: Host, words: Sequence[str], runs_root: Path, quiet: bool = False) -> Path:
    """Copy a submission's directory from the server into `runs_root`. `words` are the arguments of `status` there.

    Returns the copy's path. Raises RunError; files copied so far stay, and are not sent again.
    """
    rsync = shutil.which("rsync")
    if rsync is None:
        raise RunError("collect --host needs rsync, which is not installed here; on Debian: apt-get install rsync")
    with ssh.connect(host) as connection:
        status = _understood(host, ssh.capture(connection, "status", ["--json", *words]))
        name, directory = str(status["submission"]), str(status["directory"])
        if not (is_name(name) and name.isprintable()):
            raise RunError(f"{host.given}: {name[:100]!r} is not a valid name of a submission")
        description = _description(connection, directory)
        copy = runs_root / name
        _prepare(host, copy, description)
        began = time.monotonic()
        _copy(connection, rsync, directory, copy, quiet)
        _complete(copy, description)
    click.echo(f"{copy}: copied from {host.given} in {time.monotonic() - began:.1f} s", err=True)
    if status["state"] in ("running", "unattended"):
        click.echo(
            f"note: the submission has not ended there ({status['state']}); repeat this command when it has", err=True
        )
    return copy


def _understood(host: Host, printed: bytes) -> dict[str, Any]:
    try:
        status: dict[str, Any] = json.loads(printed)
        status["submission"], status["directory"], status["state"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise RunError(
            f"{host.given}: cannot read the status from the launcher there; check its version: launcher --version"
        ) from None
    return status


def _description(connection: ssh.Connection, directory: str) -> bytes:
    """The submission.json on the server. Also checks that the server has rsync."""
    host = connection.host
    absent = f"error: {host.given}: collect --host also needs rsync on the server; on Debian: apt-get install rsync"
    script = (
        f"{ssh.enter(host)}command -v rsync >/dev/null 2>&1 || {{ printf '%s\\n' {quote(absent)} >&2; exit 1; }}; "
        f"{connection.marker.script}; cat {quote(directory)}/submission.json"
    )
    done = subprocess.run(
        ssh.session(connection, script), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False
    )
    if done.returncode:
        ssh.checked(connection, done.returncode)
        raise click.exceptions.Exit(done.returncode)
    return after(done.stdout, connection.marker.line)


def _prepare(host: Host, copy: Path, description: bytes) -> None:
    """Create the copy's directory. Raises RunError if another submission has that name here."""
    for name in ("submission.json", HIDDEN):
        with contextlib.suppress(FileNotFoundError):
            if _read(copy, name) != description:
                raise RunError(
                    f"{copy}: another submission has the same name as the one on {host.given}; "
                    "copy to another folder: --into DIR"
                )
    try:
        if not any((copy / name).exists() for name in ("submission.json", HIDDEN)) and _has_content(copy):
            raise RunError(
                f"{copy}: is no submission, and one on {host.given} has its name; copy to another folder: --into DIR"
            )
        if not (copy / "submission.json").exists():
            copy.mkdir(parents=True, exist_ok=True)
            folders.write(copy / HIDDEN, description)
    except OSError as error:
        raise RunError(f"{copy}: cannot be written to ({error.strerror}); give another folder: --into DIR") from None


def _has_content(folder: Path) -> bool:
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        return next(entries, None) is not None
    return False


def _read(copy: Path, name: str) -> bytes:
    with folders.opened(copy) as folder:
        return folders.read(folder, name)


def _copy(connection: ssh.Connection, rsync: str, directory: str, copy: Path, quiet: bool) -> None:
    host = connection.host
    # cd on the server avoids paths in rsync's arguments, which versions of rsync quote differently.
    there = (
        f"{connection.marker.script} && cd {quote(host.folder)} >/dev/null && cd {quote(directory)} >/dev/null && rsync"
    )
    command = [
        rsync,
        "-rlt",  # like -a, but the collecting user owns the files; no devices, pipes and special permissions
        "--safe-links",  # no link that leads out of the submission
        f"--partial-dir={PARTIAL}",
        "--include=/.state/",  # the launcher's own files of the runs
        "--exclude=.*",  # temporary files, caches
        "--exclude=*.lock",  # no process here holds them
        "--exclude=/submission.json",
        *(["--progress"] if sys.stderr.isatty() and not quiet else []),
        "-e",
        shlex.join([sys.executable, marked.__file__, connection.marker.line, *connection.ssh]),
        f"--rsync-path={there}",
        f"{host.user}{host.server}:./",
        f"{copy}/",
    ]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    hint = "the files copied so far are kept; repeat this command to continue"
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()  # rsync got the Ctrl-C, too, and saves the partly copied file
        click.echo(f"\nstopped; {hint}", err=True)
        raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
    if code in (0, VANISHED):
        return
    if connection.lost():
        raise RunError(f"{host.given}: the connection was lost; {hint}")
    raise RunError(f"{copy}: rsync ended with exit code {code}; {hint}")


def _complete(copy: Path, description: bytes) -> None:
    """Make the copy visible to all commands, with the submission's time, so that the latest stays the one submitted
    last."""
    if not (copy / HIDDEN).exists():
        return
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError, OverflowError):
        created = time.mktime(time.strptime(json.loads(description)["created"], "%Y-%m-%dT%H:%M:%S%z"))
        os.utime(copy / HIDDEN, (created, created))
    (copy / HIDDEN).replace(copy / "submission.json")
