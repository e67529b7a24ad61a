"""The origin of results: the commit and a fingerprint of the code. Does not import torch."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
from importlib.metadata import version
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def git_sha(folder: Path) -> str | None:
    """The commit of the git checkout around `folder`. None if there is no checkout."""
    return _git(folder, "rev-parse", "HEAD") or None


def revision(folder: Path = PACKAGE, watched: tuple[str, ...] = (".",)) -> str:
    """The commit of the code in `folder`. `-dirty` follows if one of the `watched` paths has changed, `-unknown` if git
    failed. Without a checkout, as in an image: $GIT_SHA, else unknown."""
    sha = git_sha(folder)
    if sha is None or _git(folder, "ls-files", *watched) == "":  # an installed copy inside another checkout
        return os.environ.get("GIT_SHA") or "unknown"
    changed = _git(folder, "status", "--porcelain", "--", *watched)
    return sha + ("-unknown" if changed is None else "-dirty" if changed else "")


@functools.cache
def code_fingerprint(package: Path = PACKAGE) -> str:
    """The first 16 digits of a SHA-256 over the files of `package`. Unlike the commit it is known for an installed copy
    and differs for uncommitted changes."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"\0{path.relative_to(package).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


PIXELS_AND_MODELS = ("albumentations", "numpy", "opencv-python-headless", "pillow", "timm", "torch")
"""Packages on which predictions depend."""


@functools.cache
def software_fingerprint() -> str:
    """The first 16 digits of a SHA-256 over the code and the versions of the packages that make predictions."""
    versions = [(name, version(name)) for name in PIXELS_AND_MODELS]
    return hashlib.sha256(repr((code_fingerprint(), versions)).encode()).hexdigest()[:16]


def _git(folder: Path, *words: str) -> str | None:
    """The output of git. None if it fails or takes longer than 5 s."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
