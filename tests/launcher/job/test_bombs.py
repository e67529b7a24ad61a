"""A short text cannot take all memory or all time: it is an error with its line, before anything is built."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest

from launcher.base import yaml_text
from launcher.base.errors import JobError, MachineError
from launcher.host import machine
from launcher.job import document, expansion, matrix, spec

HERE = machine.Machine("here", 8, 32 * 2**30)


def fault(text: str, *words: str, sets: tuple[str, ...] = ()) -> str:
    with pytest.raises(JobError) as raised:
        expansion.expand(spec.load(Path("job.yaml"), words, sets, text.encode()), HERE)
    return str(raised.value)


def laughs(levels: int, each: int = 10) -> str:
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * each)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (laughs(9), "job.yaml:6: more than 100,000 values, with those that aliases (*) repeat"),
        ("a: &a {x: 1}\n" + laughs(40, 2), "job.yaml:17: more than 100,000 values"),
        ("b0: &b0 {x: 1}\n" + "\n".join(f"b{n}: &b{n} {{<<: [{', '.join([f'*b{n - 1}'] * 10)}]}}" for n in range(1, 12)), "job.yaml:6: more than 100,000 values"),
        ("a: [" + "1, " * 200_000 + "1]", "job.yaml:1: more than 100,000 values"),
        ("name: x\na: " + "[" * 10_000, "job.yaml:2: nested too deeply: more than 32 levels"),
        ("\n".join(" " * n + "a:" for n in range(1_000)), "job.yaml:33: nested too deeply"),
        ("d0: &d0 [x]\n" + "\n".join(f"d{n}: &d{n} [*d{n - 1}]" for n in range(1, 100)), "job.yaml:32: nested too deeply"),
        ("a: *b", "job.yaml:1: there is no anchor &b"),
        ("a:\n  - &x [*x]", "job.yaml:2: an anchor that contains itself"),
        ("name: " + "x" * 2**20, "job.yaml:1: larger than 1 MiB"),
    ],
)  # fmt: skip
def test_yaml_that_grows_is_refused_at_the_line_where_it_does(text: str, expected: str) -> None:
    assert fault(text).startswith(expected)


STEPS = "after:\n" + "".join(f"  - {{{{name: s{n}, step: ensemble, from: {{0}}}}}}\n" for n in range(1001))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"matrix: {{seed: [1]}}\n{STEPS.format('{top: 1}')}", "job.yaml:2: after: 1,001 steps; a job has at most 1,000"),
        (f"matrix: {{seed: {list(range(5000))}}}\n{STEPS.format('{top: 1}').rpartition('  - ')[0]}", "job.yaml:403: after: too many steps"),
        (f"matrix: {{seed: {list(range(5000))}}}\nafter:\n- {{name: a, step: ensemble, from: {{runs: {['a*b*c'] * 101}}}}}", "job.yaml:3: after: too many"),
        (f"overrides: {{{', '.join(f'model.k{n}: 1' for n in range(20_000))}}}", "job.yaml:1: more than 1,000 different keys"),
        ("include:\n" + "".join(f"- {{k{n}: 1}}\n" for n in range(9_000)), "job.yaml:1002: more than 1,000 different keys"),
    ],
)  # fmt: skip
def test_steps_and_keys_that_would_take_minutes_are_refused_at_their_line(text: str, expected: str) -> None:
    assert fault(text).startswith(expected)


NEEDS = "".join(
    f"- {{name: s{n}, step: predict, needs: [{', '.join(f'x{n}-{m}' for m in range(60))}]}}\n" for n in range(900)
)
PATTERNS = "- {name: s, step: ensemble, from: {runs: [" + ", ".join(f"k{n}END" for n in range(50_000)) + "]}}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("after:\n" + "".join(f"- {{name: s{n}, step: ensemble, from: {{top: 1}}}}\n" for n in range(9_000)), "job.yaml:1: after: 9,000 steps"),
        (f"matrix: {{seed: [1]}}\nafter:\n{NEEDS}", "job.yaml:3: after.0.needs: no step 'x0-0'"),
        (f"matrix: {{seed: [1]}}\nafter:\n{PATTERNS.replace('END', '')}", "job.yaml:3: after.0.from.runs: no run matches 'k0'"),
        (f"matrix: {{seed: [1]}}\nafter:\n{PATTERNS.replace('END', '*')}", "job.yaml:3: after: more than 5,000 patterns"),
        ("".join(f"k{n}: 1\n" for n in range(40_000)), "job.yaml:1: k0: unknown field"),
    ],
)  # fmt: skip
def test_a_file_that_is_much_too_large_is_refused_in_no_time(text: str, expected: str) -> None:
    """The refusal takes a few times as long as to read the text as YAML, measured beside it."""
    began = time.process_time()
    yaml_text.read(text)
    read = time.process_time()
    said = fault(text)
    took = time.process_time() - read
    assert said.startswith(expected) and said.count("\n") <= document.MOST_FAULTS
    print(f"{took / (read - began):.1f} times as long as reading")
    assert took < 8 * (read - began)


def test_both_parsers_read_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "# x\nname: 'a: b'\nmatrix: {seed: [1, 0x1f, ~, 1e-4], model: [resnet34, \"on\"]}\noverrides: &o\n  training.lr: |\n    1\ninclude:\n- {<<: *o, b: .5}\n"
    fast = yaml_text.read(text)
    monkeypatch.setattr(yaml_text, "_FastLoader", None)
    assert yaml_text.read(text) == fast and fast[1]["include", 0, "b"] == 8


def test_anchors_and_merges_still_work() -> None:
    text = (
        "overrides: &all {training.lr: 1e-3, seed: 1}\ninclude:\n  - {<<: *all, seed: 2}\n  - {<<: [*all], seed: 3}\n"
    )
    runs = expansion.expand(spec.load(Path("job.yaml"), source=text.encode()), HERE)
    assert [run.request.config["seed"] for run in runs] == [2, 3]


@pytest.mark.parametrize("make", ["large", "endless"])
def test_a_huge_file_is_not_read(tmp_path: Path, make: str) -> None:
    path = tmp_path / "job.yaml"
    if make == "large":
        with path.open("wb") as file:
            file.truncate(2**40)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(JobError, match=r"job\.yaml:1: a job file has at most 1 MiB"):
        spec.load(path)


PRODUCT = "1,000 seed × 100 data.fold × 100 training.lr = 10,000,000 runs; a job has at most 10,000"


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ("name: x\nmatrix:\n  seed: [{}]\n  data.fold: [{}]\n  training.lr: [{}]\n", (), f"job.yaml:2: matrix: {PRODUCT}"),
        ("name: x\n", ("seed={}", "data.fold={}", "training.lr={}"), f"the command line: matrix: {PRODUCT}"),
        ("matrix: {{seed: [{}]}}\noverrides: {{data.folds: 1000}}\n", ("data.fold=all",), "the command line: matrix: 1,000 seed × 1,000 data.fold = 1,000,000 runs"),
    ],
)  # fmt: skip
def test_a_product_of_axes_is_counted_and_not_built(
    text: str, words: tuple[str, ...], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(*more: object) -> Any:
        raise AssertionError("the product was built")

    monkeypatch.setattr(matrix, "expand", built)
    lists = [",".join(map(str, range(1, count + 1))) for count in (1000, 100, 100)]
    if words == ("data.fold=all",):
        said = fault(text.format(lists[0]), *words)
    elif words:
        said = fault(text, *(word.format(values) for word, values in zip(words, lists, strict=True)))
    else:
        said = fault(text.format(*lists))
    assert said.startswith(expected)


def test_words_alone_are_counted_too() -> None:
    words = ["seed=" + ",".join(map(str, range(200))), "data.fold=" + ",".join(map(str, range(100)))]
    with pytest.raises(JobError, match=r"200 seed × 100 data\.fold = 20,000 runs"):
        expansion.expand(spec.from_overrides(words), HERE)


def test_lists_of_exclude_and_include_are_counted() -> None:
    axes, entries = {"seed": list(range(5000))}, [{"seed": 1}] * 1000
    expected = "1,000 entries for 5,000 combinations are too many to compare (at most 2,000,000 pairs)"
    for field, (field_, said) in (
        ("exclude", matrix.too_many(axes, entries, []) or ("", "")),
        ("include", matrix.too_many(axes, [], entries) or ("", "")),
    ):
        assert field == field_ and said.startswith(expected)
    assert matrix.too_many({}, [], [{}] * 10_001) == (
        "include",
        "10,001 entries; a job has at most 10,000 runs: split it into several jobs",
    )
    seeds = ", ".join(map(str, range(2001)))
    said = fault(f"matrix: {{seed: [{seeds}]}}\nexclude: [{', '.join(['{seed: 1}'] * 1000)}]\n")
    assert said.startswith("job.yaml:2: exclude: 1,000 entries for 2,001 combinations")


def test_the_largest_job_is_expanded() -> None:
    axes = {"a": list(range(100)), "b": list(range(100))}
    assert matrix.too_many(axes, [{"a": 1}] * 200, []) is None
    assert len(matrix.expand(axes, [{"a": n} for n in range(50)], [{"a": 60, "c": 1}])) == 5000


def test_equal_numbers_are_equal_however_they_are_written() -> None:
    axes = {"training.lr": ["1e-4", "0.001"]}
    assert [entry.values for entry in matrix.expand(axes, [{"training.lr": 0.0001}])] == [{"training.lr": "0.001"}]
    assert matrix.unmatched({"a": [0.0001, True]}, [{"a": "1e-4"}, {"a": 1}]) == [1]


@pytest.mark.parametrize(
    "word",
    ["data.train_transforms=" + "[" * 3000 + "]" * 3000, "data.train_transforms=" + "{a:" * 3000, "seed=" + "1" * 5000, "training.lr=" + "1" * 400],
)  # fmt: skip
def test_a_word_of_the_command_line_is_an_error_too(word: str) -> None:
    said = fault("name: x\n", word)
    assert said.startswith("the command line: ") and len(said) < 700


@pytest.mark.parametrize("set_", ["x=" + "[" * 5000, "x=" + "{a: " * 5000, ".".join(["a"] * 5000) + "=1", "name=1:30"])
def test_a_setting_is_an_error_too(set_: str) -> None:
    assert fault("name: x\n", sets=(set_,)).startswith("--set ")


def test_a_machines_file_is_read_with_the_same_limits(tmp_path: Path) -> None:
    path = tmp_path / "machine.yaml"
    for text, expected in ((laughs(9), "machine.yaml:6: more than"), ("cpus: 012", "machine.yaml:1: 012 is not")):
        path.write_text(text)
        with pytest.raises(MachineError, match=expected):
            machine.select(str(path))


def value(text: str) -> Any:
    return yaml_text.read(f"a: {text}")[0]["a"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-4", 0.0001), ("1.5e3", 1500.0), ("5.", 5.0), (".5", 0.5), ("-1E5", -100000.0), ("0x1f", 31), ("1_000", 1000),
        ("+7", 7), ("0", 0), ("-0", 0), (".inf", math.inf), ("-.INF", -math.inf), ("2026-11-30", "2026-11-30"),
        ("2026-11-30 10:00:00", "2026-11-30 10:00:00"), ("=", "="), ("<<", "<<"), ("y", "y"), ("~", None), ("", None),
        ("null", None), ("True", True), ("1.2.3", "1.2.3"), ("16:99", "16:99"), ('"012"', "012"), ("'no'", "no"),
        ("!!str 1e3", "1e3"), ("001-x", "001-x"), ("1e-4x", "1e-4x"), ("0.50", 0.5), ("nan", "nan"),
    ],
)  # fmt: skip
def test_a_value_is_what_a_reader_takes_it_for(text: str, expected: object) -> None:
    assert value(text) == expected and type(value(text)) is type(expected)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("yes", "write true, or \"yes\" in quotes"), ("No", "write false"), ("on", "write true"), ("OFF", "write false"),
        ("012", "write 12,"), ("-08", "write -8,"), ("0o14", "write 12,"), ("0b101", "write 5,"), ("1_0", "write 10,"),
        ("1_000.5", "write 1000.5,"), ("1:30", "a time like 90s"), ("12:30:45", "base 60"), ("1e999", "too large for a number"),
        ("1" * 2000, "a number of 2000 characters"), ('"\\ud800"', "only half"), ("!!binary aGk=", "the tag !!binary is not allowed"),
        ("!!set {x}", "the tag !!set"), ("!!python/object:os.system x", "the tag !!python/object:os.system"), ("!x 1", "the tag !x"),
        ("{<<: 1}", "not YAML"), ('{"x\\ny": 1}', "a key must be a plain word"), ('{"\\e[2J": 1}', "a key must be a plain word"), ("00", "write 0,"),
    ],
)  # fmt: skip
def test_a_value_that_can_be_read_in_two_ways_is_an_error(text: str, said: str) -> None:
    with pytest.raises(JobError) as raised:
        document.parse(f"name: x\nb: {text}", "job.yaml")
    assert str(raised.value).startswith("job.yaml:2: ") and said in str(raised.value)


def test_keys_are_text_whatever_they_look_like() -> None:
    assert list(document.parse("on: 1\n1: 2\n1:30: 3\n~: 4\n", "x").content) == ["on", "1", "1:30", "~"]
