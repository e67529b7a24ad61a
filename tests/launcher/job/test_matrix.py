"""Combinations as GitHub Actions makes them, their names, and their values in Hydra's grammar."""

from __future__ import annotations

import math
import re

from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st

from launcher.job import matrix

FRUIT = {"fruit": ["apple", "pear"], "animal": ["cat", "dog"]}


def values(entries: list[matrix.Entry]) -> list[dict[str, object]]:
    return [entry.values for entry in entries]


def test_include_does_what_github_documents() -> None:
    """The example of GitHub's documentation on expanding or adding matrix configurations."""
    made = matrix.expand(
        FRUIT,
        include=[
            {"color": "green"},
            {"color": "pink", "animal": "cat"},
            {"fruit": "apple", "shape": "circle"},
            {"fruit": "banana"},
            {"fruit": "banana", "animal": "cat"},
        ],
    )
    assert values(made) == [
        {"fruit": "apple", "animal": "cat", "color": "pink", "shape": "circle"},
        {"fruit": "apple", "animal": "dog", "color": "green", "shape": "circle"},
        {"fruit": "pear", "animal": "cat", "color": "pink"},
        {"fruit": "pear", "animal": "dog", "color": "green"},
        {"fruit": "banana"},
        {"fruit": "banana", "animal": "cat"},
    ]


def test_exclude_leaves_out_what_has_all_its_pairs() -> None:
    made = matrix.expand(FRUIT, exclude=[{"fruit": "pear", "animal": "cat"}, {"animal": "dog"}])
    assert values(made) == [{"fruit": "apple", "animal": "cat"}]


def test_without_axes_there_is_one_run_or_those_included() -> None:
    assert values(matrix.expand({})) == [{}]
    assert values(matrix.expand({}, include=[{"a": 1}, {"a": 2}])) == [{"a": 1}, {"a": 2}]


names = st.sampled_from(["model", "data", "seed", "training.lr", "x.y"])
scalars = st.integers(0, 5) | st.sampled_from(["a", "b b", "c/d", "é", ""]) | st.booleans() | st.none()
axes = st.dictionaries(names, st.lists(scalars, min_size=1, max_size=4, unique_by=matrix.override_value), max_size=4)


@given(axes, st.lists(st.dictionaries(names, scalars, min_size=1, max_size=3), max_size=3))
def test_every_combination_stands_once_and_excluded_ones_never(
    axis: dict[str, list[object]], exclude: list[dict[str, object]]
) -> None:
    everything = matrix.expand(axis)
    assert len(everything) == math.prod(len(v) for v in axis.values())
    rest = matrix.expand(axis, exclude) if axis else []
    keys = [tuple(map(matrix.override_value, e.values.values())) for e in rest]
    assert len(set(keys)) == len(keys)
    for entry in rest:
        for out in exclude:
            assert any(
                k not in entry.values or matrix.override_value(entry.values[k]) != matrix.override_value(v)
                for k, v in out.items()
            )
    assert all(entry in everything for entry in rest)


@given(axes, st.lists(st.dictionaries(names, scalars, min_size=1, max_size=3), max_size=3))
def test_include_never_changes_an_axis_value(axis: dict[str, list[object]], include: list[dict[str, object]]) -> None:
    before = matrix.expand(axis) if axis else []
    after = matrix.expand(axis, include=include)
    for old, new in zip(before, after, strict=False):
        assert {k: new.values[k] for k in old.values} == old.values
    assert len(after) >= len(before)


@given(axes)
def test_names_are_unique_safe_and_bounded(axis: dict[str, list[object]]) -> None:
    combos = values(matrix.expand(axis))
    keys = matrix.differing(combos)
    made = [matrix.run_name(i, combo, keys, "resnet34") for i, combo in enumerate(combos, start=1)]
    assert len(set(made)) == len(made)
    assert all(re.fullmatch(r"\d{3}-[A-Za-z0-9_.+-]{1,80}", name) for name in made)


def test_names_say_what_differs() -> None:
    combos = values(matrix.expand({"model": ["swin_base_384", "resnet34"], "seed": [1, 2], "training.lr": [0.1]}))
    keys = matrix.differing(combos)
    assert [matrix.run_name(i, c, keys, "x") for i, c in enumerate(combos, 1)] == [
        "001-swin_base_384-seed1",
        "002-swin_base_384-seed2",
        "003-resnet34-seed1",
        "004-resnet34-seed2",
    ]


@settings(max_examples=300, deadline=None)
@example("~0")
@example("~/weights/a.safetensors")
@example("a~b")
@given(st.text(alphabet=st.characters(blacklist_categories=["Cs", "Cc"]), max_size=20) | st.integers() | st.booleans() | st.none() | st.lists(st.integers(), max_size=3))  # fmt: skip
def test_hydra_reads_back_what_was_written(value: object) -> None:
    text = matrix.override_value(value)
    parsed = OverridesParser.create().parse_override(f"key={text}").value()
    if isinstance(value, str):
        # What looks like a number or a word of YAML is one, as it is on the command line.
        assert str(parsed).strip("'") == value.strip("'") or text == value
    else:
        assert parsed == value
