"""Losses: one file per value of `training.loss`. A file has

    def by_class(logits, distribution, training) -> torch.Tensor

It returns the part of each class in the loss of each image. The caller sums, so that no loss depends on the size of the
micro-batches.
"""

from __future__ import annotations

import importlib

import torch
import torch.nn.functional as F

from trainer.config.schema import TrainingConfig


def wanted(targets: torch.Tensor, classes: int, smoothing: float) -> torch.Tensor:
    """(N,) class indices → (N, classes) distributions. `smoothing` is the share that is spread over all classes,
    including the target class (Szegedy et al. 2016, section 7)."""
    return F.one_hot(targets, classes).float().mul(1 - smoothing).add(smoothing / classes)


def by_class(logits: torch.Tensor, distribution: torch.Tensor, training: TrainingConfig) -> torch.Tensor:
    """The part of each class in the loss of each image, (N, classes), from logits and target distribution, both
    (N, classes). The loss is `training.loss`. The caller multiplies with the class weights."""
    module = importlib.import_module(f"{__name__}.{training.loss}")
    terms: torch.Tensor = module.by_class(logits, distribution, training)
    return terms


def distance(logits: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """(N,): T² · KL(teacher_T ‖ student_T) from the student's logits and the teacher's probabilities, both
    (N, classes), at temperature T. T² keeps the size of the gradient (Hinton, Vinyals and Dean 2015, section 2)."""
    soft = (teacher.clamp_min(1e-12).log() / temperature).softmax(1)
    apart = F.kl_div((logits / temperature).log_softmax(1), soft, reduction="none").sum(1)
    return temperature**2 * apart
