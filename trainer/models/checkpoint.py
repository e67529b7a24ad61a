"""best.ckpt: weights and everything for prediction, in a file that is safe to load (`weights_only=True`)."""

from __future__ import annotations

import platform
import zipfile
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from trainer import __version__
from trainer.base.brief import in_brief
from trainer.base.errors import ConfigError, TrainerError
from trainer.base.files import check_checkpoint, replacing
from trainer.base.spelling import is_text, visible
from trainer.config.plain import from_dict
from trainer.config.schema import Config

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A trained classifier."""

    state_dict: dict[str, torch.Tensor]
    class_names: list[str]
    labels: list[str]
    """The label of each class in the data folder."""
    config: dict[str, Any]
    preprocessing: dict[str, Any]
    """img_size (pixels), mean and std (three numbers each, on the scale 0 to 1), transforms (the validation list)."""
    metrics: dict[str, Any] = field(default_factory=dict)
    validation: dict[str, Any] = field(default_factory=dict)
    """ids (N strings), targets (N,), probabilities (N, classes), split_fingerprint: for ensembles and analysis.
    Optional: corrupted (N, classes), the probabilities of the corrupted copies, and folds_fingerprint. Probabilities
    are before the temperature."""
    calibration: dict[str, float] = field(default_factory=dict)
    """temperature, ece (expected calibration error without the temperature) and ece_calibrated (with it)."""
    versions: dict[str, str] = field(default_factory=dict)
    provenance: dict[str, str] = field(default_factory=dict)
    """git_sha: commit of the code. data_fingerprint: fingerprint of the training images and labels. `+` joins those of
    several attempts. data_folder: its path in the training process. precision and val_precision: number
    formats of training and validation. Earlier versions have no val_precision: both were equal. teachers: a description
    of each, for the folds of one model. groups: the column of the table with the groups; without it there are none."""

    @property
    def temperature(self) -> float:
        """The divisor of the log-probabilities. 1 without calibration."""
        return self.calibration.get("temperature", 1.0)

    @property
    def settings(self) -> Config:
        """The configuration of its training."""
        return from_dict(self.config)


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint to `path`, atomically."""
    content = {"format": FORMAT, **{name: getattr(checkpoint, name) for name in Checkpoint.__dataclass_fields__}}
    write(path, content)


def write(path: Path, content: dict[str, Any]) -> None:
    """Write `content` to `path` with torch.save, atomically. Raises TrainerError if the disk is full; the old file then
    stays."""
    with replacing(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # torch's message does not have the system error
            if "inline_container" not in str(error):
                raise
            raise TrainerError(
                f"{path}: cannot write: the disk is full or almost full; free some space, then continue with "
                "resume=auto (training.keep_top=1 keeps fewer checkpoints)"
            ) from None


def load(path: Path, mapped: bool = False) -> Checkpoint:
    """Read a checkpoint to the CPU: ours, or one of Lightning with a timm model. Raises ConfigError with the reason if
    the file is wrong.

    With `mapped` the weights stay on disk until their use, which saves memory and time for many large checkpoints.
    """
    check_checkpoint(path)
    mapped = mapped and is_text(str(path))  # torch cannot map a file whose path is not UTF-8
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged file can raise any error
        if not zipfile.is_zipfile(path):
            raise ConfigError(f"{path}: not a checkpoint, or damaged; give a best.ckpt") from None
        content = _objects(path, mapped)
        if content is None:
            reason = in_brief(str(error).split(". ")[0], 200)
            raise ConfigError(f"{path}: not a checkpoint that can be loaded safely: {reason}") from None
    if not isinstance(content, dict) or "format" not in content or "class_names" not in content:
        from trainer.models import lightning

        if lightning.is_lightning(content) or (isinstance(content, dict) and lightning.VERSION in content):
            return Checkpoint(**lightning.fields(path, content))
        hint = "; last.ckpt is only for resume; give best.ckpt" if path.name == "last.ckpt" else _of_weights(content)
        raise ConfigError(f"{path}: not a checkpoint of this trainer{hint}")
    if content["format"] != FORMAT:
        raise ConfigError(f"{path}: written by another version (format {content['format']}, not {FORMAT})")
    names = [visible(name) for name in content["class_names"]]
    if len(set(names)) == len(names):  # an earlier version could have one name in two Unicode forms
        content["class_names"] = names
    return Checkpoint(**{name: content[name] for name in Checkpoint.__dataclass_fields__ if name in content})


def _of_weights(content: Any) -> str:
    """What a file lacks that has only weights, and what to do with it; empty for any other content."""
    inner = (
        [content.get(name) for name in ("state_dict", "model_state_dict", "model")] if isinstance(content, dict) else []
    )
    if not any(isinstance(part, dict) and any(map(torch.is_tensor, part.values())) for part in (content, *inner)):
        return ""
    return (
        ": it has weights, but neither the name of their model nor their classes; give a best.ckpt, or a checkpoint of "
        "Lightning with hyper_parameters, or train on from a plain state dict with model.weights=FILE"
    )


def _objects(path: Path, mapped: bool) -> Any:
    """The content of a Lightning checkpoint that has other objects than weights, read without their code. None for any
    other file."""
    from trainer.models import lightning

    try:
        content = lightning.read_objects(path, mapped)
    except Exception:  # as above
        return None
    return content if lightning.is_lightning(content) else None


def versions() -> dict[str, str]:
    """Versions of the software that writes a checkpoint here."""
    return {
        "trainer": __version__,
        "torch": str(torch.__version__),
        "timm": version("timm"),
        "python": platform.python_version(),
    }
