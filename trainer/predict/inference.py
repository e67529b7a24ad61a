"""Run trained models over images: one decode and one preparation of an image serve every model and view."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from rich.progress import track
from torch.utils.data import DataLoader

from trainer.augment import views as tta
from trainer.augment.pipeline import Augmentation
from trainer.base import cores
from trainer.data import sampling
from trainer.data.dataset import ImageDataset, collate
from trainer.data.table import Table, content_fingerprint
from trainer.images import decode
from trainer.models import build
from trainer.models.checkpoint import Checkpoint
from trainer.scores.calibration import tempered
from trainer.training import device
from trainer.training.stop import ignore_in_worker

TOGETHER_BYTES = 4 * 2**30
"""Weights that may lie on the device at once. Models beyond it take a further pass over the images."""


@dataclass(frozen=True)
class Options:
    """How to run models over images. `batch_size` None: as the checkpoint was trained; `num_workers` None: as the cores
    here repay; `tta` None: as the ensemble was made, and none for a checkpoint. Raises ConfigError for views that there
    are not."""

    device: str = "auto"
    precision: str = "auto"
    batch_size: int | None = None
    num_workers: int | None = None
    tta: str | None = None

    def __post_init__(self) -> None:
        tta.views(self.tta or "none")

    @property
    def real_precision(self) -> str:
        """bf16, fp16 or fp32, whatever was asked for. Raises ConfigError for what the device does not have."""
        return device.precision(self.precision, device.choose(self.device))


def probabilities(members: Sequence[Checkpoint], table: Table, options: Options) -> list[torch.Tensor]:
    """Each checkpoint's probabilities (N, its classes) for the images of `table`: the mean over the views, at its
    temperature.

    Raises ConfigError, DataError or DeviceMemoryError.
    """
    views = tta.views(options.tta or "none")
    chosen = device.choose(options.device)
    fabric = device.fabric(chosen, options.real_precision)
    device.limit_memory(chosen)
    device.name_fallbacks(chosen)
    found: dict[int, torch.Tensor] = {}
    for group in _groups(members):
        sharing = [members[position] for position in group]
        found |= zip(group, _pass(sharing, table, options, views, fabric, chosen), strict=True)
    return [tempered(found[position], member.temperature) for position, member in enumerate(members)]


def _groups(members: Sequence[Checkpoint]) -> list[list[int]]:
    """Positions of the members that can share a pass: of one preprocessing, and small enough together."""
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
    return [group for found in groups.values() for group in found]


def _pass(
    members: Sequence[Checkpoint],
    table: Table,
    options: Options,
    views: Sequence[tta.View],
    fabric: Fabric,
    chosen: str,
) -> list[torch.Tensor]:
    """One pass over the images for members of one preprocessing."""
    configs = [member.settings for member in members]
    size = members[0].preprocessing["img_size"]
    # Whatever a validation transform draws depends on the image alone, so that a member's prediction is the same in
    # every company.
    prepare = Augmentation(members[0].preprocessing["transforms"], "data.val_transforms", size)
    sizes = [config.training.micro_batch or config.training.batch_size for config in configs]
    workers = cores.workers(options.num_workers, chosen)
    source = _images(members[0], table)
    loader: DataLoader[Any] = DataLoader(
        ImageDataset(table, prepare, source),
        batch_size=options.batch_size or min(sizes),
        sampler=sampling.EpochSampler(range(len(table)), None, len(table)),  # (epoch, row), as the dataset takes it
        num_workers=workers,
        worker_init_fn=ignore_in_worker if workers else None,
        collate_fn=collate,
    )
    names = ", ".join(dict.fromkeys(config.model.name for config in configs))
    parts: list[list[torch.Tensor]] = [[] for _ in members]
    with device.memory_errors(configs[0]), torch.inference_mode():
        nets = [fabric.setup_module(_net(member, chosen)).eval() for member in members]
        for images, _, _ in track(loader, f"{names}: predicting", transient=True, disable=not sys.stdout.isatty()):
            images = images.to(fabric.device)
            sums: list[torch.Tensor | None] = [None] * len(nets)
            for view in views:
                seen = view(images)
                for place, net in enumerate(nets):
                    own = net(seen).softmax(1)
                    sums[place] = own if sums[place] is None else sums[place] + own
            for kept, total in zip(parts, sums, strict=True):
                assert total is not None
                kept.append((total / len(views)).cpu())
    source.close()
    return [torch.cat(part) for part in parts]


def _images(member: Checkpoint, table: Table) -> decode.Images:
    """As the checkpoint saw its validation images."""
    if not member.preprocessing.get("fast"):
        return decode.Images(table.paths, None)
    limit = decode.Limit.of(member.preprocessing["transforms"])
    return decode.shared(table.paths, table.ids, limit, None, content_fingerprint(table.paths))


def _net(member: Checkpoint, chosen: str) -> build.Normalized:
    """The checkpoint's model behind its normalisation. Raises ConfigError where the weights are another model's."""
    config = member.settings
    bare = build.restore(config.model, len(member.class_names), member.preprocessing["img_size"], member.state_dict)
    mean, std = tuple(member.preprocessing["mean"]), tuple(member.preprocessing["std"])
    return build.Normalized(bare, mean, std, device.channels_last(config.training.channels_last, chosen))
