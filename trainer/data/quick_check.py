"""`check-data --quick`: whether configurations can train on a data folder, once for all of them before any starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.base.errors import ConfigError, DataError
from trainer.base.plural import counted
from trainer.config.compose import own_transforms
from trainer.config.schema import Config, DataConfig, TrainingConfig
from trainer.data import duplicates, leaks, split
from trainer.data.duplicates import Pair
from trainer.data.rows import Table
from trainer.data.table import data_root, read_test, read_training
from trainer.images import examined


@dataclass(frozen=True)
class Answer:
    """Errors and notes of one configuration. A line that begins with `key=value:` is about this value."""

    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Answers:
    """The result of `check`."""

    images: int = 0
    """Number of readable training images."""
    errors: list[str] = field(default_factory=list)
    """Of the training images and labels, each with file and row."""
    configurations: list[Answer] = field(default_factory=list)
    """In the order of the configurations. Without errors if the images have some: after a fix there are more images."""
    test: list[str] = field(default_factory=list)
    """Errors of the test images."""

    def all_errors(self) -> list[str]:
        """Every error once, in the order of their appearance."""
        own = [line for answer in self.configurations for line in answer.errors]
        return list(dict.fromkeys([*self.errors, *own, *self.test]))


def check_batch(training: TrainingConfig, images: int) -> None:
    """Raises DataError if an epoch of so many training images has no step."""
    if training.drop_last and images < training.batch_size:
        few = f"{counted(images, 'training image')} {'is' if images == 1 else 'are'} fewer than one batch"
        raise DataError(
            f"training.batch_size={training.batch_size}: {few}, and training.drop_last=true skips it; use "
            f"training.batch_size={max(1, images // 2)} or training.drop_last=false"
        )


def check(base: DataConfig, configs: Sequence[Config], train: bool = True, test: bool = False) -> Answers:
    """Read every training image and label of the folder of `base`, split them as each of these configurations does, and
    compare their numbers. `train` false: leave this out. With `test`, read the test images, too."""
    try:
        root = data_root(base)
    except DataError as error:
        return Answers(errors=str(error).splitlines())
    tables: dict[str, Table] = {}
    errors: list[str] = []
    for config in (base, *(config.data for config in configs)) if train else ():
        try:
            if config.group_column not in tables:
                tables[config.group_column] = read_training(root, config)
        except DataError as error:
            errors = str(error).splitlines()
            break
    answers = [] if errors or not train else _configurations(configs, tables)
    images = max((len(table) for table in tables.values()), default=0)
    return Answers(images, errors, answers, _test_errors(root) if test else [])


def _configurations(configs: Sequence[Config], tables: dict[str, Table]) -> list[Answer]:
    """The answer to each configuration. Equal partitions are made once."""
    partitions: dict[tuple[object, ...], list[split.Side] | DataError] = {}
    equal: list[Pair] | None = None
    tried: dict[str, list[str]] = {}
    answers = []
    for config in configs:
        table = tables[config.data.group_column]
        key = tuple(getattr(config.data, name) for name in split.PARTITION)
        if key not in partitions:
            try:
                partitions[key] = split.partition(table, config.data)
            except DataError as error:
                partitions[key] = error
        sides = partitions[key]
        wrong: list[str] = []
        for name, transforms in own_transforms(config).items():
            what = repr((name, transforms, config.data.img_size))
            if what not in tried:
                tried[what] = _tried(name, transforms, config.data.img_size)
            wrong += tried[what]
        if wrong:
            answers.append(Answer(wrong))
            continue
        if isinstance(sides, DataError):
            answers.append(Answer(str(sides).splitlines()))
            continue
        if equal is None:  # the images are the same for all configurations
            equal = duplicates.equal_files(table.paths)
        answers.append(_of_sides(config, table, sides, equal))
    return answers


def _tried(name: str, transforms: list[Any], img_size: int) -> list[str]:
    from trainer.augment import pipeline  # takes a second

    try:
        pipeline.try_out(transforms, f"data.{name}", img_size)
    except ConfigError as error:
        return str(error).splitlines()
    return []


def _of_sides(config: Config, table: Table, sides: Sequence[split.Side], equal: Sequence[Pair]) -> Answer:
    try:
        cut = split.checked_side(table, config.data, sides)
    except DataError as error:
        return Answer(str(error).splitlines())
    errors: list[str] = []
    try:
        check_batch(config.training, len(cut.train))
    except DataError as error:
        errors += str(error).splitlines()
    try:
        leaks.refuse(table, cut, equal, config.data.allowed_leaks)
    except DataError as error:
        errors += str(error).splitlines()
    return Answer(errors, list(cut.notes))


def _test_errors(root: Path) -> list[str]:
    try:
        table = read_test(root)
    except DataError as error:
        return str(error).splitlines()
    return [f"test/{table.ids[row]}: {reason}" for row, reason in examined.unreadable(table.paths)]
