"""Leaks: one image in both training and validation. Leaks make validation scores too high."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from trainer.base.errors import DataError, nearest
from trainer.base.spelling import visible
from trainer.data.duplicates import TURNS, Pair
from trainer.data.rows import Table
from trainer.data.split import Split

SHOWN = 20


def across_split(split: Split, pairs: Iterable[Pair]) -> list[Pair]:
    """The `pairs` with one row in training and one in validation."""
    val = set(split.val)
    return [pair for pair in pairs if (pair.a in val) != (pair.b in val)]


def refused(table: Table, leaks: Iterable[Pair], allowed: Sequence[str]) -> list[Pair]:
    """The `leaks` without an image in `allowed`. Raises DataError if `allowed` has an unknown ID."""
    allowed = [visible(str(image_id)) for image_id in allowed]
    for image_id in sorted(set(allowed) - set(table.ids)):
        hint = nearest(image_id, table.ids)
        raise DataError(f"data.allowed_leaks: unknown training image '{image_id}'; {hint}")
    names = set(allowed)
    return [pair for pair in leaks if names.isdisjoint((table.ids[pair.a], table.ids[pair.b]))]


def refuse(table: Table, split: Split, pairs: Iterable[Pair], allowed: Sequence[str], report: str = "") -> None:
    """Raises DataError if one of `pairs` is on both sides of the split and not allowed. `report`: the file that lists
    all of them; empty: there is none yet."""
    bad = refused(table, across_split(split, pairs), allowed)
    if not bad:
        return
    val = set(split.val)
    lines = []
    for pair in bad[:SHOWN]:
        train, held = (pair.b, pair.a) if pair.a in val else (pair.a, pair.b)
        lines.append(
            f"{table.places[held]}: a validation image is {kind(pair)} as {table.places[train]}, a training image"
        )
    if len(bad) > SHOWN:
        lines.append(f"… and {len(bad) - SHOWN} more{f'; see {report}' * bool(report)}")
    names = ",".join(dict.fromkeys(_word(table.ids[pair.a]) for pair in bad[:SHOWN]))
    plural = "s" * (len(bad) > 1)
    group = "" if table.own_split else "or give both the same value in a `group` column of train.csv, "
    look = f"See {report}" if report else "List them with `python -m trainer check-data`"
    lines.append(
        f"{len(bad)} leak{plural} across the split; validation scores would be too high. {look}. Then remove one "
        f"image of each pair, {group}"
        f'or allow them with "data.allowed_leaks=[{names}]"'
    )
    raise DataError("\n".join(lines))


def kind(pair: Pair) -> str:
    """How `b` equals `a`, in words before `as`. Degrees are clockwise."""
    if pair.kind != "look":
        return {"file": "the same file", "pixels": "the same pixels in another file"}[pair.kind]
    if pair.turn == TURNS[0]:
        return "the same picture"
    quarters, mirrored = pair.turn
    how = ["mirrored"] * mirrored + [f"rotated by {90 * quarters}°"] * (quarters > 0)
    return f"the same picture, {' and '.join(how)},"


def _word(image_id: str) -> str:
    """The ID, quoted for Hydra."""
    plain = re.fullmatch(r"[\w/-]*\.[A-Za-z]{3,4}", image_id, re.ASCII)
    return image_id if plain else "'" + image_id.replace("'", "\\'") + "'"
