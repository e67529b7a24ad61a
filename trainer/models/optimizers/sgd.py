"""Stochastic gradient descent with Nesterov's momentum (Sutskever et al. 2013)."""

from __future__ import annotations

import torch

from trainer.config.schema import TrainingConfig
from trainer.models.optimizers import Groups


def create(groups: Groups, training: TrainingConfig, fused: bool) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=training.lr, weight_decay=0, momentum=0.9, nesterov=True, fused=fused)
