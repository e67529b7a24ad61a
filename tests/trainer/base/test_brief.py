"""Messages of others are cut between words, with a sign."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from launcher.base.text import one_line
from trainer.base.brief import in_brief
from trainer.cli import main as commands

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("text", "most", "brief"),
    [
        ("cannot connect:  try\n again later", 22, "cannot connect: try …"),
        ("cannot connect: try again", 25, "cannot connect: try again"),
        ("Missing key(s): AdaptiveAvgPool", 24, "Missing key(s) …"),
        ("/a/path/without/a/single/space", 10, "/a/path/w…"),
        ("", 10, ""),
    ],
)
def test_a_text_is_cut_between_words(text: str, most: int, brief: str) -> None:
    assert in_brief(text, most) == brief and len(brief) <= most
    assert one_line(text, most) == brief


def test_an_unexpected_error_of_a_library_ends_with_a_whole_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: list[str]) -> int:
        raise RuntimeError("certificate " * 60)

    monkeypatch.setattr(commands, "_dispatch", fail)
    assert commands.main(["train"]) == 1
    assert capsys.readouterr().err.splitlines()[0].endswith("certificate certificate …")


def test_no_message_is_cut_in_another_way() -> None:
    cuts = re.compile(r"(?:split\(\)\)|(?:error|reason|words|text|line|lines\[-?\d+\]))\[:(?:\d{2,}|most)\]")
    places = [
        f"{path.relative_to(ROOT)}:{number}"
        for package in ("trainer", "launcher")
        for path in sorted((ROOT / package).rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if cuts.search(line) and path.name != "brief.py"
    ]
    values = {  # values and names of the user, with a sign of their own
        "launcher/job/spec.py",
        "launcher/job/matrix.py",
        "launcher/engines/slurm/section.py",
        "launcher/host/processes.py",
    }
    assert [place for place in places if place.partition(":")[0] not in values] == [], "use in_brief"
