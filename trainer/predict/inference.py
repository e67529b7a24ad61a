"""Run trained models over images. Each image is decoded and prepared once for all models and views."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.utils.data import DataLoader

from trainer.augment import views as tta
from trainer.augment.pipeline import Augmentation
from trainer.base import cores
from trainer.base.activity import counting
from trainer.data import sampling
from trainer.data.dataset import ImageDataset, collate
from trainer.data.rows import Table
from trainer.data.table import content_fingerprint
from trainer.images import decode
from trainer.models import build
from trainer.models.checkpoint import Checkpoint
from trainer.scores.calibration import tempered
from trainer.training import device
from trainer.training.full_memory import memory_errors
from trainer.training.stop import ignore_in_worker

TOGETHER_BYTES = 4 * 2**30
"""Largest number of weights on the device. More models need another pass over the images."""
UNSURE = 0.2
"""A page that was predicted in bf16 or fp16 is predicted again in float32 if its two largest probabilities differ by
less. Rounding changes a probability by up to 0.09, so the difference of two by less than this (docs/export.md)."""


@dataclass(frozen=True)
class Options:
    """How to run models over images. `batch_size` None: as in training. `num_workers` None: from the number of cores.
    `tta` None: the views of the ensemble; none for a checkpoint. Raises ConfigError for unknown views."""

    device: str = "auto"
    precision: str = "auto"
    batch_size: int | None = None
    num_workers: int | None = None
    tta: str | None = None
    skip_unreadable: bool = False
    """Leave out test images that cannot be read."""

    def __post_init__(self) -> None:
        tta.views(self.tta or "none")

    @property
    def real_precision(self) -> str:
        """bf16, fp16 or fp32. Raises ConfigError if the device does not support it."""
        return device.evaluation_precision(self.precision, device.choose(self.device))


def probabilities(members: Sequence[Checkpoint], table: Table, options: Options) -> list[torch.Tensor]:
    """Each checkpoint's calibrated probabilities (N, its classes) for the images of `table`: the mean over the views.

    Raises ConfigError, DataError or DeviceMemoryError.
    """
    views = tta.views(options.tta or "none")
    chosen = device.choose(options.device)
    fabric = device.fabric(chosen, options.real_precision)
    device.limit_memory(chosen)
    device.name_fallbacks(chosen)
    by_position: dict[int, torch.Tensor] = {}
    for group in _groups(members):
        sharing = [members[position] for position in group]
        by_position |= zip(group, _pass(sharing, table, options, views, fabric, chosen), strict=True)
    return [tempered(by_position[position], member.temperature) for position, member in enumerate(members)]


def _groups(members: Sequence[Checkpoint]) -> list[list[int]]:
    """Positions of members that share a pass: with the same preprocessing, and together not too large."""
    groups: dict[str, list[list[int]]] = {}
    room: dict[str, int] = {}
    for position, member in enumerate(members):
        seen = {key: member.preprocessing.get(key) for key in ("img_size", "transforms", "fast")}
        key = json.dumps(seen, sort_keys=True)
        size = sum(tensor.nbytes for tensor in member.state_dict.values())
        if room.get(key, 0) < size:
            groups.setdefault(key, []).append([])
            room[key] = TOGETHER_BYTES
        groups[key][-1].append(position)
        room[key] -= size
    return [group for same in groups.values() for group in same]


def _pass(
    members: Sequence[Checkpoint],
    table: Table,
    options: Options,
    views: Sequence[tta.View],
    fabric: Fabric,
    chosen: str,
) -> list[torch.Tensor]:
    """One pass over the images for members with the same preprocessing."""
    configs = [member.settings for member in members]
    size = members[0].preprocessing["img_size"]
    # Random numbers of a validation transform depend only on the image, so a member's prediction does not depend on the
    # other members.
    prepare = Augmentation(members[0].preprocessing["transforms"], "data.val_transforms", size)
    sizes = [config.training.micro_batch or config.training.batch_size for config in configs]
    workers = cores.workers(options.num_workers, chosen)
    source = _images(members[0], table)
    batch = options.batch_size or min(sizes)
    loader: DataLoader[Any] = DataLoader(
        ImageDataset(table, prepare, source),
        batch_size=batch,
        sampler=sampling.EpochSampler(range(len(table)), None, len(table)),  # (epoch, row) for the dataset
        num_workers=workers,
        worker_init_fn=ignore_in_worker if workers else None,
        collate_fn=collate,
    )
    names = ", ".join(dict.fromkeys(config.model.name for config in configs))
    parts: list[list[torch.Tensor]] = [[] for _ in members]
    with memory_errors(configs[0], predicting=batch), torch.inference_mode(), device.full_float32():
        nets = [fabric.setup_module(_net(member, chosen)).eval() for member in members]
        for images, _, _ in counting(loader, f"{names}: predicting", len(loader)):
            images = images.to(fabric.device)
            predicted = _predicted(nets, images, views)
            if options.real_precision != "fp32":
                for net, found in zip(nets, predicted, strict=True):
                    # In parts, since float32 needs twice the memory, and without the wrapper, which turns autocast on.
                    for rows in torch.split(_unsure(found), max(1, batch // 2)):
                        if len(rows):
                            (found[rows],) = _predicted([net.module], images[rows], views)
            for part, found in zip(parts, predicted, strict=True):
                part.append(found.cpu())
    source.close()
    return [torch.cat(part) for part in parts]


def _predicted(nets: Sequence[nn.Module], images: torch.Tensor, views: Sequence[tta.View]) -> list[torch.Tensor]:
    """Each model's probabilities (N, its classes): the mean over the views."""
    sums: list[torch.Tensor] = []
    for view in views:
        seen = view(images)
        own = [net(seen).softmax(1) for net in nets]
        sums = [total + more for total, more in zip(sums, own, strict=True)] if sums else own
    return [total / len(views) for total in sums]


def _unsure(probabilities: torch.Tensor) -> torch.Tensor:
    """The rows whose two largest probabilities differ by less than `UNSURE`."""
    largest = probabilities.topk(min(2, probabilities.shape[1]), dim=1).values
    return (largest[:, 0] - largest[:, 1:].sum(1) < UNSURE).nonzero().flatten()


def _images(member: Checkpoint, table: Table) -> decode.Images:
    """The validation view of the checkpoint."""
    if not member.preprocessing.get("fast"):
        return decode.Images(table.paths, None)
    limit = decode.Limit.of(member.preprocessing["transforms"])
    return decode.shared(table.paths, table.ids, limit, None, content_fingerprint(table.paths))


def _net(member: Checkpoint, chosen: str) -> build.Normalized:
    """The checkpoint's model with its normalisation. Raises ConfigError if the weights are for another model."""
    config = member.settings
    bare = build.restore(config.model, len(member.class_names), member.preprocessing["img_size"], member.state_dict)
    mean, std = tuple(member.preprocessing["mean"]), tuple(member.preprocessing["std"])
    return build.Normalized(bare, mean, std, device.channels_last(config.training.channels_last, chosen))
