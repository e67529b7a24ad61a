"""`check-data`: compare all images of a data folder to find duplicates, leaks and contradictory labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from trainer.base import cores
from trainer.base.activity import counting
from trainer.base.errors import DataError
from trainer.base.files import write_json
from trainer.base.plural import counted
from trainer.base.spelling import elided
from trainer.config.schema import DataConfig
from trainer.data import duplicates, leaks
from trainer.data.duplicates import Look, Pair
from trainer.data.rows import Table
from trainer.data.split import Split, split_images
from trainer.data.table import data_root, examine, has_test_images, in_short, read_test, say_notes
from trainer.images import examined, gallery
from trainer.images.lettering import Lettering

LONGEST = 40
"""Characters of a class name in the table of classes. A longer one has `…` in its middle."""
REPORT, PICTURE, LEGEND = "check_data.json", "duplicates.png", "names_in_duplicates.txt"
PICTURED, LISTED, KEPT = 24, 40, 1000
"""Most pairs in duplicates.png, in the text and in check_data.json, worst first. n equal images make n² / 2 pairs."""


@dataclass(frozen=True)
class Checked:
    """The result of `check`. Row numbers in `pairs` count the training table, then the test table."""

    train: Table
    test: Table
    split: Split | None
    """None if the training images cannot be split; `faults` then has the reason."""
    looks: list[Look]
    pairs: list[Pair]
    candidates: int
    compared: int
    faults: list[str]
    refused: set[tuple[int, int]]
    """Rows of the leaks that are not in `data.allowed_leaks`."""

    @cached_property
    def held_out(self) -> frozenset[int]:
        """Row numbers of the validation images."""
        return frozenset(self.split.val if self.split else ())

    @cached_property
    def worst_first(self) -> list[Pair]:
        """`pairs` in the order of their importance: leaks, contradictory labels, test images."""
        return sorted(self.pairs, key=lambda pair: _weight(self, pair))


def check(config: DataConfig) -> Checked:
    """Read and compare every image of the data folder.

    Raises DataError if there is no list of images, or `data.allowed_leaks` has an unknown ID.
    """
    root = data_root(config)
    train, faults = examine(root, config)
    test, more = _test(root)
    faults += more
    for table in (train, test):
        say_notes(table)
    split = None
    try:
        split = split_images(train, config)
        for note in split.notes:
            print(f"warning: {note}")
    except DataError as error:
        faults = faults or str(error).splitlines()  # after a fix of these the split may work
    paths = [*train.paths, *test.paths]
    with ThreadPoolExecutor(cores.available()) as pool:
        looks = list(counting(pool.map(duplicates.look, paths), "reading the images", len(paths)))
    compared = duplicates.find_duplicates(paths, looks)
    across = leaks.across_split(split, _within(compared.pairs, len(train))) if split else []
    refused = {(pair.a, pair.b) for pair in leaks.refused(train, across, config.allowed_leaks)}
    return Checked(train, test, split, looks, compared.pairs, compared.candidates, compared.compared, faults, refused)


def write(checked: Checked, output: Path) -> dict[str, Any]:
    """Write check_data.json and, if there are duplicates, duplicates.png into `output`. If there are none, remove an
    earlier picture. Returns the content of check_data.json."""
    report = as_dict(checked)
    write_json(output / REPORT, report)
    pairs = checked.worst_first
    shown = [_image(checked, row) for pair in pairs[:PICTURED] for row in (pair.a, pair.b)]
    text = Lettering(name for image in shown for name in (image["id"], image["class"] or ""))
    tiles = [tile for pair in pairs[:PICTURED] for tile in _tiles(checked, pair, text)]
    more = f", the {PICTURED} worst" if len(pairs) > PICTURED else ""
    picture = output / PICTURE
    if pairs:
        title = f"{counted(len(pairs), 'pair')} of duplicates{more}, side by side"
        gallery.save(gallery.gallery(tiles, 6, title), picture)
    else:
        picture.unlink(missing_ok=True)
    text.write_legend(output / LEGEND)
    return report


def written(output: Path) -> str:
    """The files of `write` in `output`, in words."""
    there = [output / name for name in (REPORT, PICTURE, LEGEND) if (output / name).exists()]
    return f"written: {', '.join(map(str, there))}"


def refuse(checked: Checked, config: DataConfig, output: Path) -> None:
    """Raises DataError if images or labels have errors, or there are leaks that are not allowed. A file in `output`
    gets all errors if they are too many for a message."""
    lines = list(checked.faults)
    if lines:
        lines = in_short(lines, "this data", output / "data_faults.txt")
    if checked.split:
        try:
            pairs = _within(checked.pairs, len(checked.train))
            leaks.refuse(checked.train, checked.split, pairs, config.allowed_leaks, str(output / REPORT))
        except DataError as error:
            lines.append(str(error))
    if lines:
        raise DataError("\n".join(lines))


def as_dict(checked: Checked) -> dict[str, Any]:
    """The report for check_data.json."""
    train, split = checked.train, checked.split
    counts, held = Counter(train.targets), Counter(train.targets[row] for row in (split.val if split else []))
    seen = {row for pair in checked.pairs if pair.a < len(train) <= pair.b for row in (pair.a, pair.b)}
    repeated = sum(row >= len(train) for row in seen)
    return {
        "images": {"train": len(train), "validation": len(split.val) if split else None, "test": len(checked.test)},
        "split_fingerprint": split.fingerprint if split else None,
        "own_split": train.own_split or None,
        "groups": _groups(train),
        "notes": [*train.notes, *checked.test.notes],
        "classes": [
            {"name": name, "label": label, "images": counts[target], "validation": held[target] if split else None}
            for target, (name, label) in enumerate(zip(train.class_names, train.labels, strict=True))
        ],
        "sizes": {
            "train": _sizes(checked.looks[: len(train)]),
            "test": _sizes(checked.looks[len(train) :]),
        },
        "faults": checked.faults,
        "duplicates": [_pair(checked, pair) for pair in checked.worst_first[:KEPT]],
        "duplicates_not_listed": max(0, len(checked.pairs) - KEPT),
        "leaks": len(checked.refused),
        "contradictory_labels": sum(_contradict(checked, pair) for pair in checked.pairs),
        "test_images": {"with_duplicate": repeated, "without_duplicate": len(checked.test) - repeated},
        "compared": {"candidates": checked.candidates, "at_full_size": checked.compared},
    }


def as_text(checked: Checked, report: dict[str, Any]) -> str:
    """The report as text for a terminal."""
    images, tests = report["images"], report["test_images"]
    lines = [
        f"{_sides(report)}, {counted(len(report['classes']), 'class')}, {counted(images['test'], 'test image')}",
        *([_groups_in_words(report["groups"])] if report["groups"] else []),
        "",
    ]
    names = [elided(entry["name"], LONGEST) for entry in report["classes"]]
    width = max(map(len, ("class", *names)))
    is_split = checked.split is not None
    lines.append(f"  {'class':{width}}  images{'  validation' * is_split}")
    for name, entry in zip(names, report["classes"], strict=True):
        held = f"  {entry['validation']:10}" if is_split else ""
        lines.append(f"  {name:{width}}  {entry['images']:6}{held}")
    lines.append("")
    for side, sizes in report["sizes"].items():
        if sizes:
            (w0, w1, w2), (h0, h1, h2), (a0, a1, a2) = (tuple(sizes[k].values()) for k in ("width", "height", "aspect"))
            lines.append(
                f"  {side}: {w0} to {w2} px wide (median {w1}), {h0} to {h2} px high (median {h1}), "
                f"width / height {a0:.2f} to {a2:.2f} (median {a1:.2f})"
            )
    similar = report["compared"]["candidates"]
    lines.append(
        f"\nduplicates: {len(checked.pairs) or 'none'} ({counted(similar, 'pair')} look{'s' * (similar == 1)} similar, "
        f"{report['compared']['at_full_size']} of them were compared at full size)"
    )
    pairs = checked.worst_first
    lines += [f"  {_line(checked, pair)}" for pair in pairs[:LISTED]]
    if len(pairs) > LISTED:
        also = f", which has the worst {KEPT:,}" if report["duplicates_not_listed"] else ""
        lines.append(f"  … and {len(pairs) - LISTED} more; see check_data.json{also}")
    if report["contradictory_labels"]:
        lines.append(
            f"CONTRADICTORY LABELS: {counted(report['contradictory_labels'], 'pair')} of equal images with two labels"
        )
    if images["test"]:
        lines.append(f"test images with a duplicate in the training images: {tests['with_duplicate'] or 'none'}")
    return "\n".join(lines)


def _sides(report: dict[str, Any]) -> str:
    """The number of images on each side of the split; without a split that of all images that can be read."""
    count, held = report["images"]["train"], report["images"]["validation"]
    if held is None:
        return f"{counted(count, 'readable training image')}, not split because of the errors"
    own = f" (the folder's own split: {report['own_split']})" if report["own_split"] else ""
    return f"{counted(count - held, 'image')} for training, {held} for validation{own}"


def _groups(table: Table) -> dict[str, int] | None:
    """The number of groups and of the images without one. None: the table has no groups."""
    if table.groups is None:
        return None
    return {"groups": len({*table.groups} - {""}), "images_without": table.groups.count("")}


def _groups_in_words(groups: dict[str, int]) -> str:
    without = groups["images_without"]
    return counted(groups["groups"], "group") + (f"; {counted(without, 'image')} without one" if without else "")


def _test(root: Path) -> tuple[Table, list[str]]:
    """The readable test images (None: there are no test images), and one error for each of the others."""
    empty = Table([], [], [], [], [])
    if not has_test_images(root):
        return empty, []
    try:
        table = read_test(root)
    except DataError as error:
        return empty, str(error).splitlines()
    broken = dict(examined.unreadable(table.paths))
    return table.without(broken), [f"test/{table.ids[row]}: {reason}" for row, reason in broken.items()]


def _within(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """The pairs of two training images: both rows are below `count`."""
    return [pair for pair in pairs if pair.b < count]


def _sizes(looks: Sequence[Look]) -> dict[str, dict[str, float]]:
    values: dict[str, list[float]] = {
        "width": [seen.width for seen in looks],
        "height": [seen.height for seen in looks],
        "aspect": [round(seen.width / seen.height, 3) for seen in looks],
    }
    return {
        name: {"min": min(of), "median": round(float(np.median(of)), 3), "max": max(of)}
        for name, of in values.items()
        if of
    }


def _side(checked: Checked, row: int) -> str:
    if row >= len(checked.train):
        return "test"
    return "validation" if row in checked.held_out else "train"


def _contradict(checked: Checked, pair: Pair) -> bool:
    return pair.b < len(checked.train) and checked.train.targets[pair.a] != checked.train.targets[pair.b]


def _weight(checked: Checked, pair: Pair) -> tuple[bool, bool, bool, int, int]:
    test = pair.b >= len(checked.train)
    return ((pair.a, pair.b) not in checked.refused, not _contradict(checked, pair), not test, pair.a, pair.b)


def _image(checked: Checked, row: int) -> dict[str, Any]:
    count = len(checked.train)
    if row >= count:
        image_id = checked.test.ids[row - count]
        return {"id": image_id, "place": f"test/{image_id}", "side": "test", "label": None, "class": None}
    target = checked.train.targets[row]
    return {
        "id": checked.train.ids[row],
        "place": checked.train.places[row],
        "side": _side(checked, row),
        "label": checked.train.labels[target],
        "class": checked.train.class_names[target],
    }


def _pair(checked: Checked, pair: Pair) -> dict[str, Any]:
    a, b = _image(checked, pair.a), _image(checked, pair.b)
    leak = {a["side"], b["side"]} == {"train", "validation"}
    return {
        "a": a,
        "b": b,
        "kind": pair.kind,
        "turned": 90 * pair.turn[0],
        "mirrored": pair.turn[1],
        "difference": pair.difference,
        "leak": leak,
        "allowed": leak and (pair.a, pair.b) not in checked.refused,
        "contradictory": _contradict(checked, pair),
    }


def _line(checked: Checked, pair: Pair) -> str:
    entry = _pair(checked, pair)
    a, b = entry["a"], entry["b"]
    names = [f"{i['place']} ({i['side']}{', ' + i['class'] if i['class'] else ''})" for i in (a, b)]
    return f"{names[1]} is {leaks.kind(pair)} as {names[0]}{_marks(entry)}"


def _marks(entry: dict[str, Any]) -> str:
    marks = ["allowed leak" if entry["allowed"] else "LEAK"] * entry["leak"] + ["TWO LABELS"] * entry["contradictory"]
    return f": {', '.join(marks)}" if marks else ""


def _tiles(checked: Checked, pair: Pair, text: Lettering) -> list[gallery.Tile]:
    entry = _pair(checked, pair)
    paths = [*checked.train.paths, *checked.test.paths]
    colour = "firebrick" if entry["contradictory"] or (entry["leak"] and not entry["allowed"]) else "black"
    how = leaks.kind(pair).removeprefix("the same picture, ").rstrip(",")
    return [
        gallery.Tile(paths[row], f"{text(image['id'])}\n{image['side']} {text(image['class'] or '')}\n{what}", colour)
        for row, image, what in (
            (pair.a, entry["a"], _marks(entry).removeprefix(": ") or " "),
            (pair.b, entry["b"], how),
        )
    ]
