"""Pages of docs/ that say what the code does are kept equal to it."""

from __future__ import annotations

import re
from typing import get_args

import pytest

from launcher.job import schema
from launcher.record import states
from launcher.record.states import TRANSITIONS, UNKNOWN, State
from tests import architecture, made_docs, pictures


@pytest.mark.parametrize("part", made_docs.PARTS)
def test_what_is_made_from_the_code_is_current(part: str) -> None:
    is_now, should_be = made_docs.renew(part)
    assert is_now == should_be, f"{part} is not that of the code: run make docs"


def test_the_picture_of_the_rooms_has_their_arrows() -> None:
    house = architecture.read_house()
    picture = architecture.PICTURE.read_text(encoding="utf-8")
    ids = set(re.findall(r'<(?:g|path) id="([^"]+)"', picture))
    assert ids == {room for rooms in house.rooms.values() for room in rooms} | {"-".join(a) for a in house.arrows}
    assert picture == architecture.draw(house), "run make docs"


@pytest.mark.parametrize("name", ["terminal.svg", "report.png", "architecture.svg", "augmentation.jpg"])
def test_pictures_are_small_and_fetch_nothing(name: str) -> None:
    path = pictures.DOCS / name
    assert path.stat().st_size <= pictures.LARGEST
    if path.suffix == ".svg":
        addresses = set(re.findall(r"https?://[^\"' )]+", path.read_text(encoding="utf-8")))
        assert addresses == {"http://www.w3.org/2000/svg"}


def test_every_state_has_its_meaning() -> None:
    assert set(states.MEANINGS) == set(get_args(State)) == set(TRANSITIONS) | {UNKNOWN}
    assert set(get_args(schema.Retried)) == states.RETRIED
