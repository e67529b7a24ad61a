"""Options that several commands take: one spelling for one thing, and their values checked before torch is imported."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from trainer.base.errors import ConfigError, nearest
from trainer.base.files import check_folder, data_folder
from trainer.base.names import VIEWS
from trainer.config.schema import Config

if TYPE_CHECKING:
    from trainer.predict.inference import Options

DATA = "--data"
CHECKPOINT = "--checkpoint"


class Parser(argparse.ArgumentParser):
    """argparse, whose errors are a ConfigError."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}\n{self.format_usage().strip()}")


def parser(command: str, description: str, usage: str | None = None) -> Parser:
    return Parser(f"python -m trainer {command}", usage=usage, description=description, allow_abbrev=False)


def add_output(to: Parser) -> None:
    to.add_argument(
        "--output", type=Path, metavar="DIR", help="folder for the results (default: $RUN_DIR, else this one)"
    )


def add_data(to: Parser) -> None:
    to.add_argument(DATA, dest="root", type=Path, metavar="DIR", help="data folder (default: $DATA_DIR, else ./data)")
    to.add_argument("--data.root", dest="root", type=Path, help=argparse.SUPPRESS)


def add_checkpoint(to: Parser, what: str = "a best.ckpt, or an ensemble.json") -> None:
    to.add_argument(CHECKPOINT, required=True, type=Path, metavar="FILE", help=what)


def add_inference(to: Parser) -> None:
    """What commands that predict take."""
    add_data(to)
    to.add_argument("--device", default="auto", choices=("auto", "cuda", "mps", "cpu"))
    to.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp16", "fp32"))
    to.add_argument("--batch_size", type=positive, metavar="N", help="images at once (default: as in training)")
    to.add_argument("--num_workers", type=count, metavar="N", help="processes that load images (default: by the cores)")
    to.add_argument(
        "--tta",
        metavar="VIEWS",
        help="average over views of each image: none, light (4 turns, 1 mirrored), standard (8 turned and mirrored), "
        "heavy (11: those, two zooms, more contrast); default: none, and for an ensemble.json as it was made",
    )


def inference(options: argparse.Namespace) -> Options:
    """What `add_inference` has parsed. Imports torch."""
    from trainer.predict.inference import Options

    return Options(options.device, options.precision, options.batch_size, options.num_workers, options.tta)


def check_views(name: str | None) -> None:
    """Raises ConfigError where there is no such set of views."""
    if name is not None and name not in VIEWS:
        raise ConfigError(f"--tta {name}: there is no such set of views; {nearest(name, VIEWS)}")


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def parse(by: Parser, arguments: Sequence[str]) -> argparse.Namespace:
    """Both spellings: `--key value` and `key=value` (also with training. before the key, as for train)."""
    known = {option for action in by._actions for option in action.option_strings}
    shown = {option for action in by._actions if action.help != argparse.SUPPRESS for option in action.option_strings}
    words: list[str] = []
    for argument in arguments:
        key, separator, value = argument.partition("=")
        name = "--" + key.lstrip("-").removeprefix("training.")
        if separator and not _is_file(argument):
            if key == "data" and DATA in known:
                raise ConfigError(f"{argument}: only `train` takes data=GROUP; the data folder is {DATA} DIR")
            if name not in known:
                raise ConfigError(f"{argument}: there is no option '{key}'; {nearest(name, shown)}")
            words += [name, value]
        elif argument.startswith("--") and argument not in known:
            raise ConfigError(f"{argument}: there is no such option; {nearest(argument, shown)}")
        else:
            words.append(argument)
    return by.parse_args(words)


def _is_file(word: str) -> bool:
    with contextlib.suppress(OSError):  # a word too long for a file name is none
        return Path(word).is_file()
    return False


def split_data(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """Take `--data DIR` (or `--data=DIR`) out of the overrides of `train` and the like: the overrides, and the folder.

    Raises ConfigError where the folder is missing.
    """
    overrides: list[str] = []
    folder = None
    words = iter(arguments)
    for word in words:
        name, separator, value = word.partition("=")
        if name not in (DATA, "--data.root"):
            overrides.append(word)
            continue
        folder = value if separator else next(words, "")
        if not folder:
            raise ConfigError(f"{word}: a folder is missing; write {DATA} DIR")
    return overrides, folder


def composed(overrides: Sequence[str], command: str, folder: str | None) -> Config:
    """The configuration of a command's overrides and its `--data DIR`. Raises ConfigError."""
    from trainer.config.compose import compose

    config = compose(overrides, command)
    if folder is not None:
        config.data.root = folder
    return config


def output_folder(named: Path | None) -> Path:
    """Where results go. Raises ConfigError where nothing can be written there."""
    folder = named or Path(os.environ.get("RUN_DIR") or ".")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; name a folder by --output DIR")
    check_folder(folder)
    return folder


def optional_data(named: Path | None) -> Path | None:
    """The data folder; None where none is named and there is no ./data. Raises DataError where it is missing."""
    if named is None and not os.environ.get("DATA_DIR") and not Path("data").is_dir():
        return None
    return required_data(named)


def required_data(named: Path | None) -> Path:
    """Raises DataError where it is missing."""
    return data_folder(None if named is None else str(named))
