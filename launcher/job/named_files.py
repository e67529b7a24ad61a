"""The model's name and the files that a run's configuration names: whether the run could use them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from launcher.base.errors import RunFileError
from launcher.host.machine import Machine
from launcher.job.spec import Job
from launcher.record import trainer_figures, trainer_files
from trainer.base import model_files
from trainer.base.errors import ConfigError, nearest
from trainer.config import timm_models
from trainer.config.compose import parse
from trainer.config.schema import Config

RUNS = "@runs/"
KEYS = ("model.name", "model.weights", "training.teachers", "resume")
OWN_IMAGES = ("auto", "cpu", "cuda")
"""Values of `image:` for this project's trainer. Another one may have other models and formats."""


@dataclass(frozen=True)
class Fault:
    """An error that begins with `key=value`. `damaged`: the file exists, but its content is wrong."""

    text: str
    damaged: bool = False


class NamedFiles:
    """Checks each name once, however many runs have it."""

    def __init__(self, job: Job, machine: Machine, runs_root: Path | None) -> None:
        self._own_trainer = job.spec.image in OWN_IMAGES
        self._here = not machine.declared
        """Whether the runs' files are on this host."""
        self._runs_root = runs_root
        self._known: dict[tuple[str, str], Fault | None] = {}

    def faults(self, composed: Config) -> list[Fault]:
        """The errors of the model's name, and of the files that a run needs."""
        wanted = [("model.name", composed.model.name)]
        if self._here:
            wanted += [("model.weights", name) for name in [composed.model.weights] if name]
            wanted += [("training.teachers", str(name)) for name in composed.training.teachers]
            wanted += [("resume", name) for name in [composed.resume] if name and name != "auto"]
        for word in wanted:
            if word not in self._known:
                self._known[word] = self._model(word[1]) if word[0] == "model.name" else self._file(*word)
        return [fault for word in wanted if (fault := self._known[word]) is not None]

    def faults_of_words(self, words: Sequence[str]) -> list[Fault]:
        """The same for the overrides of a run whose configuration has an error elsewhere."""
        composed = Config()
        for word in words:
            key, _, _ = word.partition("=")
            if key in KEYS:
                with suppress(ConfigError, AttributeError):
                    section, _, leaf = key.rpartition(".")
                    setattr(getattr(composed, section) if section else composed, leaf, parse(word)[1])
        if not isinstance(composed.training.teachers, list):
            composed.training.teachers = []
        model = composed.model
        model.name, model.weights = str(model.name), str(model.weights) if model.weights else None
        composed.resume = str(composed.resume) if composed.resume else None
        return self.faults(composed)

    def _model(self, name: str) -> Fault | None:
        try:
            timm_models.check(name) if self._own_trainer else None
        except ConfigError as error:
            return Fault(str(error))
        return None

    def _file(self, key: str, name: str) -> Fault | None:
        path = Path(name).expanduser()
        if name.startswith(RUNS):
            if self._runs_root is None:
                return None
            path = self._runs_root / name.removeprefix(RUNS)
        if why := absent(path):
            return Fault(f"{key}={name}: {why}")
        if self._own_trainer and (why := wrong(path, ensembles=key == "training.teachers")):
            return Fault(f"{key}={name}: {why}", damaged=True)
        return None


def absent(path: Path) -> str | None:
    """Why this file cannot be read; None if it can."""
    try:
        if path.is_file():
            return None if os.access(path, os.R_OK) else "you may not read this file"
        if path.exists():
            return "is not a file"
        near = nearest(str(path), map(str, path.parent.iterdir())) if path.parent.is_dir() else ""
    except (OSError, ValueError) as error:
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"
    return "no such file" + (f"; {near}" if near.startswith("did you mean") else "")


def wrong(path: Path, ensembles: bool = False) -> str | None:
    """Why this file cannot have weights: see `trainer.base.model_files`. `ensembles`: it may be an ensemble.json, whose
    members are files like it."""
    try:
        with trainer_files.open_named(path) as file:
            if why := model_files.fault_of(file, path.suffix, ensembles):
                return why
            if not ensembles or path.suffix != model_files.ENSEMBLE:
                return None
            file.seek(0)
            content = trainer_figures.parsed(file.read(trainer_files.LIMITS[trainer_files.ENSEMBLE]))
    except RunFileError as error:
        return str(error).removeprefix(f"{path}: ")
    except (OSError, ValueError) as error:
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"
    usable = trainer_figures.ensemble_members(path)
    for member in content["members"]:
        named = Path(os.path.abspath(path.parent / member["checkpoint"]))  # noqa: PTH100  # keeps links
        why = (wrong(named) if named in usable else "") if named.is_file() else "no such file"
        if why or named not in usable:
            return f"its member {named}: {why or 'is no file of the runs folder'}"
    return None
