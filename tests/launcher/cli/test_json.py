"""docs/json.md has every field that `--json` prints."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from launcher.engines.docker import images
from tests.launcher.conftest import Lab

PAGE = Path(__file__).parents[3] / "docs" / "json.md"


def test_every_field_of_json_is_documented(lab: Lab) -> None:
    text = PAGE.read_text(encoding="utf-8")
    job = lab.job("name: told\nmatrix: {seed: [1, 2]}\nresources: {cpus: 1}\n")
    assert lab.launcher("submit", job, "--engine", "native").returncode == 0

    def printed(*words: str) -> Any:
        return json.loads(lab.launcher(*words, "--json").stdout)

    def section(command: str) -> str:
        return text.partition(f"## `launcher {command}")[2].partition("\n## ")[0]

    for command, fields in (("plan", printed("plan", job)), ("status", printed("status"))):
        assert all(f"`{key}`" in section(command) for key in fields)
        missing = [key for key in fields["runs"][0] if f"`….{key}`" not in section(command)]
        assert not missing, (command, missing)
    assert all(f"`{each.name}`" in section("images") for each in dataclasses.fields(images.Image))
    shown = printed("plan", job)["runs"][0]
    assert all(f"`{key}`" in section("plan") for key in (*shown["config"], *shown["resources"]))
    for command, keys in (
        ("collect", printed("collect")),
        ("doctor", printed("doctor")[0]),
        ("top", printed("top")),
        ("prune", printed("prune")),
        ("list", printed("list")),
        ("list", printed("list")["submissions"][0]),
    ):
        assert all(f"`{key}`" in section(command) for key in keys), command
