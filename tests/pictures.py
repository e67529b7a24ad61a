"""`python -m tests.pictures DEMO`: the README's two pictures, from the results of `make demo` in the folder DEMO.

docs/terminal.svg is what the named commands really print; docs/report.png is the report of the demo's best model, opened in a
headless Chromium.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.text import Text

from tests import browser

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
COLUMNS, REPORT_SIZE, REPORT_SHOWN = 136, (1280, 1500), 1000
LARGEST = 300_000
"""Bytes of a picture."""


def terminal(runs: Path) -> str:
    """A terminal as SVG: a job is planned for a GPU server, the demo's states and leaderboard are shown."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    shown = f" --runs {runs}"
    for command in (
        "launcher plan jobs/benchmark-cnn.yaml --machine cuda-server",
        f"launcher status{shown}",
        f"launcher collect{shown}",
    ):
        environment = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(COLUMNS), "TERM": "xterm-256color"}
        done = subprocess.run(
            command.split(), cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
        )
        console.print(Text.assemble(("$ ", "bold green"), (command.removesuffix(shown), "bold")))
        console.print(Text.from_ansi(done.stdout.rstrip().replace(f"{REPOSITORY}/", "").replace(f"{runs}/", "runs/")))
        console.print()
    drawn = console.export_svg(title="launcher", unique_id="terminal")
    return re.sub(r"@font-face \{.*?\}|<!--.*?-->", "", drawn, flags=re.S)  # no font from another host


def report(demo: Path) -> Image.Image:
    """The upper part of the report of the demo's best model, as a browser shows it."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = demo / "runs" / "champion" / "best_model.ckpt"
        command = [sys.executable, "-m", "trainer", "analyze", "--checkpoint", str(checkpoint), "--output", folder]
        subprocess.run(command, env={**os.environ, "DATA_DIR": str(demo / "documents")}, check=True)
        picture = Path(folder) / "report.png"
        size = f"--window-size={REPORT_SIZE[0]},{REPORT_SIZE[1]}"
        browser.show(
            Path(folder) / "analysis_results" / "report.html", Path(folder) / "profile", size, f"--screenshot={picture}"
        )
        with Image.open(picture) as image:
            return image.convert("RGB").resize(
                (REPORT_SHOWN, round(image.height * REPORT_SHOWN / image.width)), Image.Resampling.LANCZOS
            )


def make(demo: Path) -> None:
    """Write both pictures."""
    if not browser.executable():
        sys.exit(f"a browser is needed for the report's picture: one of {', '.join(browser.NAMES)}")
    if not shutil.which("launcher"):
        sys.exit("launcher is not on the PATH")
    (DOCS / "terminal.svg").write_text(terminal(demo.relative_to(REPOSITORY) / "runs"), encoding="utf-8")
    image = report(demo)
    image.quantize(128).save(DOCS / "report.png", optimize=True)
    for name in ("terminal.svg", "report.png"):
        size = (DOCS / name).stat().st_size
        print(f"docs/{name}: {size // 1000} kB")
        if size > LARGEST:
            sys.exit(f"docs/{name} is larger than {LARGEST // 1000} kB")


if __name__ == "__main__":
    make(Path(sys.argv[1]).absolute())
