"""The checkout that this launcher runs from, where it is one."""

from __future__ import annotations

from pathlib import Path

from trainer import provenance

ROOT = Path(__file__).parents[1]


def git_sha(folder: Path = ROOT) -> str | None:
    """The commit of the code in `folder`; None where it is no checkout."""
    return provenance.git_sha(folder)
