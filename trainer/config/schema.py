"""The configuration's keys, their types and defaults, and what each means: `train --help` shows these texts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trainer.base.figures import DEFAULT_MONITOR


@dataclass
class ModelConfig:
    name: str = "resnet34"
    """Any name that timm knows."""
    pretrained: bool = True
    """Start from timm's ImageNet weights: from the cache of the model hub, else over the network."""
    weights: str | None = None
    """A local .safetensors file or state dict to start from instead. Needs no network."""
    drop_path: float | None = None
    """Highest rate of stochastic depth: the share of images for which a block is left out. null: the model's own."""


@dataclass
class DataConfig:
    root: str | None = None
    """The data folder; by default $DATA_DIR, else ./data."""
    format: str = "auto"
    """csv (train.csv, train/, …), imagefolder (train/<class>/…), or auto."""
    img_size: int = 768
    """Side of the square image that the model sees, in pixels."""
    val_fraction: float = 0.2
    """Share of the training images that is held out for validation."""
    split_seed: int = 42
    """Seed of that split. Not `seed`: every run of a submission shares one split."""
    folds: int | None = None
    """Cut the training images into so many folds of which one is held out, in place of val_fraction. null: no folds."""
    fold: int = 0
    """Which of the folds is held out, from 0: an axis of a matrix."""
    group_column: str = "group"
    """A column of train.csv whose equal values stay on one side of the split. Used where it exists."""
    allowed_leaks: list[Any] = field(default_factory=list)
    """IDs of training images that may have a duplicate on the other side of the split."""
    train_transforms: list[Any] = field(default_factory=list)
    """Albumentations, in order: `- Name: {argument: value}`."""
    val_transforms: list[Any] = field(default_factory=list)
    """The same for validation and prediction."""
    fast: bool = True
    """Decode no larger than img_size, once for all runs; merge transforms. false: every step as it is written."""
    cache_gb: float | None = None
    """Disk for decoded images under $CACHE_DIR, in all (10^9 bytes). null: half of what is free. 0: none are kept."""
    val_corruption: str = "document"
    """Score a corrupted copy of the validation images too: document (turned, tilted, noisy, blurred, …), or none."""


@dataclass
class TrainingConfig:
    epochs: int = 50
    """How often the training images are gone through, at most."""
    batch_size: int = 16
    """Images per optimiser step, over all devices."""
    micro_batch: int | None = None
    """Images per forward pass, over all devices: gradients accumulate up to batch_size. null: batch_size."""
    num_workers: int | None = None
    """Processes that load images, per device. Changes no result. null: as the cores that the run may use repay."""
    pin_memory: bool = True
    """Load batches into page-locked memory, from which a GPU copies faster."""
    drop_last: bool = True
    """Leave out the last, smaller batch of an epoch."""
    optimizer: str = "adamw"
    lr: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 0.05
    """Decay of the weights, decoupled from the gradient with adamw; biases and norms have none."""
    scheduler: str = "cosine"
    """cosine or constant, per step, after the warm-up."""
    warmup_epochs: float = 5
    """Epochs in which the learning rate rises to lr."""
    warmup_start: float = 0.01
    """The warm-up starts at this share of lr."""
    min_lr: float = 1e-6
    """Learning rate at the end of the cosine."""
    gradient_clip: float | None = None
    """Largest norm of the gradient. null: no limit."""
    class_weights: bool = True
    """Weigh the loss of a class by the inverse of its count."""
    precision: str = "auto"
    """bf16, fp16, fp32, or auto: what the device gains from."""
    channels_last: bool | None = None
    """Memory layout. null: where the device gains from it."""
    compile: bool | None = None
    """Compile the model for the device (torch.compile). null: on a GPU, where its steps repay the time it takes."""
    grad_checkpointing: bool = False
    """Compute activations anew for the backward pass: much less memory, and slower steps."""
    loss: str = "cross_entropy"
    """cross_entropy, or focal: what is already right counts less."""
    focal_gamma: float = 2.0
    """How much less."""
    label_smoothing: float = 0.0
    """Share of the target that is spread evenly over all classes."""
    mixup: float = 0.0
    """Blend images in pairs, by a share drawn from Beta(mixup, mixup). 0: never."""
    cutmix: float = 0.0
    """Paste a rectangle of one image into another, of an area from Beta(cutmix, cutmix). 0: never."""
    mix_probability: float = 0.5
    """Share of the optimiser steps that are mixed, where mixup or cutmix is on."""
    balanced_sampling: bool = False
    """Draw every class equally often. Say class_weights=false with it, or rare classes count twice."""
    ema_decay: float | None = None
    """Validate and keep a moving average of the weights that keeps this share of itself each step. null: no average."""
    layer_decay: float | None = None
    """Learning rate of each group of layers as a share of that of the next one towards the head. null: one for all."""
    teachers: list[Any] = field(default_factory=list)
    """best.ckpt or ensemble.json files whose mean probabilities the model learns too (knowledge distillation)."""
    distill_weight: float = 0.5
    """Share of the loss that is the distance from the teachers."""
    distill_temperature: float = 2.0
    """Softens both sides of that distance."""
    monitor: str = DEFAULT_MONITOR
    """Figure that stops a run early and chooses its checkpoint: of clean images, of corrupted ones, or the mean of the
    two, as with val_f1, val_f1_corrupted and val_f1_mean."""
    patience: int = 10
    """Epochs without a better figure after which the run stops early. 0: never."""
    validate_per_epoch: int = 1
    """Validations in each epoch."""
    keep_top: int = 3
    """How many of the best checkpoints stay, best.ckpt among them: the others lie in top/."""
    max_steps: int | None = None
    """Stop after this many optimiser steps. null: epochs alone decide."""


@dataclass
class Config:
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    seed: int = 42
    """Seed of weights, order and augmentation."""
    device: str = "auto"
    """cuda, mps, cpu, or auto: the first of them that is there."""
    devices: int | None = None
    """How many devices to train on. null: every visible GPU, or the one MPS device or CPU."""
    resume: str | None = None
    """A last.ckpt to continue from, or auto: the run directory's own, if there is one."""
    choices: dict[str, str] = field(default_factory=dict)
    """The names chosen for the groups; filled in by `compose`."""
