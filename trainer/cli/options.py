"""Options shared by several commands. The commands check them before they import torch."""

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
from trainer.cli.imports import heavy
from trainer.config.schema import Config

if TYPE_CHECKING:
    from trainer.predict.inference import Options

DATA = "--data"
CHECKPOINT = "--checkpoint"


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises ConfigError."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}\n{self.format_usage().strip()}")


def parser(command: str, description: str, usage: str | None = None) -> Parser:
    return Parser(f"python -m trainer {command}", usage=usage, description=description, allow_abbrev=False)


def add_output(to: Parser) -> None:
    to.add_argument(
        "--output", type=place, metavar="DIR", help="folder for the results (default: $RUN_DIR, else the current one)"
    )


def add_data(to: Parser, of_model: bool = False) -> None:
    """The data folder. `of_model`: of a command on a model's validation images; see `data_of_model`."""
    trained = ", else the folder that the model was trained on" if of_model else ""
    to.add_argument(
        DATA, dest="root", type=Path, metavar="DIR", help=f"data folder (default: $DATA_DIR{trained}, else ./data)"
    )
    to.add_argument("--data.root", dest="root", type=Path, help=argparse.SUPPRESS)


def add_checkpoint(to: Parser, what: str = "a best.ckpt or an ensemble.json") -> None:
    to.add_argument(CHECKPOINT, required=True, type=place, metavar="FILE", help=what)


def add_inference(to: Parser) -> None:
    """Options of the commands that predict."""
    to.add_argument(
        DATA, dest="root", type=Path, metavar="DIR", help="data folder, or one image (default: $DATA_DIR, else ./data)"
    )
    to.add_argument("--data.root", dest="root", type=Path, help=argparse.SUPPRESS)
    to.add_argument(
        "--skip_unreadable",
        action="store_true",
        help="leave out test images that cannot be read, and name them, instead of predicting none",
    )
    to.add_argument("--device", default="auto", choices=("auto", "cuda", "mps", "cpu"))
    to.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp16", "fp32"))
    to.add_argument("--batch_size", type=positive, metavar="N", help="images per batch (default: as in training)")
    to.add_argument(
        "--num_workers", type=count, metavar="N", help="image loading processes (default: from the number of cores)"
    )
    to.add_argument(
        "--tta",
        metavar="VIEWS",
        help="test-time augmentation, the mean over views of each image: none, light (4 rotations and 1 mirror image), "
        "standard (4 rotations, each also mirrored), heavy (standard, 2 zooms, more contrast). Default: none, or the "
        "views in ensemble.json",
    )


def inference(options: argparse.Namespace) -> Options:
    """The options of `add_inference`. Imports torch."""
    from trainer.predict.inference import Options

    return Options(
        options.device,
        options.precision,
        options.batch_size,
        options.num_workers,
        options.tta,
        options.skip_unreadable,
    )


def check_views(name: str | None) -> None:
    """Raises ConfigError if `name` is unknown."""
    if name is not None and name not in VIEWS:
        raise ConfigError(f"--tta {name}: unknown views; {nearest(name, VIEWS)}")


