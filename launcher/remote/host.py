"""A server as the user names it: `user@server:DIR`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import click

FORM = re.compile(r"(?P<user>[^-:\s][^:\s]*@)?(?P<server>\[[\w:.%]+\]|[^-@:\s\[][^@:\s]*)(:(?P<folder>.+)?)?")


@dataclass(frozen=True)
class Host:
    """A server, and where on it the launcher is."""

    given: str
    """As the user wrote it."""
    user: str
    """`user@`, or nothing."""
    server: str
    folder: str
    """From the login folder, or absolute."""

    @property
    def destination(self) -> str:
        """For ssh, which takes an IPv6 address without brackets."""
        return self.user + self.server.strip("[]")


def parse_host(text: str) -> Host:
    """`user@server:DIR`; without DIR it is $LAUNCHER_HOST_DIR, else the login folder. Raises click.BadParameter."""
    match = FORM.fullmatch(text)
    if match is None:
        raise click.BadParameter(f"'{text}' is no server; write user@server or user@server:DIR", param_hint="--host")
    folder = match["folder"] or os.environ.get("LAUNCHER_HOST_DIR") or "."
    # ssh begins in the login folder; a quoted ~ would be a folder of that name.
    folder = "." if folder in ("~", "~/") else folder.removeprefix("~/")
    return Host(text, match["user"] or "", match["server"], folder)
