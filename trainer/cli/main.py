"""The trainer's commands: parse, call, print, and turn every error into one message and the contract's exit code."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from trainer import __version__
from trainer.base.errors import EXIT_FAILED, EXIT_OK, ConfigError, StoppedError, TrainerError, nearest, os_error
from trainer.base.files import check_folder, resume_file

COMMANDS = (
    "train",
    "predict",
    "ensemble",
    "analyze",
    "check-data",
    "label-errors",
    "export",
    "estimate",
    "bench",
    "sample-data",
)
USAGE = """usage: python -m trainer COMMAND …

  train KEY=VALUE …             train one model; `train --help` lists the keys
  predict checkpoint=FILE       predict the test images: submission.csv, predictions.npz
  ensemble --checkpoints FILE … join checkpoints: soft_voting, hard_voting or rank_averaging
  analyze --checkpoint FILE     figures, curves, mistakes: analysis_results/report.html
  check-data KEY=VALUE …        duplicates, leaks, labels that disagree: check_data.json, duplicates.png
  label-errors --predictions F  likely label errors of validation images: label_errors.csv, label_errors.png
  export --checkpoint FILE …    to onnx, safetensors or torch_export: checked, with a model card
  estimate KEY=VALUE …          the device memory that training needs, without data or a GPU
  bench [--quick]               how fast this machine loads and trains, against plain pieces and timm's
  sample-data DIR               draw a small set of documents to try everything on

