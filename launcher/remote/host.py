"""A server as the user writes it: `user@server:DIR`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import click

FORM = re.compile(r"(?P<user>[^-:\s][^:\s]*@)?(?P<server>\[[\w:.%]+\]|[^-@:\s\[][^@:\s]*)(:(?P<folder>.+)?)?")


@dataclass(frozen=True)
class Host:
    """A server, and the launcher's folder on it."""

    given: str
    """As the user wrote it."""
    user: str
    """`user@`, or nothing."""
    server: str
    folder: str
    """Relative to the login folder, or absolute."""

    @property
    def destination(self) -> str:
        """The destination for ssh, which wants an IPv6 address without brackets."""
        return self.user + self.server.strip("[]")


def parse_host(text: str) -> Host:
    """Parse `user@server:DIR`. DIR defaults to $LAUNCHER_HOST_DIR, else the login folder. Raises click.BadParameter."""
    match = FORM.fullmatch(text)
    if match is None:
        raise click.BadParameter(f"'{text}' is not a server; write user@server or user@server:DIR", param_hint="--host")
    folder = match["folder"] or os.environ.get("LAUNCHER_HOST_DIR") or "."
    # ssh starts in the login folder; a quoted ~ would be a folder with that name.
    folder = "." if folder in ("~", "~/") else folder.removeprefix("~/")
    return Host(text, match["user"] or "", match["server"], folder)
