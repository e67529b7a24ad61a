"""The keys of the configuration and the names in its groups. Does not import torch."""

from __future__ import annotations

import ast
import dataclasses
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config import schema
from trainer.config.schema import Config, DataConfig, ModelConfig, TrainingConfig

CONF_DIR = Path(__file__).parent / "conf"
GROUPS = ("model", "data", "training")
OTHER_WORDS = {
    "learning_rate": "lr",
    "wd": "weight_decay",
    "workers": "num_workers",
    **dict.fromkeys(("max_epochs", "num_epochs", "n_epochs"), "epochs"),
    **dict.fromkeys(("bs", "train_batch_size"), "batch_size"),
    **dict.fromkeys(("image_size", "input_size", "resolution"), "img_size"),
    **dict.fromkeys(("early_stopping", "early_stopping_patience"), "patience"),
    **dict.fromkeys(("optim", "opt"), "optimizer"),
    **dict.fromkeys(("lr_scheduler", "sched"), "scheduler"),
    **dict.fromkeys(("clip_grad", "gradient_clip_val", "max_grad_norm"), "gradient_clip"),
    "smoothing": "label_smoothing",
}
"""What other trainers call our keys, for the hint of an error."""
OTHER_VALUES = {
    **dict.fromkeys(("gpu", "nvidia"), "cuda"),
    "metal": "mps",
    "float32": "fp32",
    "bfloat16": "bf16",
    **dict.fromkeys(("float16", "half"), "fp16"),
}
"""What others call the values of our keys."""


@functools.cache
def option_names(group: str) -> tuple[str, ...]:
    """The names in `group` (one of `GROUPS`), sorted."""
    return tuple(sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml")))


@functools.cache
def model_names() -> dict[str, str]:
    """timm's name of each option of the group `model`."""
    files = {name: (CONF_DIR / "model" / f"{name}.yaml").read_text(encoding="utf-8") for name in option_names("model")}
    found = {name: re.search(r"^name:\s*(\S+)", text, re.M) for name, text in files.items()}
    return {name: match[1] for name, match in found.items() if match}


@functools.cache
def file_names(folder: str) -> tuple[str, ...]:
    """The module names in `trainer/<folder>`, sorted: one per loss or optimizer. Imports none of them.

    Ignores files of editors and macOS (.#focal.py, ._focal.py)."""
    files = (Path(__file__).parents[1] / folder).glob("*.py")
    return tuple(sorted(file.stem for file in files if file.stem.isidentifier() and not file.stem.startswith("_")))


@dataclass(frozen=True)
class OwnAugmentation:
    """An augmentation's file in `trainer/augment/own` (without .py), and its argument names, sorted."""

    file: str
    arguments: list[str]


@functools.cache
def own_augmentations() -> dict[str, OwnAugmentation]:
    """Every public class in `trainer/augment/own`, by name. Reads the source, because importing albumentations takes
    one second."""
    own = {}
    for file in file_names("augment/own"):
        path = Path(__file__).parents[1] / "augment" / "own" / f"{file}.py"
        for node in ast.parse(path.read_bytes(), str(path)).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                own[node.name] = OwnAugmentation(file, sorted({*_arguments(node), "p"}))
    return own


def _arguments(node: ast.ClassDef) -> list[str]:
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and method.name == "__init__":
            return [argument.arg for argument in [*method.args.args, *method.args.kwonlyargs] if argument.arg != "self"]
    return []


@functools.cache
def keys() -> dict[str, str]:
    """Every dotted key, with its type as written in the schema: `{"training.lr": "float", …}`."""
    return {key: f.type if isinstance(f.type, str) else f.type.__name__ for key, f in _fields(Config, "")}


def describe() -> list[tuple[str, str, str]]:
    """Key, type and docstring of every key, for `--help`."""
    docs: dict[str, str] = {}
    source = Path(schema.__file__).read_text(encoding="utf-8")
    prefixes = {"ModelConfig": "model.", "DataConfig": "data.", "TrainingConfig": "training.", "Config": ""}
    for name, body in re.findall(r"^@dataclass\nclass (\w+):\n(.*?)(?=\n\n\n|\Z)", source, re.S | re.M):
        for key, doc in re.findall(r'^    (\w+): [^\n]*\n    """(.*?)"""', body, re.S | re.M):
            docs[prefixes[name] + key] = doc
    return [(key, kind, docs.get(key, "")) for key, kind in keys().items() if key != "choices"]


def _fields(kind: type, prefix: str) -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    nested = {"model": ModelConfig, "data": DataConfig, "training": TrainingConfig}
    for f in dataclasses.fields(kind):
        if not prefix and f.name in nested:
            yield from _fields(nested[f.name], f.name + ".")
        else:
            yield prefix + f.name, f