def place(text: str) -> Path:
    """A path. Shells leave the `~` of `--output=~/results` alone."""
    return Path(text).expanduser()


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def parse(by: Parser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse both spellings: `--key value` and `key=value` (also `training.key=value`, as in train)."""
    known = {option for action in by._actions for option in action.option_strings}
    flags = {option for action in by._actions if action.nargs == 0 for option in action.option_strings}
    public = (action for action in by._actions if action.help != argparse.SUPPRESS)
    visible = {option for action in public for option in action.option_strings if option.startswith("--")}
    one = {option for action in by._actions if action.nargs is None for option in action.option_strings}
    words: list[str] = []
    for position, argument in enumerate(arguments):
        if position and arguments[position - 1] in one:
            words.append(argument)  # the value of an option, whatever characters it has
            continue
        key, separator, value = argument.partition("=")
        name = "--" + key.lstrip("-").removeprefix("training.")
        if separator and not _is_file(argument):
            if key == "data" and DATA in known:
                raise ConfigError(f"{argument}: only `train` takes data=GROUP; for the data folder use {DATA} DIR")
            if name not in known:
                raise ConfigError(f"{argument}: unknown option '{key}'; {nearest(name, visible)}")
            if name in flags:
                if value.lower() not in ("true", "false"):
                    raise ConfigError(f"{argument}: must be true or false")
                words += [name] * (value.lower() == "true")
            else:
                words += [name, value]
        elif argument.startswith("--") and argument not in known:
            raise ConfigError(f"{argument}: unknown option; {nearest(argument, visible)}")
        else:
            words.append(argument)
    return by.parse_args(words)


def _is_file(word: str) -> bool:
    with contextlib.suppress(OSError):  # the word may be too long for a file name
        return Path(word).is_file()
    return False


def split_data(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """Split `--data DIR` (or `--data=DIR`) from the overrides of `train`, `config` and others: overrides and folder.

    Raises ConfigError if the folder is missing.
    """
    overrides: list[str] = []
    folder = None
    words = iter(arguments)
    for word in words:
        name, separator, value = word.partition("=")
        if name not in (DATA, "--data.root"):
            overrides.append(word)
            if name == "data.root":
                folder = None  # of several words for the folder the last one counts, whatever its spelling
            continue
        folder = value if separator else next(words, "")
        if not folder:
            raise ConfigError(f"{word}: the folder is missing; write {DATA} DIR")
    return overrides, folder


def composed(overrides: Sequence[str], command: str, folder: str | None) -> Config:
    """The configuration of a command's overrides and its `--data DIR`. Raises ConfigError."""
    from trainer.config.compose import compose

    config = compose(overrides, command)
    if folder is not None:
        config.data.root = folder
    return config


def output_folder(named: Path | None) -> Path:
    """The folder for results. Raises ConfigError if it is not writable."""
    folder = named or Path(os.environ.get("RUN_DIR") or ".")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; give a folder with --output DIR")
    check_folder(folder)
    return folder


def check_output_file(option: str, file: Path) -> None:
    """Raises ConfigError if a file for results cannot be written. Its folder must exist: it may be misspelt, and the
    work for the file may take minutes."""
    folder = file.absolute().parent
    if file.is_dir():
        raise ConfigError(f"{option} {file}: is a folder; give a file")
    if not folder.exists():
        raise ConfigError(f"{option} {file}: the folder {folder} does not exist; create it, or give another file")
    if not folder.is_dir():
        raise ConfigError(f"{option} {file}: {folder} is not a folder; give another file")
    check_folder(folder)


def optional_data(named: Path | None, may_be_file: bool = False) -> Path | None:
    """The data folder. None if none is given and ./data does not exist. Raises DataError if a given one is missing."""
    if named is None and not os.environ.get("DATA_DIR") and not Path("data").is_dir():
        return None
    return required_data(named, may_be_file)


def data_of_model(named: Path | None, model: Path) -> Path | None:
    """The folder of a model's validation images: the named one, else $DATA_DIR, else the folder that the model was
    trained on if it is still there, else ./data. None: there is none. Prints which one it is, unless it was named.

    Commands that predict take no folder of a training: what they predict has to be named, or to be in ./data. Raises
    DataError if the named folder or $DATA_DIR is missing, and ConfigError if the model is damaged.
    """
    if named is not None:
        return required_data(named)
    if os.environ.get("DATA_DIR"):
        root, source = required_data(None), "DATA_DIR"
    else:
        with heavy():
            from trainer.models import trained_on
        own = trained_on.data_folder(model)
        if own is None and not Path("data").is_dir():
            return None
        root, source = (Path("data"), "the default") if own is None else (own, "the model was trained on it")
    print(f"data folder: {root} ({source}); another one: {DATA} DIR")
    return root


def required_data(named: Path | None, may_be_file: bool = False) -> Path:
    """The data folder, or perhaps one image. Raises DataError if it is missing."""
    return data_folder(None if named is None else str(named), may_be_file)
