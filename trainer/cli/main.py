"""The trainer's commands: parse, call, print. Every error becomes one message and an exit code of the contract."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from trainer import __version__
from trainer.base.brief import in_brief
from trainer.base.errors import (
    EXIT_DEVICE_MEMORY,
    EXIT_FAILED,
    EXIT_OK,
    EXIT_USAGE,
    ConfigError,
    StoppedError,
    TrainerError,
    nearest,
    os_error,
)

COMMANDS = {
    "train": ("train", "train [--data DIR] KEY=VALUE …", "train one model; `train --help` lists the keys"),
    "config": ("train", "config KEY=VALUE …", "check and print the configuration for train"),
    "predict": ("predict", "predict --checkpoint FILE", "predict the test images: submission.csv, predictions.npz"),
    "ensemble": ("ensemble", "ensemble --checkpoints FILE …", "join checkpoints in an ensemble"),
    "analyze": ("analyze", "analyze --checkpoint FILE", "metrics, curves, mistakes: analysis_results/report.html"),
    "check-data": ("data", "check-data [--data DIR]", "find duplicates, leaks and contradictory labels"),
    "label-errors": ("analyze", "label-errors --predictions FILE", "find likely label errors of validation images"),
    "export": (
        "export",
        "export --checkpoint FILE --to …",
        "write onnx, safetensors or torch_export, with a model card",
    ),
    "estimate": ("measure", "estimate KEY=VALUE …", "predict the device memory of training, without data or a GPU"),
    "bench": ("measure", "bench [--quick]", "measure loading and training speed, compared with plain code and timm"),
    "sample-data": ("data", "sample-data DIR", "draw a small set of documents for a first try"),
}
"""Per command: its module in this folder (with a function of the command's name), its usage, and its help."""
USAGE = "\n".join(
    [
        "usage: python -m trainer COMMAND …",
        "",
        *(f"  {call:<32}  {text}" for _, call, text in COMMANDS.values()),
        "",
        "`python -m trainer COMMAND --help` shows a command's options.",
        "Results go to $RUN_DIR; the data folder is --data DIR, $DATA_DIR or ./data.",
        "analyze, label-errors and export take the folder that the model was trained on before ./data.",
    ]
)


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code."""
    warnings.filterwarnings("ignore", module=r"(lightning_fabric|torch|timm|pydantic)\b.*")
    if sys.stdout is not None:  # the caller may have closed it
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        try:
            return _dispatch(list(arguments))
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)  # a late signal gets its old handler
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
        reason = in_brief(_message(error), 500) or "no message"
        if isinstance(error, MemoryError):
            print(f"error: out of host memory: {reason}", file=sys.stderr)
            return EXIT_FAILED
        if _is_full_device(error):
            print(f"error: out of device memory: {reason}; use a device with more free memory", file=sys.stderr)
            return EXIT_DEVICE_MEMORY
        if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("trainer"):
            say = "pip install -c images/constraints.txt -e '.[train]'"
            print(f"error: package {error.name} is not installed; run: {say}", file=sys.stderr)
        elif isinstance(error, OSError):
            print(f"error: {os_error(error) if error.filename is not None else reason}", file=sys.stderr)
        else:
            print(
                f"error: unexpected {type(error).__name__}: {reason}\nset TRAINER_DEBUG=1 to see the traceback",
                file=sys.stderr,
            )
        return EXIT_FAILED


def _is_full_device(error: Exception) -> bool:
    """Whether the error means full device memory. Training and prediction name remedies themselves; this is for
    anything before them, such as the start of CUDA on a GPU that others have filled."""
    if not isinstance(error, RuntimeError) or "torch" not in sys.modules:
        return False
    from trainer.training import full_memory

    return full_memory.is_full(error)


def _message(error: Exception) -> str:
    """The error message. For an error in a DataLoader worker: without the traceback around it."""
    text = str(error)
    if "in DataLoader worker process" in text:
        match = re.search(r"\n[\w.]+(?:Error|Exception): (?!.*\n[\w.]+(?:Error|Exception): )(.*)", text, re.S)
        return match[1].strip() if match else text.splitlines()[0]
    return text


def _dispatch(arguments: list[str]) -> int:
    if not arguments:
        print(USAGE)
        return EXIT_USAGE  # a job without a command must not succeed
    if arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return EXIT_OK
    if arguments[0] == "--version":
        print(__version__)
        return EXIT_OK
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        hint = "is `train` missing before it?" if "=" in command else nearest(command, COMMANDS)
        raise ConfigError(f"unknown command '{command}'; {hint}\n{USAGE}")
    _environment()
    module = importlib.import_module(f"trainer.cli.{COMMANDS[command][0]}")
    code: int = getattr(module, command.replace("-", "_"))(rest)
    return code


FOLDERS = ("DATA_DIR", "RUN_DIR", "CACHE_DIR", "BAKED_WEIGHTS")
"""Variables with a folder, which may begin with `~`."""


def _environment() -> None:
    """Set environment variables: those that libraries read on import, secrets from the launcher's files, and .env."""
    secrets = os.environ.get("SECRETS_DIR")
    for path in sorted(Path(secrets).iterdir()) if secrets and Path(secrets).is_dir() else ():
        if path.is_file():
            os.environ.setdefault(path.name, os.fsdecode(path.read_bytes()).strip())
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from dotenv import load_dotenv

    load_dotenv(Path.cwd() / ".env")
    for name in FOLDERS:
        if os.environ.get(name, "").startswith("~"):  # no shell has replaced it, in .env for example
            os.environ[name] = str(Path(os.environ[name]).expanduser())
    _let_segments_grow()


def _let_segments_grow() -> None:
    """With a memory limit, reduce the fragmentation of CUDA's allocator. torch reads the setting at its first use of a
    GPU. A user's own setting stays. WSL does not support it."""
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
