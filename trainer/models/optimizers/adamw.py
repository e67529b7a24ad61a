"""AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

from __future__ import annotations

import torch

from trainer.config.schema import TrainingConfig
from trainer.models.optimizers import Groups


def create(groups: Groups, training: TrainingConfig, fused: bool) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=training.lr, weight_decay=0, fused=fused)
