"""Train one classifier: device, data, augmentation and model are checked before anything is trained."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from timm.utils import ModelEmaV3  # type: ignore[attr-defined]
from torch import nn
from torch.utils.data import DataLoader

from trainer.augment.corruption import Corruption
from trainer.augment.pipeline import Augmentation
from trainer.base import cores, provenance
from trainer.base.errors import ConfigError, DataError, StoppedError
from trainer.base.figures import MAIN
from trainer.base.files import check_folder, resume_file, write_text
from trainer.config.plain import to_dict, to_yaml
from trainer.config.schema import Config, TrainingConfig
from trainer.data import duplicates, leaks, sampling
from trainer.data.dataset import ImageDataset, collate
from trainer.data.split import Split, split_images
from trainer.data.table import Table, data_root, read_training, training_fingerprint
from trainer.images import decode
from trainer.images.decode import Images, Limit
from trainer.models import build, compiling, optimizers
from trainer.training import device, keep
from trainer.training import teachers as distill
from trainer.training.loop import Job, Progress, run, total_steps
from trainer.training.progress import Reporter
from trainer.training.stop import Stop, ignore_in_worker
from trainer.training.tracking import Tracking
from trainer.training.val_batches import Item, Remembered, ValidationView, end_workers
from trainer.training.val_batches import items as validation_items

PREFETCH = 4
"""Batches that each process has ready: augmentation takes several times as long for one image as for another."""


@dataclass(frozen=True)
class Inputs:
    """Data, checked, and how they become batches."""

    table: Table
    split: Split
    fingerprint: str
    images: tuple[Images, Images]
    """For training and for validation."""
    train_view: Augmentation
    val_view: ValidationView


def train(config: Config, run_dir: Path, stop: Stop, lap: Callable[[str], None] = lambda part: None) -> dict[str, Any]:
    """Run the configuration to its end in `run_dir`, and return what metrics.json holds. `lap` is called with the name
    of each part of a step at its end.

    Raises ConfigError, DataError, DeviceMemoryError or StoppedError. Nothing is trained before data, model and
    augmentation have been checked.
    """
    chosen = device.choose(config.device)
    devices = device.count(config, chosen)
    precision = device.precision(config.training.precision, chosen)
    build.check_name(config.model.name)
    check_folder(run_dir)
    resume = resume_file(config.resume, run_dir)
    state = keep.read_last(resume) if resume else None

    train_view = Augmentation(
        config.data.train_transforms, "data.train_transforms", config.data.img_size, config.seed, config.data.fast
    )
    plain = Augmentation(config.data.val_transforms, "data.val_transforms", config.data.img_size, config.seed)
    corruption = Corruption(config.data.split_seed) if config.data.val_corruption == "document" else None
    root = data_root(config.data)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        uid = os.getuid()
        raise ConfigError(
            f"{run_dir}: uid {uid} cannot make this folder ({error.strerror}); name another by RUN_DIR"
        ) from None
    table = read_training(root, config.data, run_dir / "data_faults.txt")
    val_view = ValidationView(plain, corruption, table.ids)
    split = split_images(table, config.data)
    leaks.refuse(table, split, duplicates.equal_files(table.paths), config.data.allowed_leaks)
    _check_batch(config, len(split.train))
    fingerprint = training_fingerprint(table)
    images = _images(config, table, fingerprint)
    _rehearse(table, split, images, train_view, plain)

    fabric = device.fabric(chosen, precision, devices)
    if devices > 1:
        # A default that has the time in it is made once, not by each process.
        os.environ["RUN_DIR"] = str(run_dir.resolve())
    fabric.launch()
    stop.listen()  # launching may have replaced the handlers
    cores.limit_threads()
    device.limit_memory(chosen)
    device.name_fallbacks(chosen)
    with device.memory_errors(config):
        inputs = Inputs(table, split, fingerprint, images, train_view, val_view)
        job = _prepare(config, run_dir, inputs, fabric, chosen, precision, stop, state)
        job.lap = lap
        try:
            return run(job)
        except BaseException as error:
            job.tracking.finish({}, exit_code=143 if isinstance(error, StoppedError) else 1)
            raise
        finally:
            stop.deferred = False
            job.reporter.close()
            end_workers(job.loader)
            job.val_batches.close()
            for each in images:
                each.close()


def _check_batch(config: Config, images: int) -> None:
    if config.training.drop_last and images < config.training.batch_size:
        raise DataError(
            f"{images} training images make no batch of {config.training.batch_size}; "
            f"say training.batch_size={max(1, images // 2)} or training.drop_last=false"
        )


def _images(config: Config, table: Table, fingerprint: str) -> tuple[Images, Images]:
    """What training and validation read: one and the same where both lists begin alike."""
    if not config.data.fast:
        return (Images(table.paths, None),) * 2
    limits = [Limit.of(entries) for entries in (config.data.train_transforms, config.data.val_transforms)]
    made = {
        limit: decode.shared(table.paths, table.ids, limit, config.data.cache_gb, fingerprint)
        for limit in dict.fromkeys(limits)
    }
    return made[limits[0]], made[limits[1]]


def _rehearse(table: Table, split: Split, images: tuple[Images, Images], *views: Augmentation) -> None:
    """Augment one image of each class both ways, so that a wrong list ends the run now and not in a worker."""
    rows = {table.targets[row]: row for row in split.train}.values()
    for its, view in zip(images, views, strict=True):
        for row in rows:
            view(its(row), 0, row)


def _prepare(
    config: Config,
    run_dir: Path,
    inputs: Inputs,
    fabric: Fabric,
    chosen: str,
    precision: str,
    stop: Stop,
    state: dict[str, Any] | None,
) -> Job:
    training, table, split = config.training, inputs.table, inputs.split
    world, rank = fabric.world_size, fabric.global_rank
    micro = training.micro_batch or training.batch_size
    usable = len(split.train) - (len(split.train) % training.batch_size if training.drop_last else 0)
    targets = [table.targets[row] for row in split.train] if training.balanced_sampling else None
    sampler = sampling.EpochSampler(split.train, config.seed, usable, rank, world, targets)
    steps_per_epoch = math.ceil(usable / training.batch_size)

    channels_last = device.channels_last(training.channels_last, chosen)
    teachers = distill.load(training.teachers, table.class_names, fabric.device, channels_last)
    if state is not None:
        _check_resumable(state, table, split)
    net, optimizer = learner(config, len(table.class_names), fabric.device, precision, channels_last, state)
    total = total_steps(config, steps_per_epoch)
    progress = Progress(**state["progress"]) if state is not None else Progress()
    left = (total - progress.step) * (training.batch_size // micro)
    device.allow_fast_kernels(chosen, left)
    asked = False if training.grad_checkpointing else training.compile
    compiled, note = compiling.model_for(asked, net, fabric, micro // world, config.data.img_size, left)
    wrapped, wrapped_optimizer = fabric.setup(net, optimizer)
    scaler = getattr(fabric.strategy.precision, "scaler", None)
    if state is not None and scaler is not None and state.get("scaler"):
        scaler.load_state_dict(state["scaler"])
    counts = Counter(table.targets[row] for row in split.train)
    weights = [
        len(split.train) / (len(counts) * counts[c]) if counts[c] else 0.0 for c in range(len(table.class_names))
    ]
    if not training.class_weights:
        weights = [1.0] * len(weights)
    sampler.set_position(progress.epoch, progress.step_in_epoch * training.batch_size // world)
    reporter = Reporter(run_dir, training.epochs, total, chosen, rank == 0)
    reporter.best_f1 = progress.best.get(MAIN)

    workers = cores.workers(training.num_workers, chosen, world)

    def val_loader(wanted: Sequence[Item]) -> DataLoader[Any]:
        its = ImageDataset(table, inputs.val_view, inputs.images[1])
        return _loader(config, its, wanted, max(1, micro // world), workers)

    job = Job(
        config=config,
        run_dir=run_dir,
        table=table,
        split=split,
        fabric=fabric,
        net=wrapped,
        optimizer=wrapped_optimizer,
        class_weights=torch.tensor(weights, device=fabric.device),
        loader=_loader(
            config, ImageDataset(table, inputs.train_view, inputs.images[0]), sampler, micro // world, workers
        ),
        val_batches=Remembered(val_loader, validation_items(split.val, inputs.val_view.copies, rank, world)),
        sampler=sampler,
        steps_per_epoch=steps_per_epoch,
        accumulate=training.batch_size // micro,
        device=chosen,
        precision=precision,
        channels_last=channels_last,
        stop=stop,
        progress=progress,
        reporter=reporter,
        tracking=Tracking(to_dict(config), run_dir) if rank == 0 else _Silent(),
        loss_sum=torch.tensor(progress.loss_sum, device=fabric.device),
        provenance={"git_sha": provenance.revision(), "data_fingerprint": inputs.fingerprint},
        ema=_average(training, wrapped.module, state),
        teachers=teachers,
        compiled=compiled,
    )
    if job.chief:
        keep.sweep(run_dir)
        write_text(run_dir / "config.yaml", to_yaml(config))
        job.reporter.say(
            f"{config.model.name} on {chosen}{f' ×{world}' if world > 1 else ''} in {precision}, "
            f"{config.data.img_size} px: {len(split.train)} training and {len(split.val)} validation images in "
            f"{len(table.class_names)} classes; "
            f"{training.epochs} epochs of {steps_per_epoch} steps of {training.batch_size} images"
        )
        if note:
            job.reporter.say(f"note: {note}")
        if table.groups is not None:
            job.reporter.say(
                "note: intervals take images as independent; those of one group err together, so the truth is wider"
            )
        saw = distill.saw_validation(teachers, split.fingerprint)
        if saw:
            job.reporter.say(
                f"note: training.teachers: {', '.join(saw)} may have trained on this run's validation images (their "
                "split is another, or not known): its validation figures may be too good"
            )
        if state is not None:
            job.reporter.say(f"resumed in epoch {progress.epoch + 1} after step {progress.step}")
    return job


def _average(training: TrainingConfig, net: nn.Module, state: dict[str, Any] | None) -> ModelEmaV3 | None:
    """The moving average of the weights. Its decay grows with the steps as timm has it, 1 - (1 + step)^(-2/3), up to
    `training.ema_decay`: the first weights, which are random, do not weigh on a short run."""
    if training.ema_decay is None:
        return None
    made = ModelEmaV3(net, decay=training.ema_decay, use_warmup=True)
    if state is not None and state.get("ema") is not None:
        made.module.load_state_dict(state["ema"])
    return made


class _Silent(Tracking):
    """What the other processes of a multi-GPU run hold instead of a tracker."""

    def __init__(self) -> None:
        self._run = None


def _loader(
    config: Config, images: ImageDataset, sampler: Iterable[tuple[int, int]], batch: int, workers: int
) -> DataLoader[Any]:
    return DataLoader(
        images,
        batch_size=batch,
        sampler=sampler,  # yields (epoch, row) or (copy, row), as the dataset takes it
        num_workers=workers,
        pin_memory=config.training.pin_memory and torch.cuda.is_available(),
        persistent_workers=workers > 0,
        prefetch_factor=PREFETCH if workers else None,
        worker_init_fn=ignore_in_worker if workers else None,
        collate_fn=collate,
    )


def learner(
    config: Config,
    classes: int,
    on: torch.device,
    precision: str,
    channels_last: bool,
    state: dict[str, Any] | None = None,
) -> tuple[build.Normalized, torch.optim.Optimizer]:
    """The network and its optimiser on the device `on`: as new, or with what last.ckpt holds.

    The network goes there first: an optimiser takes its state to where the weights lie when it is read, and no later.
    Raises ConfigError where the checkpoint is of another model.
    """
    torch.manual_seed(config.seed)
    mean, std = build.mean_std(config.model.name)
    bare = build.create(config.model, classes, config.data.img_size, load_weights=state is None)
    if config.training.grad_checkpointing:
        build.checkpoint_gradients(bare, config.model.name)
    net = build.Normalized(bare, mean, std, channels_last).to(on)
    optimizer = optimizers.create(config.training, net, precision)
    if state is not None:
        _restore(net, optimizer, state)
    return net, optimizer


def _check_resumable(state: dict[str, Any], table: Table, split: Split) -> None:
    if state["class_names"] != table.class_names or state["split_fingerprint"] != split.fingerprint:
        raise ConfigError(
            "resume: the checkpoint was made on other data or another split; resume with the data it began on"
        )


def _restore(net: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    try:
        net.load_state_dict(state["model"])
        for old, new in zip(state["optimizer"]["param_groups"], optimizer.param_groups, strict=False):
            old["fused"] = new["fused"]  # another device or precision may have another optimiser
        optimizer.load_state_dict(state["optimizer"])
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, KeyError) as error:
        raise ConfigError(f"resume: the checkpoint is of another model: {' '.join(str(error).split())[:200]}") from None
