"""Leaks: one image on both sides of the split, where validation rewards what was learnt by heart."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from trainer.base.errors import DataError, nearest
from trainer.data.duplicates import TURNS, Pair
from trainer.data.split import Split
from trainer.data.table import Table

SHOWN = 20


def found(split: Split, pairs: Iterable[Pair]) -> list[Pair]:
    """The `pairs` of training rows that lie on both sides."""
    val = set(split.val)
    return [pair for pair in pairs if (pair.a in val) != (pair.b in val)]


def refused(table: Table, leaks: Iterable[Pair], allowed: Sequence[str]) -> list[Pair]:
    """The `leaks` neither of whose images `allowed` names. Raises DataError where it names no training image."""
    for image_id in sorted(set(allowed) - set(table.ids)):
        hint = nearest(image_id, table.ids)
        raise DataError(f"data.allowed_leaks: there is no training image '{image_id}'; {hint}")
    names = set(allowed)
    return [pair for pair in leaks if names.isdisjoint((table.ids[pair.a], table.ids[pair.b]))]


def refuse(table: Table, split: Split, pairs: Iterable[Pair], allowed: Sequence[str]) -> None:
    """Raises DataError where one of `pairs` lies on both sides of the split and is not allowed by name."""
    bad = refused(table, found(split, pairs), allowed)
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
        lines.append(f"… and {len(bad) - SHOWN} more: see check_data.json")
    names = ",".join(dict.fromkeys(_word(table.ids[pair.a]) for pair in bad[:SHOWN]))
    plural = "s" * (len(bad) > 1)
    lines.append(
        f"{len(bad)} leak{plural} across the split: validation would flatter the model. Look at them by `python -m "
        f"trainer check-data`, then remove one of each two, or give both the same value in a `group` column of "
        f'train.csv, or allow them by "data.allowed_leaks=[{names}]"'
    )
    raise DataError("\n".join(lines))


def kind(pair: Pair) -> str:
    """How the two are one, in words that `as` may follow; degrees are clockwise, of `b` from `a`."""
    if pair.kind != "look":
        return {"file": "the same file", "pixels": "the same pixels in another file"}[pair.kind]
    if pair.turn == TURNS[0]:
        return "the same picture"
    quarters, mirrored = pair.turn
    how = ["mirrored"] * mirrored + [f"turned by {90 * quarters}°"] * (quarters > 0)
    return f"the same picture, {' and '.join(how)},"


def _word(image_id: str) -> str:
    """The ID as Hydra reads it as a string."""
    plain = re.fullmatch(r"[\w/-]*\.[A-Za-z]{3,4}", image_id)
    return image_id if plain else "'" + image_id.replace("'", "\\'") + "'"
