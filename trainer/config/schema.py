"""The keys of the configuration with types and defaults. `train --help` shows the text below each key."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trainer.base.figures import DEFAULT_MONITOR


@dataclass
class ModelConfig:
    name: str = "resnet34"
    """Any model name of timm."""
    pretrained: bool = True
    """Start from timm's ImageNet weights (hub cache, else network)."""
    weights: str | None = None
    """Start from this local .safetensors file or state dict. null: no file."""
    drop_path: float | None = None
    """Highest stochastic depth rate. null: the model's own."""


@dataclass
class DataConfig:
    root: str | None = None
    """The data folder. null: $DATA_DIR, else ./data."""
    format: str = "auto"
    """Layout of the data folder. csv: train.csv and train/. imagefolder: train/<class>/."""
    img_size: int = 768
    """Side of the square input image, in pixels."""
    val_fraction: float = 0.2
    """Share of the training images for validation."""
    split_seed: int = 42
    """Seed of the validation split. It does not follow `seed`, so all runs share one split."""
    folds: int | None = None
    """Number of folds. One fold is for validation, and val_fraction has no effect. null: no folds."""
    fold: int = 0
    """The fold for validation. The first is 0."""
    group_column: str = "group"
    """Column of train.csv. Images of one group stay on one side of the split."""
    allowed_leaks: list[Any] = field(default_factory=list)
    """IDs of images that may have a duplicate on the other side of the split."""
    train_transforms: list[Any] = field(default_factory=list)
    """Albumentations transforms for training, in order: `- Name: {argument: value}`."""
    val_transforms: list[Any] = field(default_factory=list)
    """Albumentations transforms for validation and prediction."""
    fast: bool = True
    """Decode images at about img_size, cache them, and merge transforms. false: run every step as written."""
    cache_gb: float | None = None
    """Disk limit for all decoded images in $CACHE_DIR, in GB. null: half of the free space. 0: no cache."""
    val_corruption: str = "document"
    """Also score corrupted copies of the validation images. document: rotation, perspective, noise, blur and others."""


@dataclass
class TrainingConfig:
    epochs: int = 50
    """Largest number of passes over the training images."""
    batch_size: int = 16
    """Images per optimizer step, over all devices."""
    micro_batch: int | None = None
    """Images per forward pass, over all devices. Gradients accumulate to batch_size. null: batch_size."""
    num_workers: int | None = None
    """Image loading processes per device. null: cores − 1 with a GPU (at most 16), cores/8 on a CPU."""
    pin_memory: bool = True
    """Load batches into pinned memory, for faster copies to a GPU."""
    drop_last: bool = True
    """Skip the last, smaller batch of an epoch."""
    optimizer: str = "adamw"
    """The optimizer."""
    lr: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 0.05
    """Weight decay, except of biases and norms. With adamw it is decoupled from the gradient."""
    scheduler: str = "cosine"
    """Learning rate schedule after the warm-up."""
    warmup_epochs: float = 5
    """Epochs of linear warm-up to lr. At most a fifth of the run; more counts as a tenth of it."""
    warmup_start: float = 0.01
    """Warm-up starts at this share of lr."""
    min_lr: float = 1e-6
    """Learning rate at the end of the cosine schedule."""
    gradient_clip: float | None = None
    """Largest gradient norm. null: no clipping."""
    class_weights: bool = True
    """Weight the loss of a class by the inverse of its image count."""
    precision: str = "auto"
    """Number format of training. auto: bf16 or fp16 if the device is fast with it, else fp32."""
    channels_last: bool | None = None
    """Channels-last memory layout. null: if the device is faster with it."""
    compile: bool | None = None
    """Use torch.compile. null: only on a GPU, if the run is long enough to gain from it."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass: much less memory, slower steps."""
    loss: str = "cross_entropy"
    """Loss function. focal: easy images count less."""
    focal_gamma: float = 2.0
    """Focal loss exponent γ. 0 is cross-entropy."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes."""
    mixup: float = 0.0
    """Blend pairs of images. The mixing ratio is drawn from Beta(mixup, mixup). 0: off."""
    cutmix: float = 0.0
    """Paste a rectangle of one image into another. The area is drawn from Beta(cutmix, cutmix). 0: off."""
    mix_probability: float = 0.5
    """Share of the optimizer steps that use mixup or cutmix."""
    balanced_sampling: bool = False
    """Sample all classes equally often. Needs class_weights=false, or rare classes would count twice."""
    ema_decay: float | None = None
    """Decay per step of the weights' moving average, which is then validated and saved. null: no average."""
    layer_decay: float | None = None
    """Learning rate of a layer group, divided by that of the next group towards the head. null: 1."""
    teachers: list[Any] = field(default_factory=list)
    """best.ckpt or ensemble.json files. The model also learns their mean probabilities (distillation)."""
    distill_weight: float = 0.5
    """Share of the distillation loss in the whole loss."""
    distill_temperature: float = 2.0
    """Softmax temperature of the distillation loss, for student and teachers."""
    monitor: str = DEFAULT_MONITOR
    """Metric for the best checkpoint and for early stopping. _mean: the mean of clean and corrupted images."""
    patience: int = 10
    """Stop after this many epochs without a better monitor value. 0: never."""
    validate_per_epoch: int = 1
    """Validations per epoch."""
    keep_top: int = 3
    """Number of best checkpoints to keep. best.ckpt is the first, the others are in top/."""
    max_steps: int | None = None
    """Stop after this many optimizer steps. null: no limit."""


@dataclass
class Config:
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    seed: int = 42
    """Seed of initial weights, image order and augmentation."""
    device: str = "auto"
    """The device. auto: the first available of cuda, mps, cpu."""
    devices: int | None = None
    """Number of devices. null: all visible GPUs, or the one MPS device or CPU."""
    resume: str | None = None
    """A last.ckpt to continue from. auto: last.ckpt in $RUN_DIR, if it exists. null: a new run."""
    choices: dict[str, str] = field(default_factory=dict)
    """The chosen name of each group. `compose` sets it. With model.name=NAME the model is NAME."""
