"""Focal loss (Lin et al. 2017): easy images count less."""

from __future__ import annotations

import torch

from trainer.config.schema import TrainingConfig


def by_class(logits: torch.Tensor, distribution: torch.Tensor, training: TrainingConfig) -> torch.Tensor:
    """-q · (1 - p)^gamma · log p for logits and target distribution q, all (N, classes). It is eq. 4, extended to soft
    targets term by term. With class weights it is eq. 5. gamma is `training.focal_gamma`; 0 gives the cross-entropy."""
    log_p = logits.log_softmax(1)
    terms = -distribution * log_p
    if training.focal_gamma:
        # Below gamma 1 the slope of the power is infinite where p is 1.
        terms = terms * (1 - log_p.exp()).clamp_min(1e-6) ** training.focal_gamma
    return terms
