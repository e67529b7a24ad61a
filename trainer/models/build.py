"""Build any timm model, with normalisation of the pixels and gradient checkpointing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any

import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainer.base.brief import in_brief
from trainer.base.errors import ConfigError, nearest
from trainer.config.schema import ModelConfig
from trainer.models import pretrained


def check_name(name: str) -> None:
    """Raises ConfigError with the nearest name if timm does not have the model."""
    if not timm.is_model(name):
        raise ConfigError(
            f"model.name={name}: timm {timm.__version__} does not have this model; {nearest(name, timm.list_models())}"
        )


def mean_std(name: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """The mean and standard deviation of the pretraining, on the scale 0 to 1."""
    cfg = timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
    return tuple(cfg.mean), tuple(cfg.std)  # type: ignore[return-value]


def size_arguments(name: str, img_size: int) -> dict[str, Any]:
    """timm's arguments for images of `img_size` pixels. Empty if the model takes any size."""
    cfg = timm.get_pretrained_cfg(name)
    return {"img_size": img_size} if cfg is not None and cfg.fixed_input_size else {}


def create(config: ModelConfig, classes: int, img_size: int, load_weights: bool = True) -> nn.Module:
    """The model with a classifier of `classes` outputs for square images of `img_size` pixels, on the CPU.

    Without `load_weights` the weights are random; the caller then loads a checkpoint.

    Raises ConfigError for an unknown model, a wrong size, and for missing or wrong weights.
    """
    check_name(config.name)
    sized = size_arguments(config.name, img_size)
    depth: dict[str, Any] = {} if config.drop_path is None else {"drop_path_rate": config.drop_path}
    no_depth = f"model.drop_path={config.drop_path}: {config.name} has no stochastic depth; remove model.drop_path"

    def build(**more: Any) -> nn.Module:
        try:
            built: nn.Module = timm.create_model(config.name, num_classes=classes, **sized, **depth, **more)
        except (AssertionError, ValueError, TypeError) as error:
            if "drop_path_rate" in str(error):
                raise ConfigError(no_depth) from None
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(
                f"model.name={config.name} cannot be built for data.img_size={img_size}: {reason}"
            ) from None
        if config.drop_path and not any("droppath" in type(m).__name__.lower() for m in built.modules()):
            raise ConfigError(no_depth)
        return built

    if not load_weights:
        return build()
    if config.weights:
        model = build()
        pretrained.load_file(model, Path(config.weights).expanduser())
        return model
    if config.pretrained:
        stored = pretrained.stored_file(config.name)
        if stored is None:
            return pretrained.from_hub(config, build)
        model = build()
        pretrained.load_file(model, stored)
        return model
    return build()


def check(config: ModelConfig, img_size: int, grad_checkpointing: bool, load_weights: bool) -> None:
    """Raises the errors of `create` and `checkpoint_gradients` that do not depend on the classes, without a download.
    Takes little time, so that a run can say them before it reads its images."""
    try:
        with torch.device("meta"):
            bare = create(config, 2, img_size, load_weights=False)
    except Exception:  # some models cannot be built without data: the CPU decides
        bare = create(config, 2, img_size, load_weights=False)
    if grad_checkpointing:
        checkpoint_gradients(bare, config.name)
    if load_weights and (config.weights or (config.pretrained and pretrained.stored_file(config.name))):
        create(config, 2, img_size)


def restore(config: ModelConfig, classes: int, img_size: int, state_dict: dict[str, torch.Tensor]) -> nn.Module:
    """The model with a checkpoint's weights, on the CPU. Raises ConfigError if the weights do not fit."""
    net = create(config, classes, img_size, load_weights=False)
    try:
        net.load_state_dict(state_dict)
    except RuntimeError as error:
        raise ConfigError(f"the checkpoint's weights do not fit its model: {in_brief(str(error), 200)}") from None
    return net


FEW_CHANNELS = 4
"""Convolutions with at most this number of input channels for an output are evaluated in float32: those on the pixels
and the depthwise ones. They sum few products, so the rounding of their weights does not average out, and a white page
has the same error at every pixel."""


def _convolution(self: nn.Conv2d, images: torch.Tensor) -> torch.Tensor:
    """The convolution, outside autocast unless it trains: in training mode (also without gradients: the first pass of a
    block whose gradients are checkpointed), or in another mode with gradients."""
    convolve, kind = type(self).forward, images.device.type
    if self.training or torch.is_grad_enabled() or not torch.is_autocast_enabled(kind):
        return convolve(self, images)
    with torch.autocast(kind, enabled=False):
        return convolve(self, images.float())


def evaluate_in_float32(model: nn.Module) -> None:
    """Make the convolutions with `FEW_CHANNELS` compute in float32 under autocast, but not in training mode.

    Without it, a page can get another class in bf16 although the model is sure of it. Figures: docs/export.md.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels // module.groups <= FEW_CHANNELS:
            module.forward = MethodType(_convolution, module)  # type: ignore[method-assign]


class Normalized(nn.Module):
    """`model` with normalisation of uint8 images on the device. Images are copied to the device as bytes. In evaluation
    under autocast some of its convolutions are in float32, see `evaluate_in_float32`."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], channels_last: bool) -> None:
        super().__init__()
        evaluate_in_float32(model)
        self.model = model.to(memory_format=torch.channels_last) if channels_last else model
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (N, 3, H, W) → float32 logits (N, classes)."""
        values = images.to(memory_format=self.memory_format).float().sub(self.mean).div(self.std)
        logits: torch.Tensor = self.model(values)
        return logits.float()


def checkpoint_gradients(model: nn.Module, name: str) -> None:
    """Turn on gradient checkpointing: keep few activations and recompute the others per block (Chen et al. 2016).

    Raises ConfigError if the model does not support it.
    """
    try:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError):
        raise ConfigError(f"training.grad_checkpointing=true: timm's {name} does not support it; remove it") from None


@contextmanager
def frozen_statistics(model: nn.Module, enabled: bool) -> Iterator[None]:
    """Make batch normalisation count a batch only once, although checkpointed blocks run twice."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats] if enabled else []
    settings = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, batches in settings:
            norm.momentum, norm.num_batches_tracked = momentum, batches


@contextmanager
def stored_statistics(model: nn.Module, enabled: bool) -> Iterator[None]:
    """Make batch normalisation use its stored statistics, as in validation: one image alone has none to speak of."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training] if enabled else []
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()
