"""One optimizer step. Training, the benchmark and the memory prediction share it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from timm.utils import ModelEmaV3  # type: ignore[attr-defined]
from torch import nn

from trainer.augment import mixing
from trainer.base.brief import in_brief
from trainer.base.errors import ConfigError
from trainer.config.schema import Config, TrainingConfig
from trainer.models import build, losses, optimizers
from trainer.training import teachers as teaching
from trainer.training.teachers import Teacher


@dataclass
class Step:
    """The objects of an optimizer step, without the run around it."""

    config: Config
    fabric: Fabric
    net: Any
    """The network. Fabric has set up network and optimizer."""
    optimizer: Any
    class_weights: torch.Tensor
    """(classes,)"""
    steps_per_epoch: int
    loss_sum: torch.Tensor
    """Loss sum of the images since the last validation. It stays on the device, so that no step waits for it."""
    ema: ModelEmaV3 | None = None
    teachers: Sequence[Teacher] = ()
    lap: Callable[[str], None] = lambda part: None
    """The step calls it at the end of each part, for time measurements."""

    @property
    def total_steps(self) -> int:
        return total_steps(self.config, self.steps_per_epoch)

    @property
    def normalized(self) -> nn.Module:
        """The module behind Fabric's wrapper (and DistributedDataParallel's, which Fabric looks through)."""
        return self.net.module  # type: ignore[no-any-return]

    @property
    def scored(self) -> Any:
        """The model for validation and checkpoints: the moving average of `normalized`, or `normalized` itself."""
        return self.ema.module if self.ema is not None else self.normalized

    @property
    def bare(self) -> nn.Module:
        """The timm model itself."""
        return self.normalized.model  # type: ignore[return-value]

    @property
    def scaler(self) -> Any:
        """The gradient scaler for fp16. None for other precisions."""
        return getattr(self.fabric.strategy.precision, "scaler", None)


def total_steps(config: Config, steps_per_epoch: int) -> int:
    """The optimizer steps of a whole run."""
    total = config.training.epochs * steps_per_epoch
    return min(total, config.training.max_steps or total)


LONGEST_WARMUP = 0.2
"""Largest share of a run for its warm-up."""
SHORT_WARMUP = 0.1
"""The share instead of a larger one: a short run must have time to reach the end of its schedule."""


def warmup_steps(training: TrainingConfig, steps_per_epoch: int, total: int) -> float:
    """The steps of the warm-up: those of `training.warmup_epochs`, or a tenth of the `total` if they are more than a
    fifth of it."""
    asked = training.warmup_epochs * steps_per_epoch
    return asked if asked <= LONGEST_WARMUP * total else SHORT_WARMUP * total


def learning_rate(training: TrainingConfig, number: int, steps_per_epoch: int, total: int) -> float:
    """The learning rate of optimizer step `number` (from 0) of `total`: linear warm-up, then constant, or cosine decay
    to min_lr (Loshchilov and Hutter 2017, eq. 5, one period)."""
    warmup = warmup_steps(training, steps_per_epoch, total)
    if number < warmup:
        return training.lr * (training.warmup_start + (1 - training.warmup_start) * number / warmup)
    if training.scheduler == "constant":
        return training.lr
    done = min(1.0, (number - warmup) / max(1, total - warmup))
    return training.min_lr + (training.lr - training.min_lr) * (1 + math.cos(math.pi * done)) / 2


def network(config: Config, classes: int, channels_last: bool, load_weights: bool = True) -> build.Normalized:
    """The network of the configuration on the CPU. Its weights are random if no pretrained weights are loaded.

    Raises ConfigError for an unknown model or a wrong image size."""
    mean, std = build.mean_std(config.model.name)
    bare = build.create(config.model, classes, config.data.img_size, load_weights=load_weights)
    if config.training.grad_checkpointing:
        build.checkpoint_gradients(bare, config.model.name)
    return build.Normalized(bare, mean, std, channels_last)


def learner(
    config: Config,
    classes: int,
    on: torch.device,
    precision: str,
    channels_last: bool,
    state: dict[str, Any] | None = None,
) -> tuple[build.Normalized, torch.optim.Optimizer]:
    """The network and its optimizer on the device `on`: new, or with the state of a last.ckpt.

    The network moves to the device first, because an optimizer loads its state to the device of the weights.
    Raises ConfigError if the checkpoint has another model.
    """
    torch.manual_seed(config.seed)
    net = network(config, classes, channels_last, load_weights=state is None).to(on)
    optimizer = optimizers.create(config.training, net, precision)
    if state is not None:
        _restore(net, optimizer, state)
    return net, optimizer


def _restore(net: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    try:
        net.load_state_dict(state["model"])
        for old, new in zip(state["optimizer"]["param_groups"], optimizer.param_groups, strict=False):
            old["fused"] = new["fused"]  # another device or precision may need another implementation
            old["weight_decay"] = new["weight_decay"]
        optimizer.load_state_dict(state["optimizer"])
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, KeyError) as error:
        raise ConfigError(f"resume: the checkpoint has another model: {in_brief(str(error), 200)}") from None


def set_up(
    config: Config,
    fabric: Fabric,
    net: build.Normalized,
    optimizer: torch.optim.Optimizer,
    class_weights: Sequence[float],
    steps_per_epoch: int,
    teachers: Sequence[Teacher] = (),
    state: dict[str, Any] | None = None,
) -> Step:
    """A step with `net` and `optimizer` on Fabric's devices. `state` is that of a last.ckpt, with scaler and moving
    average, or None."""
    wrapped, wrapped_optimizer = fabric.setup(net, optimizer)
    loss_sum = state["progress"]["loss_sum"] if state is not None else 0.0
    step = Step(
        config=config,
        fabric=fabric,
        net=wrapped,
        optimizer=wrapped_optimizer,
        class_weights=torch.tensor(class_weights, device=fabric.device),
        steps_per_epoch=steps_per_epoch,
        loss_sum=torch.tensor(loss_sum, device=fabric.device),
        ema=_average(config.training, wrapped.module, state),
        teachers=teachers,
    )
    if state is not None and step.scaler is not None and state.get("scaler"):
        step.scaler.load_state_dict(state["scaler"])
    return step


def _average(training: TrainingConfig, net: nn.Module, state: dict[str, Any] | None) -> ModelEmaV3 | None:
    """The moving average of the weights. As in timm its decay is 1 - (1 + step)^(-2/3), up to `training.ema_decay`. So
    the first, random weights do not affect a short run."""
    if training.ema_decay is None:
        return None
    average = ModelEmaV3(net, decay=training.ema_decay, use_warmup=True)
    if state is not None and state.get("ema") is not None:
        average.module.load_state_dict(state["ema"])
    return average


def take(step: Step, batches: Sequence[Any], number: int) -> int:
    """Take optimizer step `number` (from 0) over these micro-batches. Returns the number of images in this process.

    The loss is the sum over all images of the step, divided by their number. So it does not depend on the size of the
    micro-batches.
    """
    config, training, fabric = step.config, step.config.training, step.fabric
    size = sum(len(batch[0]) for batch in batches)
    usual = (training.micro_batch or training.batch_size) // fabric.world_size
    mix = mixing.draw(training, config.seed, number, config.data.img_size)
    torch.manual_seed((config.seed * 1_000_003 + number) * 1024 + fabric.global_rank)
    for count, batch in enumerate(batches, start=1):
        images, wanted = _inputs(step, batch, batches[count % len(batches)], mix)
        step.lap("transfer")
        alone = len(images) == 1 and usual > 1  # the last batch of an epoch
        with (
            fabric.no_backward_sync(step.net, enabled=count < len(batches) and fabric.world_size > 1),
            build.stored_statistics(step.bare, alone),
        ):
            loss = _loss(step, images, wanted) / size
            step.lap("forward")
            with build.frozen_statistics(step.bare, training.grad_checkpointing):
                fabric.backward(loss)
            step.lap("backward")
    if training.gradient_clip is not None:
        # fp16's scaler skips infinite gradients, and validation finds an infinite loss. A check here would wait for the
        # device.
        fabric.clip_gradients(step.net, step.optimizer, max_norm=training.gradient_clip, error_if_nonfinite=False)
    lr = learning_rate(training, number, step.steps_per_epoch, step.total_steps)
    for parameters in step.optimizer.param_groups:
        parameters["lr"] = lr * parameters.get("lr_scale", 1.0)
    step.optimizer.step()
    step.optimizer.zero_grad()
    step.lap("optimizer")
    if step.ema is not None:
        step.ema.update(step.normalized, number)
    return size


def _inputs(step: Step, batch: Any, following: Any, mix: mixing.Mix | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 3, H, W) uint8 and target distributions (N, classes) of a micro-batch, on the device. The mixing
    partner of the last image is the first image of the `following` micro-batch."""
    on, classes, smoothing = step.fabric.device, len(step.class_weights), step.config.training.label_smoothing
    images = batch[0].to(on, non_blocking=True)
    wanted = losses.wanted(batch[1].to(on, non_blocking=True), classes, smoothing)
    if mix is None:
        return images, wanted
    next_image, next_target = (part[:1].to(on, non_blocking=True) for part in following[:2])
    partner = losses.wanted(next_target, classes, smoothing)
    images = mixing.images(mix, images, torch.cat([images[1:], next_image]))
    return images, mix.share * wanted + (1 - mix.share) * torch.cat([wanted[1:], partner])


def _loss(step: Step, images: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The sum of the losses of the images. The log shows the loss against the labels without class weights."""
    training = step.config.training
    try:
        logits = step.net(images)
    except ValueError as error:
        if "Expected more than 1 value per channel" not in str(error):
            raise
        raise ConfigError(
            f"{step.config.model.name} cannot train on one image of {step.config.data.img_size} px at a time: its "
            "batch normalisation needs two values; use a larger training.micro_batch or data.img_size"
        ) from None
    terms = losses.by_class(logits, wanted, training)
    step.loss_sum += terms.detach().sum()
    loss = (terms * step.class_weights).sum()
    if step.teachers:
        with step.fabric.autocast():
            taught = teaching.probabilities(step.teachers, images)
        apart = losses.distance(logits, taught, training.distill_temperature).sum()
        loss = (1 - training.distill_weight) * loss + training.distill_weight * apart
    return loss
