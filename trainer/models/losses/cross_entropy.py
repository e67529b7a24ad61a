"""Cross-entropy with soft targets."""

from __future__ import annotations

import torch

from trainer.config.schema import TrainingConfig


def by_class(logits: torch.Tensor, distribution: torch.Tensor, training: TrainingConfig) -> torch.Tensor:
    """-q · log p for logits and target distribution q, all (N, classes)."""
    return -distribution * logits.log_softmax(1)
