"""best.ckpt: weights and all that prediction needs, in a file that is safe to load (`weights_only=True`)."""

from __future__ import annotations

import platform
import zipfile
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from trainer import __version__
from trainer.base.errors import ConfigError, TrainerError
from trainer.base.files import check_checkpoint, replacing
from trainer.config.plain import from_dict
from trainer.config.schema import Config

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A trained classifier."""

    state_dict: dict[str, torch.Tensor]
    class_names: list[str]
    labels: list[str]
    """The label of each class as the data folder writes it."""
    config: dict[str, Any]
    preprocessing: dict[str, Any]
    """img_size (pixels), mean and std (three numbers each, on the scale 0 to 1), transforms (the validation list)."""
    metrics: dict[str, Any] = field(default_factory=dict)
    validation: dict[str, Any] = field(default_factory=dict)
    """ids (N strings), targets (N,), probabilities (N, classes), split_fingerprint: for ensembles and analysis. Where
    there are, corrupted (N, classes): the probabilities of the corrupted copies; and folds_fingerprint. As the model
    gives them, before the temperature."""
    calibration: dict[str, float] = field(default_factory=dict)
    """temperature that predictions are divided by, ece (expected calibration error) before it, ece_calibrated after."""
    versions: dict[str, str] = field(default_factory=dict)
    provenance: dict[str, str] = field(default_factory=dict)
    """git_sha: the commit of the code; data_fingerprint: a name for the training images and their labels."""

    @property
    def temperature(self) -> float:
        """What the logarithms of its probabilities are divided by; 1 where it was not calibrated."""
        return self.calibration.get("temperature", 1.0)

    @property
    def settings(self) -> Config:
        """The configuration as it was trained with."""
        return from_dict(self.config)


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Replace `path` by the checkpoint, whole or not at all."""
    content = {"format": FORMAT, **{name: getattr(checkpoint, name) for name in Checkpoint.__dataclass_fields__}}
    write(path, content)


def write(path: Path, content: dict[str, Any]) -> None:
    """Replace `path` by what torch.save makes of `content`. Raises TrainerError when the disk is full; what stood at
    `path` then still does."""
    with replacing(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # torch's writer does not say what the operating system said
            if "inline_container" not in str(error):
                raise
            raise TrainerError(
                f"{path}: could not be written: the disk is full, or nearly so; make room, then go on with resume=auto "
                "(training.keep_top=1 keeps fewer checkpoints)"
            ) from None


def load(path: Path, mapped: bool = False) -> Checkpoint:
    """Read a checkpoint onto the CPU. Raises ConfigError that says what is wrong with the file.

    `mapped` leaves its weights on disk until they are used: many large checkpoints take neither memory nor time.
    """
    check_checkpoint(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged file raises whatever its bytes provoke
        if not zipfile.is_zipfile(path):
            raise ConfigError(f"{path}: no checkpoint, or a damaged one; name a best.ckpt") from None
        reason = " ".join(str(error).split(". ")[0].split())[:200]
        raise ConfigError(f"{path}: not a checkpoint that can be loaded safely: {reason}") from None
    if not isinstance(content, dict) or "format" not in content or "class_names" not in content:
        hint = "; last.ckpt is for resuming: name best.ckpt" if path.name == "last.ckpt" else ""
        raise ConfigError(f"{path}: not a checkpoint of this trainer{hint}")
    if content["format"] != FORMAT:
        raise ConfigError(f"{path}: written by another version (format {content['format']}, not {FORMAT})")
    return Checkpoint(**{name: content[name] for name in Checkpoint.__dataclass_fields__ if name in content})


def versions() -> dict[str, str]:
    """Of the software that makes a checkpoint here."""
    return {
        "trainer": __version__,
        "torch": str(torch.__version__),
        "timm": version("timm"),
        "python": platform.python_version(),
    }