Results go to $RUN_DIR; the data lies in data.root=DIR, $DATA_DIR or ./data."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}\n{self.format_usage().strip()}")


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code."""
    warnings.filterwarnings("ignore", module=r"(lightning_fabric|torch|timm|pydantic)\b.*")
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        try:
            return _dispatch(list(arguments))
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)  # nothing is left that a late signal should interrupt in its own way
    except TrainerError as error:
        prefix = "" if isinstance(error, StoppedError) else "error: "
        print(f"{prefix}{_message(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return StoppedError.exit_code
    except BrokenPipeError:
        return EXIT_FAILED
    except Exception as error:
        if os.environ.get("TRAINER_DEBUG"):
            raise
        reason = " ".join(_message(error).split()) or "no message"
        if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("trainer"):
            say = "pip install -c images/constraints.txt -e '.[train]'"
            print(f"error: the trainer needs a package that is not installed: {error.name}; {say}", file=sys.stderr)
        elif isinstance(error, OSError):
            print(f"error: {os_error(error) if error.filename is not None else reason}", file=sys.stderr)
        else:
            print(
                f"error: unexpected {type(error).__name__}: {reason[:500]}\nset TRAINER_DEBUG=1 to see where",
                file=sys.stderr,
            )
        return EXIT_FAILED


def _message(error: Exception) -> str:
    """The error's own words: what a DataLoader worker raised comes wrapped in that worker's traceback."""
    text = str(error)
    if "in DataLoader worker process" in text:
        found = re.search(r"\n[\w.]+(?:Error|Exception): (?!.*\n[\w.]+(?:Error|Exception): )(.*)", text, re.S)
        return found[1].strip() if found else text.splitlines()[0]
    return text


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return EXIT_OK
    if arguments[0] == "--version":
        print(__version__)
        return EXIT_OK
    command, rest = arguments[0], arguments[1:]
    handlers: dict[str, Callable[[list[str]], int]] = {
        "train": _train,
        "predict": _predict,
        "ensemble": _ensemble,
        "analyze": _analyze,
        "check-data": _check_data,
        "label-errors": _label_errors,
        "export": _export,
    }
    if command not in COMMANDS:
        hint = "is `train` missing before it?" if "=" in command else nearest(command, COMMANDS)
        raise ConfigError(f"there is no command '{command}'; {hint}\n{USAGE}")
    _environment()
    if command not in handlers:
        from trainer.cli import tools

        return tools.HANDLERS[command](rest)
    return handlers[command](rest)


def _environment() -> None:
    """Settings that libraries read on import, the secrets that a launcher hands over as files, and .env."""
    secrets = os.environ.get("SECRETS_DIR")
    for path in sorted(Path(secrets).iterdir()) if secrets and Path(secrets).is_dir() else ():
        if path.is_file():
            os.environ.setdefault(path.name, path.read_text(encoding="utf-8").strip())
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from dotenv import load_dotenv

    load_dotenv(Path.cwd() / ".env")
    _let_segments_grow()


def _let_segments_grow() -> None:
    """Below a cap of its memory have CUDA's allocator lose little to fragments, unless somebody has set it otherwise:
    it is read when torch first uses a GPU. Not on WSL, which lacks what it needs."""
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    if not os.environ.get("DEVICE_MEMORY_LIMIT") or any(name in os.environ for name in names):
        return
    if "microsoft" in platform.release().lower():
        return
    try:
        version = [int(part) for part in importlib.metadata.version("torch").split(".")[:2]]
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return
    os.environ[names[version < [2, 11]]] = "expandable_segments:True"  # the older name before 2.11


def _train(arguments: list[str]) -> int:
    from trainer.config.compose import compose
    from trainer.config.keys import GROUPS, describe, option_names

    if any(argument in ("-h", "--help") for argument in arguments):
        print("usage: python -m trainer train KEY=VALUE …\n")
        for group in GROUPS:
            print(f"  {group}=  {', '.join(option_names(group))}")
        print()
        for key, kind, doc in describe():
            print(f"  {key} ({kind})" + (f"\n      {doc}" if doc else ""))
        return EXIT_OK
    if "--multirun" in arguments or "-m" in arguments:
        rest = " ".join(a for a in arguments if a not in ("--multirun", "-m"))
        raise ConfigError(f"--multirun: the trainer trains one model; several at once: launcher submit {rest}")
    composed = compose(arguments, "train")
    default = Path("outputs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{composed.choices['model']}"
    run_dir = Path(os.environ.get("RUN_DIR") or default)
    check_folder(run_dir)
    resume_file(composed.resume, run_dir)  # as train does, which takes seconds to import
    _quiet()
    from trainer.training.run import train
    from trainer.training.stop import Stop

    stop = Stop()
    stop.listen()
    train(composed, run_dir, stop)
    return EXIT_OK


def _quiet() -> None:
    """Fabric's, timm's and the hub's remarks on their own working are not this trainer's output."""
    import logging

    import lightning_fabric  # noqa: F401  # sets its own level on import

    for name in ("lightning_fabric", "timm", "huggingface_hub", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _parser(command: str, description: str) -> _Parser:
    parser = _Parser(f"python -m trainer {command}", description=description, allow_abbrev=False)
    parser.add_argument("--output", type=Path, help="folder for the results (default: $RUN_DIR, else this one)")
    return parser


def _add_root(parser: _Parser) -> None:
    parser.add_argument("--data.root", dest="root", type=Path, help="data folder (default: $DATA_DIR, else ./data)")


def _known_root(given: Path | None) -> Path | None:
    """The data folder; None where none is named and there is no ./data. Raises DataError where it is missing."""
    from trainer.config.schema import DataConfig
    from trainer.data import table

    if given is None and not os.environ.get("DATA_DIR") and not Path("data").is_dir():
        return None
    return table.data_root(DataConfig(root=str(given) if given else None))


def _add_model_options(parser: _Parser) -> None:
    _add_root(parser)
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "mps", "cpu"))
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp16", "fp32"))
    parser.add_argument("--batch_size", type=_positive, help="images at once (default: as in training)")
    parser.add_argument("--num_workers", type=_count, help="processes that load images (default: by the cores)")
    parser.add_argument(
        "--tta",
        help="average over views of each image: none, light (4 turns, 1 mirrored), standard (8 turned and mirrored), "
        "heavy (11: those, two zooms, more contrast); default: none, and for an ensemble.json as it was made",
    )


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _parse(parser: _Parser, arguments: Sequence[str]) -> argparse.Namespace:
    """Both spellings: `--key value` and `key=value` (also with training. before the key, as for train)."""
    known = {option for action in parser._actions for option in action.option_strings}
    words: list[str] = []
    for argument in arguments:
        key, separator, value = argument.partition("=")
        name = "--" + key.lstrip("-").removeprefix("training.")
        if separator and not _is_file(argument):
            if name not in known:
                raise ConfigError(f"{argument}: there is no option '{key}'; {nearest(name, known)}")
            words += [name, value]
        elif argument.startswith("--") and argument not in known:
            raise ConfigError(f"{argument}: there is no such option; {nearest(argument, known)}")
        else:
            words.append(argument)
    return parser.parse_args(words)


def _is_file(word: str) -> bool:
    with contextlib.suppress(OSError):  # a word too long for a file name is none
        return Path(word).is_file()
    return False


def _output(given: Path | None) -> Path:
    """Where results go. Raises ConfigError where nothing can be written there."""
    folder = given or Path(os.environ.get("RUN_DIR") or ".")
    check_folder(folder)
    return folder


def _predict(arguments: list[str]) -> int:
    parser = _parser("predict", "Predict the test images: submission.csv and predictions.npz.")
    parser.add_argument("--checkpoint", required=True, type=Path, help="a best.ckpt, or an ensemble.json")
    _add_model_options(parser)
    options = _parse(parser, arguments)
    _quiet()
    from trainer.config.schema import DataConfig
    from trainer.data import table
    from trainer.predict import predict
    from trainer.predict.inference import Options

    how = Options(options.device, options.precision, options.batch_size, options.num_workers, options.tta)
    root = table.data_root(DataConfig(root=str(options.root) if options.root else None))
    model: predict.Model = predict.of_checkpoint
    if options.checkpoint.suffix == ".json":
        from trainer.ensemble import score

        model = score.predict
    predict.predict(options.checkpoint, root, _output(options.output), how, model)
    return EXIT_OK


def _ensemble(arguments: list[str]) -> int:
    parser = _parser("ensemble", "Join checkpoints; their validation F1, submission.csv and predictions.npz.")
    parser.add_argument("--checkpoints", required=True, nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--method", default="soft_voting", help="soft_voting, hard_voting or rank_averaging")
    parser.add_argument(
        "--weights",
        nargs="+",
        metavar="W",
        help="one a member (the folds of a model are one), or equal, optimised or greedy: chosen on the validation, "
        "and kept where that helps (default: equal)",
    )
    _add_model_options(parser)
    options = _parse(parser, arguments)
    _quiet()
    from trainer.ensemble import weights
    from trainer.ensemble.score import ensemble
    from trainer.models.ensemble_file import make
    from trainer.predict.inference import Options

    how = Options(options.device, options.precision, options.batch_size, options.num_workers, options.tta)
    weighting = weights.parse(options.weights)
    given = None if isinstance(weighting, str) else weighting
    made = make(options.checkpoints, options.method, given)
    root = _known_root(options.root)
    if root is None:
        print("note: no data folder is named: no submission.csv (name one by data.root=DIR)")
    elif not (root / "sample_submission.csv").is_file() and not (root / "test").is_dir():
        print(f"note: {root} has no test images: no submission.csv")
        root = None
    asked = weighting if isinstance(weighting, str) else "given"
    ensemble(made, asked, root, _output(options.output), how)
    return EXIT_OK


def _analyze(arguments: list[str]) -> int:
    parser = _parser("analyze", "What a checkpoint gets right and wrong on its validation images.")
    parser.add_argument("--checkpoint", required=True, type=Path, help="a best.ckpt, or an ensemble.json")
    _add_root(parser)
    options = _parse(parser, arguments)
    _quiet()
    from trainer.report.analyze import analyze

    analyze(options.checkpoint, _output(options.output) / "analysis_results", _known_root(options.root))
    return EXIT_OK


def _check_data(arguments: list[str]) -> int:
    parser = _parser(
        "check-data",
        "Find images that are one image (equal, rescaled, encoded again, turned or mirrored), leaks across the split, "
        "labels that disagree and files that cannot be read. Takes the keys of `train`, of which data.* count.",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="as for `train`: data.root=DIR, data.format=…"
    )
    parser.add_argument("--json", action="store_true", help="print JSON: what check_data.json holds")
    options = parser.parse_args(arguments)
    from trainer.config.compose import compose

    composed = compose(options.overrides, "check-data").data
    output = _output(options.output)
    from trainer.data import check as check_data

    with contextlib.redirect_stdout(sys.stderr if options.json else sys.stdout):  # notes are no JSON
        checked = check_data.check(composed)
        report = check_data.write(checked, output)
    print(json.dumps(report, indent=2, ensure_ascii=False) if options.json else check_data.as_text(checked, report))
    check_data.refuse(checked, composed)
    return EXIT_OK


def _label_errors(arguments: list[str]) -> int:
    parser = _parser("label-errors", "Likely label errors, by confident learning from out-of-sample probabilities.")
    parser.add_argument("--predictions", required=True, type=Path, help="a val_predictions.npz, or a best.ckpt")
    _add_root(parser)
    options = _parse(parser, arguments)
    output = _output(options.output)
    _quiet()
    from trainer.scores import label_errors

    label_errors.write(options.predictions, output, _known_root(options.root))
    return EXIT_OK


def _export(arguments: list[str]) -> int:
    parser = _Parser(
        "python -m trainer export",
        description="Write a checkpoint as a file that needs no trainer, checked against the checkpoint, with "
        "preprocessing.json and a model card (README.md) beside it. onnx and torch_export take uint8 images and give "
        "calibrated probabilities; safetensors holds the bare timm model, which takes normalised images and gives "
        "logits.",
        allow_abbrev=False,
    )
    parser.add_argument("--checkpoint", required=True, type=Path, help="a best.ckpt")
    parser.add_argument("--to", required=True, metavar="FORMAT", help="onnx, safetensors or torch_export")
    parser.add_argument("--output", type=Path, help="folder for the files (default: export/FORMAT in $RUN_DIR or here)")
    _add_root(parser)
    parser.add_argument("--images", type=_positive, default=32, help="to check on, at most (default: %(default)s)")
    parser.add_argument("--batch_size", type=_positive, default=8, help="images at once (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="replace an earlier export")
    options = _parse(parser, arguments)
    _quiet()
    from trainer.export.export import export

    root = _known_root(options.root)
    output = options.output or _output(None) / "export" / options.to
    export(options.checkpoint, options.to, output, root, options.images, options.batch_size, options.force)
    return EXIT_OK
