"""train and config. config prints the configuration that train would use."""

from __future__ import annotations

import functools
import os
import re
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from trainer.base import model_files
from trainer.base.errors import EXIT_OK, ConfigError, DataError
from trainer.base.files import check_checkpoint, check_folder, data_folder, resume_file
from trainer.cli import options
from trainer.cli.imports import heavy
from trainer.config.schema import Config

KEY_WIDTH = 30
"""Columns for the key in `train --help`."""


def train(arguments: list[str]) -> int:
    if _wants_help(arguments):
        print(keys_help("train"))
        return EXIT_OK
    if "--multirun" in arguments or "-m" in arguments:
        rest = " ".join(a for a in arguments if a not in ("--multirun", "-m"))
        raise ConfigError(f"--multirun: the trainer trains one model; for several models: launcher submit {rest}")
    overrides, folder = options.split_data(arguments)
    config = options.composed(overrides, "train", folder)
    _say_without_effect(config)
    model = re.sub(r"[^\w.-]+", "_", config.choices["model"])
    default = Path("outputs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{model}"
    run_dir = Path(os.environ.get("RUN_DIR") or default)
    with _no_empty_folder(run_dir):
        check_folder(run_dir)
        resume_file(config.resume, run_dir)
        check_files(config)
        data_folder(config.data.root)

        with heavy():
            import sklearn.model_selection  # noqa: F401  # for the split; imported here, it does not import pandas

            from trainer.training.run import train as run
            from trainer.training.stop import Stop

        stop = Stop()
        stop.listen()
        run(config, run_dir, stop)
    return EXIT_OK


@contextmanager
def _no_empty_folder(folder: Path) -> Iterator[None]:
    """After a wrong configuration or wrong data, remove the folders that were created for results that do not come."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except (ConfigError, DataError):
        for path in new:
            with suppress(OSError):  # it is not empty: the errors are in a file there
                path.rmdir()
        raise


def config(arguments: list[str]) -> int:
    """Check and print the configuration that `train` would use with these arguments."""
    if _wants_help(arguments):
        print(keys_help("config"))
        return EXIT_OK
    from trainer.config.plain import to_yaml

    overrides, folder = options.split_data(arguments)
    composed = options.composed(overrides, "config", folder)
    _say_without_effect(composed)
    print(to_yaml(composed), end="")
    return EXIT_OK


def _say_without_effect(config: Config) -> None:
    """Print a note for each value that changes nothing, to standard error: `config` prints YAML."""
    from trainer.config.check import without_effect
    from trainer.config.merge import merged

    usual = merged(("", config.choices["data"], config.choices["training"]), [])
    for line in without_effect(config, usual):
        print(f"note: {line}", file=sys.stderr)


def check_files(config: Config) -> None:
    """Check the model name and the files of a configuration, without torch. Raises ConfigError, and DataError for a
    file that cannot have weights."""
    from trainer.config import timm_models

    weights = config.model.weights
    if weights is not None:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise ConfigError(f"model.weights={weights}: file not found")
        _check_format(f"model.weights={weights}", path)
    for teacher in config.training.teachers:
        path = Path(teacher).expanduser()
        try:
            check_checkpoint(path)
        except ConfigError as error:
            raise ConfigError(f"training.teachers: {error}") from None
        _check_format(f"training.teachers={teacher}", path, ensembles=True)
    if config.resume not in (None, "auto"):
        _check_format(f"resume={config.resume}", Path(str(config.resume)).expanduser())
    timm_models.check(config.model.name)


def _check_format(word: str, path: Path, ensembles: bool = False) -> None:
    if why := model_files.fault(path, ensembles):
        raise DataError(f"{word}: {why}")


def _wants_help(arguments: Sequence[str]) -> bool:
    return any(argument in ("-h", "--help") for argument in arguments)


def keys_help(command: str) -> str:
    """Every group with its names, and every key with its text, its choices or range, and its default."""
    from trainer.config import check
    from trainer.config.compose import compose
    from trainer.config.keys import GROUPS, describe, option_names

    usual = compose()
    lines = [f"usage: python -m trainer {command} [--data DIR] KEY=VALUE …", ""]
    for group in GROUPS:
        names = (f"{name} (default)" if name == usual.choices[group] else name for name in option_names(group))
        lines += _wrapped(f"{group}=  {', '.join(names)}", "  ")
    lines += [
        "",
        "  --data DIR  the data folder, the same as data.root=DIR",
        "",
        f"[…] is the default for {', '.join(f'{group}={usual.choices[group]}' for group in GROUPS)}.",
        "`python -m trainer config KEY=VALUE …` prints the values for other groups.",
        "",
    ]
    choices, ranges = check.choices(), check.RANGES
    for key, kind, text in describe():
        facts = f"[{_shown(functools.reduce(getattr, key.split('.'), usual))}]"
        if key in choices:
            facts += f" {' | '.join(choices[key])}"
        elif key in ranges:
            facts += f" {check.range_in_words(*ranges[key]).removeprefix('from ')}"
        elif kind.startswith("bool"):
            facts += " true | false"
        lines += _wrapped(f"{key:<{KEY_WIDTH}}{facts}: {text}", "  ", indent=KEY_WIDTH + 2)
    return "\n".join(lines)


def _shown(value: object) -> str:
    if isinstance(value, list):
        return "as in the data group" if value else "empty"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _wrapped(text: str, first: str, indent: int = 6) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent=first, subsequent_indent=" " * indent, break_on_hyphens=False)
