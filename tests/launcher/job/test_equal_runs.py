"""Runs that equal each other in all but their name are one error, which names the values to blame and where they are."""

from __future__ import annotations

import pytest

from tests.launcher.job.test_spec import expand, faults

NAMES = "matrix:\n  model.name: [resnet18, resnet34]\n"


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        (
            NAMES,
            ["model=resnet34,resnet50"],
            "the command line and job.yaml:2: model makes no difference beside model.name: 002-resnet18-resnet50 equals "
            "001-resnet18-resnet34, and 1 other pair is equal, too; remove one of them",
        ),
        (
            "matrix:\n  model: [resnet34, resnet50]\noverrides:\n  model.name: resnet18\n",
            [],
            "job.yaml:2 and job.yaml:4: model makes no difference beside model.name: 002-resnet50 equals 001-resnet34; "
            "remove one of them",
        ),
        (
            "matrix:\n  model: [resnet34, resnet50]\n",
            ["model.name=resnet18", "model.pretrained=false"],
            "job.yaml:2 and the command line: model makes no difference beside model.name: 002-resnet50 equals "
            "001-resnet34; remove one of them",
        ),
        (
            "matrix:\n  seed: [1, 2, 1]\n",
            [],
            "job.yaml:2: seed has a value twice: 003-seed1 equals 001-seed1; remove one of them",
        ),
        (
            "matrix:\n  seed: [1]\n",
            ["training.lr=0.001,1e-3"],
            "the command line: training.lr: 0.001 and 1e-3 are the same: 002-lr1e_3 equals 001-lr0.001; remove one of "
            "them",
        ),
        (
            "matrix:\n  seed: [1, 2]\n",
            ["seed=3,3"],
            "the command line: seed has a value twice: 002-resnet34 equals 001-resnet34; remove one of them",
        ),
        (
            "include:\n  - {seed: 1}\n  - {seed: 2}\n  - {seed: 1}\n",
            [],
            "job.yaml:2 and job.yaml:4: the same run twice: 003-seed1 equals 001-seed1; remove one of them",
        ),
    ],
)
def test_equal_runs_are_one_error_with_both_sources(text: str, words: list[str], said: str) -> None:
    assert faults(text, *words) == [said]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (NAMES, ["data=baseline_aug,transformer_384"]),
        ("matrix:\n  training.num_workers: [0, 1]\n", []),
        ("matrix:\n  data.root: [a, b]\n", []),
        ("matrix:\n  seed: [1, 2]\ninclude:\n  - {seed: 1, training.lr: 0.01}\n", []),
    ],
)
def test_runs_that_differ_in_any_value_are_all_planned(text: str, words: list[str]) -> None:
    assert len(expand(text, *words)) in (2, 4)


def test_thousands_of_equal_runs_are_one_line() -> None:
    (line,) = faults(f"matrix:\n  seed: {[*range(500), *range(500)]}\n")
    assert line.startswith("job.yaml:2: seed has a value twice") and "and 499 other pairs are equal, too" in line
