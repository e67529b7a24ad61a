"""A headless Chromium for the tests."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True)
class Shown:
    """A page once it was loaded."""

    dom: str
    console: list[str]
    """What it wrote to the console, errors and refusals of its security policy among them."""


def executable() -> str | None:
    return next((found for name in NAMES if (found := shutil.which(name))), None)


def show(page: Path, profile: Path, *options: str) -> Shown:
    """Open the file `page` in a fresh profile."""
    done = subprocess.run(
        [
            str(executable()),
            "--headless=new",
            "--no-sandbox",  # which root may not have
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--enable-logging=stderr",
            "--v=0",
            f"--user-data-dir={profile}",
            *options,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return Shown(done.stdout, re.findall(r"^\[[^\]]*CONSOLE[^\]]*\].*$", done.stderr, re.M))
