"""What tests of images on either engine share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.docker_engine import REPOSITORY


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout whose packages take no time to install: the Dockerfiles are the real ones."""
    root = tmp_path / "tree"
    for folder in ("trainer", "images"):
        shutil.copytree(REPOSITORY / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "Dockerfile.cpu", "Dockerfile.cuda"):
        shutil.copy(REPOSITORY / name, root)
    # The path makes it one that no earlier build has cached.
    (root / "images" / "install.sh").write_text(f"echo installed $1 with $TORCH_INDEX # {root}\n")
    return root
