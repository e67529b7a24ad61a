"""Numbers in messages have their nouns in the right form: `1 image`, not `1 images`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import launcher
import trainer

PACKAGES = [Path(str(package.__file__)).parent for package in (trainer, launcher)]
NOUNS = (
    "attempts batches checkpoints classes columns copies cores days devices digits entries epochs errors files folds "
    "GPUs groups images jobs lines machines members mistakes nodes others pages pairs processes rows runs samples "
    "seconds seeds steps submissions tasks teachers threads values views workers"
).split()
AFTER = re.compile(rf" (?:(?!of|by|from|on|in|has|the|all|that|other|with)[a-z-]+ )?({'|'.join(NOUNS)})\b")
"""What follows a number: perhaps an adjective, then a noun in the plural."""
SEVERAL = {
    "trainer/data/csv_file.py: len(row)",  # more than the header has
    "trainer/data/split.py: len(table)",  # a split needs two
    "trainer/data/split.py: largest",
    "trainer/data/table.py: len(table)",
    "trainer/ensemble/score.py: checkpoints",  # more than members
    "trainer/images/examined.py: len(several)",
    "trainer/images/examined.py: have",
    "trainer/images/files.py: len(files)",
    "trainer/predict/predict.py: len(table)",  # some of them can be read
    "trainer/training/device.py: started",
    "trainer/training/device.py: devices",
    "trainer/training/progress.py: images_per_second",
    "launcher/engines/slurm/advance.py: len(names)",
    "launcher/engines/slurm/checks.py: size",  # a cluster's limit
    "launcher/job/spec.py: len(after)",  # more than a limit
    "launcher/job/expansion.py: len(entries)",  # more than a limit, as in matrix.py
    "launcher/job/matrix.py: count",
    "launcher/job/matrix.py: len(include)",
    "launcher/job/matrix.py: len(entries)",
    "launcher/job/remarks.py: runs",
    "launcher/job/remarks.py: next(iter(counts.values()))",  # folds
    "launcher/record/retry.py: retry.attempts",
    "launcher/results/leaderboard.py: images",
    "launcher/results/leaderboard.py: number",  # folds, or more than the members
    "launcher/supervise/submission.py: len(missing)",
    "launcher/supervise/together.py: len(machine.gpus)",
}
"""Values that are more than one where they stand before a plural."""
WORDS = {"trainer/training/device.py: match[1]", "launcher/cli/submit.py: queue.title"}
"""Values that are no numbers."""


KNOWN = SEVERAL | WORDS


def counts(source: str) -> Iterator[tuple[int, str]]:
    """The line and text of each formatted value before a noun in the plural. Constants of modules are limits."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.JoinedStr):
            continue
        for value, after in zip(node.values, node.values[1:], strict=False):
            if not (isinstance(value, ast.FormattedValue) and isinstance(after, ast.Constant)):
                continue
            text = ast.unparse(value.value)
            if AFTER.match(str(after.value)) and not (
                text.startswith(("counted(", "'s' * ")) or text.rpartition(".")[2].strip("_").isupper()
            ):
                yield value.lineno, text


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_a_number_before_a_noun_is_counted(package: Path) -> None:
    found = [
        (f"{path.relative_to(package.parent)}: {text}", line)
        for path in sorted(package.rglob("*.py"))
        for line, text in counts(path.read_text(encoding="utf-8"))
    ]
    wrong = [f"{place}, line {line}: use trainer.base.plural.counted" for place, line in found if place not in KNOWN]
    assert not wrong, "\n".join(wrong)
    gone = {place for place in KNOWN if place.startswith(package.name)} - {place for place, _ in found}
    assert not gone, f"remove these from KNOWN: {sorted(gone)}"


def test_the_search_finds_a_plural_after_any_number() -> None:
    assert list(counts("f\"{len(a)} images of {b} training classes, {counted(c, 'run')} of {d} wide\"")) == [
        (1, "len(a)"),
        (1, "b"),
    ]
