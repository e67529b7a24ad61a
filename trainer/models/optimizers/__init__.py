"""Optimizers: one file per value of `training.optimizer`. A file has

    def create(groups, training, fused) -> torch.optim.Optimizer

`groups` are parameter groups, each with a weight decay and, with layer decay, an `lr_scale`. `training` is that section
of the configuration. `fused`: update all weights in one kernel.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay  # type: ignore[attr-defined]
from torch import nn

from trainer.base.errors import ConfigError
from trainer.config.schema import TrainingConfig
from trainer.models.build import Normalized

Groups = list[dict[str, Any]]


def create(training: TrainingConfig, net: nn.Module, precision: str = "fp32") -> torch.optim.Optimizer:
    """The optimizer of the configuration. As in timm, biases and normalisation layers have no weight decay.

    `precision` is bf16, fp16 or fp32. With `training.layer_decay` each group has an `lr_scale`: its share of the
    configuration's learning rate. Raises ConfigError if timm does not know the layers of the model.
    """
    module = importlib.import_module(f"{__name__}.{training.optimizer}")
    optimizer: torch.optim.Optimizer = module.create(_groups(training, net), training, fused(training, precision))
    return optimizer


def _groups(training: TrainingConfig, net: nn.Module) -> Groups:
    bare: Any = net.model if isinstance(net, Normalized) else net  # timm asks the model itself for its layers
    no_decay = bare.no_weight_decay() if hasattr(bare, "no_weight_decay") else ()
    some = training.weight_decay or 1.0  # without a decay timm makes other groups, and a resume could not change it
    if training.layer_decay is None:
        groups: Groups = param_groups_weight_decay(bare, some, no_weight_decay_list=no_decay)
    else:
        groups = param_groups_layer_decay(bare, some, no_weight_decay_list=no_decay, layer_decay=training.layer_decay)
        if len({group["lr_scale"] for group in groups}) == 1:
            raise ConfigError(
                "training.layer_decay: timm does not know the layers of this model; remove training.layer_decay"
            )
    for group in groups:
        group["weight_decay"] = training.weight_decay if group["weight_decay"] else 0.0
    return groups


def fused(training: TrainingConfig, precision: str) -> bool:
    """Whether the optimizer updates all weights in one kernel. torch has such kernels for CUDA, MPS and CPUs.

    False for fp16 with `training.gradient_clip`: the kernel would divide by the loss scale after the clipping.
    """
    return not (precision == "fp16" and training.gradient_clip is not None)
