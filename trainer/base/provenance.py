"""Where results come from: the commit of the code, and a name for what it says. Imports no torch."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def git_sha(folder: Path) -> str | None:
    """The commit of the checkout that `folder` lies in; None where it lies in none."""
    return _git(folder, "rev-parse", "HEAD") or None


def revision(folder: Path = PACKAGE, watched: tuple[str, ...] = (".",)) -> str:
    """The commit of the code in `folder`, with `-dirty` where one of the paths `watched` in it has changed since, and
    `-unknown` where git could not say; $GIT_SHA in an image, which has no checkout; else unknown."""
    sha = git_sha(folder)
    if sha is None or _git(folder, "ls-files", *watched) == "":  # an installed copy below somebody else's checkout
        return os.environ.get("GIT_SHA") or "unknown"
    changed = _git(folder, "status", "--porcelain", "--", *watched)
    return sha + ("-unknown" if changed is None else "-dirty" if changed else "")


@functools.cache
def code_fingerprint(package: Path = PACKAGE) -> str:
    """A name for what the files of `package` say: the first 16 digits of a SHA-256. Unlike the commit it is known of an
    installed copy, and tells changes that are not committed apart."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"\0{path.relative_to(package).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _git(folder: Path, *words: str) -> str | None:
    """What git prints; None where it fails, or takes longer than 5 s."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
