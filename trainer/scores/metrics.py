"""Figures of a classifier from its probabilities."""

from __future__ import annotations

import torch
from torch.nn.functional import nll_loss
from torchmetrics.functional.classification import multiclass_f1_score


def scores(probabilities: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    """val_f1 (macro over the classes that occur in targets or predictions, as scikit-learn has it), val_accuracy and
    val_loss (mean cross-entropy, nats) of (N, classes) probabilities against (N,) targets."""
    predicted = probabilities.argmax(1)
    f1 = multiclass_f1_score(predicted, targets, num_classes=probabilities.shape[1], average="macro")
    loss = nll_loss(probabilities.clamp_min(1e-12).log(), targets)
    return {
        "val_f1": round(float(f1), 6),
        "val_accuracy": round(float((predicted == targets).float().mean()), 6),
        "val_loss": round(float(loss), 6),
    }


def validation(clean: torch.Tensor, corrupted: torch.Tensor | None, targets: torch.Tensor) -> dict[str, float]:
    """`scores` of the clean copies and, where there are corrupted ones (N, classes), val_f1_corrupted,
    val_accuracy_corrupted and val_f1_mean: the mean of both macro F1."""
    figures = scores(clean, targets)
    if corrupted is not None:
        worse = scores(corrupted, targets)
        figures["val_f1_corrupted"] = worse["val_f1"]
        figures["val_accuracy_corrupted"] = worse["val_accuracy"]
        figures["val_f1_mean"] = round((figures["val_f1"] + worse["val_f1"]) / 2, 6)
    return figures


def score(figures: dict[str, float], monitor: str) -> float:
    """The figure that `training.monitor` names; where nothing was corrupted the mean is val_f1."""
    return figures.get(monitor, figures["val_f1"])
