"""Pages of docs/ that say what the code does are kept equal to it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

from launcher.engines.docker import images
from launcher.job import schema
from launcher.record import states
from launcher.record.states import TRANSITIONS, State
from tests.launcher.conftest import Lab

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_of_states_is_made_from_the_transitions() -> None:
    text = (DOCS / "states.md").read_text(encoding="utf-8")
    assert f"kept so by a test -->\n{states.reference()}\n<!-- end of the table -->" in text
    assert set(states.MEANINGS) == set(get_args(State)) == set(TRANSITIONS)
    assert set(get_args(schema.Retried)) == states.RETRIED


def test_every_field_of_json_is_documented(lab: Lab) -> None:
    text = (DOCS / "json.md").read_text(encoding="utf-8")
    job = lab.job("name: told\nmatrix: {seed: [1, 2]}\nresources: {cpus: 1}\n")
    assert lab.launcher("submit", job, "--engine", "native").returncode == 0

    def told(*words: str) -> Any:
        return json.loads(lab.launcher(*words, "--json").stdout)

    def section(command: str) -> str:
        return text.partition(f"## `launcher {command}")[2].partition("\n## ")[0]

    for command, found in (("plan", told("plan", job)), ("status", told("status"))):
        assert all(f"`{key}`" in section(command) for key in found)
        missing = [key for key in found["runs"][0] if f"`….{key}`" not in section(command)]
        assert not missing, (command, missing)
    assert all(f"`{each.name}`" in section("images") for each in dataclasses.fields(images.Image))
    shown = told("plan", job)["runs"][0]
    assert all(f"`{key}`" in section("plan") for key in (*shown["config"], *shown["resources"]))
    for command, keys in (
        ("collect", told("collect")),
        ("doctor", told("doctor")[0]),
        ("top", told("top")),
        ("prune", told("prune")),
    ):
        assert all(f"`{key}`" in section(command) for key in keys), command
