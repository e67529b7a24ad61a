"""The objects of a run, and its state between two optimizer steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from trainer.config.schema import Config
from trainer.data import sampling
from trainer.data.split import Split
from trainer.data.table import Table
from trainer.training.progress import Reporter
from trainer.training.step import Step
from trainer.training.stop import Stop
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
    """[score, file name] of the checkpoints in top/, best first."""


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
