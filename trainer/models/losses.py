"""What a training step minimises, image by image. Sums are left to the caller, so that no loss depends on how the
images of a step are cut into micro-batches."""

from __future__ import annotations

import torch
from torch.nn.functional import kl_div, one_hot

from trainer.config.schema import TrainingConfig


def wanted(targets: torch.Tensor, classes: int, smoothing: float) -> torch.Tensor:
    """(N,) class indices → (N, classes) distributions. `smoothing` is the share spread evenly over all classes, the
    target's own among them (Szegedy et al. 2016, section 7)."""
    return one_hot(targets, classes).float().mul(1 - smoothing).add(smoothing / classes)


def gamma(training: TrainingConfig) -> float:
    """The focusing parameter; 0 is the cross-entropy."""
    return training.focal_gamma if training.loss == "focal" else 0.0


def by_class(logits: torch.Tensor, distribution: torch.Tensor, gamma: float) -> torch.Tensor:
    """The part that each class has in the loss of each image, (N, classes), of logits and wanted distribution (both N,
    classes): -q · (1 - p)^gamma · log p.

    With gamma 0 its sum is the cross-entropy; else the focal loss (Lin et al. 2017, eq. 4), extended to soft targets
    term by term. Multiplied by weights of the classes it is eq. 5.
    """
    log_p = logits.log_softmax(1)
    terms = -distribution * log_p
    if gamma:
        # Below gamma 1 the slope of the power is infinite where p is 1.
        terms = terms * (1 - log_p.exp()).clamp_min(1e-6) ** gamma
    return terms


def distance(logits: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """(N,): T² · KL(teacher_T ‖ student_T) of the student's logits and the teacher's probabilities (both N, classes),
    each softened by the temperature T. T² keeps the gradient's size (Hinton, Vinyals and Dean 2015, section 2)."""
    soft = (teacher.clamp_min(1e-12).log() / temperature).softmax(1)
    apart = kl_div((logits / temperature).log_softmax(1), soft, reduction="none").sum(1)
    return temperature**2 * apart
