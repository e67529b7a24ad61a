"""The commands in README.md, README.ko.md and docs/, run as they stand there: they cannot go stale."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import click
import pytest

from launcher.__main__ import main
from launcher.cli.main import cli
from trainer.config.compose import compose

REPOSITORY = Path(__file__).parents[1]
FIRST = ("README.md", "docs/getting-started.md")
"""These make what the other pages use: data, a submission, a champion."""
PAGES = (
    *FIRST,
    *sorted(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md") if f"docs/{path.name}" not in FIRST),
    "CONTRIBUTING.md",
    "README.ko.md",
)
BLOCK = re.compile(r"^```(sh|python)([^\n]*)\n(.*?)^```$", re.S | re.M)
SPAN = re.compile(r"`((?:launcher|python -m trainer) [^`]+)`")
LEFT_TO_THE_READER = re.compile(r"…|[<\[|]|\b[A-Z]+\b")  # DIR, KEY=VALUE, [RUN], <index>


def read(page: str) -> str:
    return (REPOSITORY / page).read_text(encoding="utf-8")


@dataclass
class Desk:
    """A folder in which a user follows the pages, and the commands that were typed there."""

    folder: Path
    environment: dict[str, str]
    done: set[tuple[str, ...]] = field(default_factory=set)

    def follow(self, page: str) -> None:
        """Run the page's blocks in their order, but for commands that ran word for word before."""
        for language, words, block in BLOCK.findall(read(page)):
            if words.strip():
                continue
            new = {key: text for key, text in commands(language, block).items() if key not in self.done}
            if not new:
                continue
            shell = {"sh": ["bash", "-euxo", "pipefail", "-c"], "python": [sys.executable, "-c"]}[language]
            ended = subprocess.run(
                [*shell, "\n".join(new.values())], cwd=self.folder, env=self.environment, capture_output=True, text=True
            )
            assert ended.returncode == 0, f"{page}:\n{block}\n{ended.stdout}{ended.stderr}"
            self.done |= set(new)


def commands(language: str, block: str) -> dict[tuple[str, ...], str]:
    """The block's commands by their words: its lines, those joined that end in a backslash; of Python the whole."""
    if language == "python":
        return {(block,): block}
    lines = block.replace("\\\n", " ").splitlines()
    return {words: line for line in lines if (words := tuple(shlex.split(line, comments=True)))}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A folder with the project's jobs/ in which the first pages were followed. No engine and no GPU of the host is seen."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "jobs").symlink_to(REPOSITORY / "jobs")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"DOCKER_HOST": "unix:///nonexistent/docker.sock", "CUDA_VISIBLE_DEVICES": ""}
    for name in ("RUN_DIR", "DATA_DIR", "CACHE_DIR", "LAUNCHER_RUNS"):
        environment.pop(name, None)
    made = Desk(folder, environment)
    for page in FIRST:
        made.follow(page)
    (folder / "page.jpg").write_bytes(next((folder / "data" / "test").glob("*.jpg")).read_bytes())
    return made


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_commands_is_run_or_says_why_not(page: str) -> None:
    for language, words, _ in BLOCK.findall(read(page)):
        assert not words.strip() or words.strip().startswith("no-test: "), (page, language, words)


@pytest.mark.parametrize("page", [page for page in PAGES if BLOCK.search(read(page))])
def test_the_commands_of_a_page_run_as_they_stand(page: str, desk: Desk) -> None:
    desk.follow(page)


def test_the_first_pages_leave_what_they_say(desk: Desk) -> None:
    for name in (
        "submission.csv",
        "predictions.npz",
        "analysis_results/confusion_matrix.png",
        "analysis_results/report.html",
        "runs/champion/best_model.ckpt",
    ):
        assert (desk.folder / name).exists(), name


def spans(page: str) -> list[str]:
    """Commands in the page's running text and tables, but for those that leave a word to the reader."""
    return [text for text in SPAN.findall(BLOCK.sub("", read(page))) if not LEFT_TO_THE_READER.search(text)]


@pytest.mark.parametrize("page", [page for page in PAGES if spans(page)])
def test_commands_in_the_text_are_accepted(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They stand in a block that is run, or their options are read, their jobs planned and their runs composed."""
    monkeypatch.chdir(REPOSITORY)
    run = {
        words
        for every in PAGES
        for language, marks, block in BLOCK.findall(read(every))
        if not marks.strip()
        for words in commands(language, block)
    }
    for text in spans(page):
        words = shlex.split(text)
        if tuple(words) in run:
            continue
        if words[0] == "launcher":
            name, command, rest = cli.resolve_command(click.Context(cli), words[1:])
            assert name and command, text
            if rest:  # else it is the command's name alone
                command.make_context(name, list(rest), parent=click.Context(cli))
            if name == "submit" and "--host" not in rest:
                with pytest.raises(SystemExit) as ended:
                    main(["plan", *rest])
                assert ended.value.code == 0, text
        elif words[3] in ("train", "config", "estimate"):
            compose(words[4:])
        else:
            assert words[3:] == ["--help"] or words[4:] == [], f"put it into a block that is run: {text}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """To a file, and there to a heading or a test."""
    text = BLOCK.sub("", read(page))
    for target, title in re.findall(r"\]\((?!https?:)([^)\s]+)(?: \"([^\"]+)\")?\)", text):
        name, _, heading = target.partition("#")
        path = (REPOSITORY / page).parent / name if name else REPOSITORY / page
        assert path.exists(), (page, target)
        if heading:
            assert heading in map(anchor, re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)), (
                page,
                target,
            )
        if title:
            assert f"def {title}(" in path.read_text(encoding="utf-8"), (page, title)


def anchor(heading: str) -> str:
    """The name that a heading gets on a page."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_the_files_and_targets_that_a_page_names_exist(page: str) -> None:
    text = read(page)
    for path in re.findall(r"`((?:jobs|images|docs|launcher|trainer|tests)/[\w./-]*\w/?)`", text):
        assert (REPOSITORY / path).exists(), path
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.M))
    named = re.findall(r"`make ([a-z-]+)|^make ([a-z-]+)", text, re.M)
    assert {first or second for first, second in named} <= targets


def test_the_readme_is_short() -> None:
    assert len(read("README.md").splitlines()) <= 200
