"""The objects of a run, and its state between two optimizer steps."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from trainer.config.schema import Config
from trainer.data import sampling
from trainer.data.rows import Table
from trainer.data.split import Split
from trainer.training import device
from trainer.training.progress import Reporter
from trainer.training.step import Step
from trainer.training.stop import Poll, Stop
from trainer.training.tracking import Tracking
from trainer.training.val_batches import Remembered


@dataclass
class Progress:
    """The progress of a run between two optimizer steps, in plain values for last.ckpt."""

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    validated_at: int = -1
    best: dict[str, Any] = field(default_factory=dict)
    """Metrics of the best validation, for metrics.json."""
    best_score: float | None = None
    """The value of `training.monitor` at the best validation."""
    best_epoch: int = 0
    loss_sum: float = 0.0
    loss_images: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    top: list[list[Any]] = field(default_factory=list)
    """[score, file name] of the best checkpoints, best first. The first one is best.ckpt, the others are in top/."""
    changes: list[dict[str, Any]] = field(default_factory=list)
    """Changes of the configuration by resumes: key, old, new, after_step."""

    @property
    def number(self) -> int:
        """The number of the present epoch, from 1. Between two epochs: that of the last one."""
        return self.epoch + (self.step_in_epoch > 0)


SAVE_SECONDS = 600.0
"""Longest time between two last.ckpt."""
SAVE_SHARE = 0.05
"""Largest share of the time for last.ckpt at the ends of epochs."""


@dataclass
class Saved:
    """When this process wrote the last last.ckpt, and how long that took, in seconds."""

    at: float
    took: float = 0.0

    def due(self, epoch_ended: bool) -> bool:
        """Whether last.ckpt is due: after `SAVE_SECONDS`, and at the end of an epoch if epochs are long enough. A large
        model takes seconds to write, as long as a short epoch."""
        since = time.monotonic() - self.at
        return since >= SAVE_SECONDS or (epoch_ended and since * SAVE_SHARE >= self.took)


@dataclass
class Run:
    """A run around its steps: data, folder, and reporters."""

    config: Config
    folder: Path
    table: Table
    split: Split
    step: Step
    loader: DataLoader[Any]
    sampler: sampling.EpochSampler
    val_batches: Remembered
    device: str
    precision: str
    channels_last: bool
    compiled: bool
    stop: Stop
    progress: Progress
    reporter: Reporter
    tracking: Tracking
    provenance: dict[str, str]
    """See `Checkpoint`."""
    files: dict[str, list[str]]
    """SHA-256 of the files that the configuration names, by key, as they were at the start of the run."""
    order: str
    """A digest of the order of the images."""
    saved: Saved
    """The last last.ckpt."""
    poll: Poll
    """Questions of several processes about a stop."""

    @property
    def used(self) -> dict[str, Any]:
        """What `auto` and null mean in this process, by key."""
        return {
            "device": self.device,
            "devices": self.world_size,
            "training.precision": self.precision,
            "training.channels_last": self.channels_last,
            "training.compile": self.compiled,
        }

    @property
    def val_precision(self) -> str:
        """The number format of validations: bf16, fp16 or fp32."""
        return device.evaluation_precision(self.config.training.precision, self.device)

    @property
    def accumulate(self) -> int:
        """Micro-batches per optimizer step."""
        return self.config.training.batch_size // (self.config.training.micro_batch or self.config.training.batch_size)

    @property
    def world_size(self) -> int:
        """Number of processes, one per device."""
        return self.step.fabric.world_size

    @property
    def chief(self) -> bool:
        """Whether this process writes files and prints."""
        return self.step.fabric.global_rank == 0
