"""Train one classifier. Check device, data, augmentation and model before training."""

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
from torch.utils.data import DataLoader

from trainer.augment.corruption import Corruption
from trainer.augment.pipeline import Augmentation
from trainer.base import cores, loading, provenance
from trainer.base.errors import ConfigError, StoppedError
from trainer.base.figures import MAIN
from trainer.base.files import check_folder, resume_file, write_text
from trainer.config.plain import to_dict, to_yaml
from trainer.config.schema import Config
from trainer.data import duplicates, leaks, sampling
from trainer.data.dataset import ImageDataset, collate
from trainer.data.quick_check import check_batch
from trainer.data.split import Split, split_images
from trainer.data.table import Table, data_root, read_training, training_fingerprint
from trainer.images import decode
from trainer.images.decode import Images, Limit
from trainer.models import build, compiling
from trainer.training import device, keep, teachers
from trainer.training.loop import fit
from trainer.training.progress import Reporter
from trainer.training.state import Progress, Run
from trainer.training.step import learner, set_up, total_steps
from trainer.training.stop import Stop, ignore_in_worker
from trainer.training.tracking import Tracking
from trainer.training.val_batches import Item, Remembered, ValidationView, end_workers
from trainer.training.val_batches import items as validation_items


@dataclass(frozen=True)
class Inputs:
    """The checked data, and how to make batches of them."""

    table: Table
    split: Split
    fingerprint: str
    images: tuple[Images, Images]
    """Images for training and for validation."""
    train_view: Augmentation
    val_view: ValidationView


def train(config: Config, run_dir: Path, stop: Stop, lap: Callable[[str], None] = lambda part: None) -> dict[str, Any]:
    """Train the configuration in `run_dir`. Returns the content of metrics.json. The run calls `lap` with the name of
    each part of a step at its end.

    Checks data, model and augmentation before training. Raises ConfigError, DataError, DeviceMemoryError or
    StoppedError.
    """
    chosen = device.choose(config.device)
    devices = device.count(config, chosen)
    precision = device.precision(config.training.precision, chosen)
    build.check_name(config.model.name)
    check_folder(run_dir)
    resume = resume_file(config.resume, run_dir)
    state = keep.read_last(resume) if resume else None
    inputs = _inputs(config, run_dir)

    fabric = device.fabric(chosen, precision, devices)
    if devices > 1:
        # The default folder contains the time: only one process may choose it.
        os.environ["RUN_DIR"] = str(run_dir.resolve())
    fabric.launch()
    stop.listen()  # launching may have replaced the handlers
    device.limit_threads()
    device.limit_memory(chosen)
    device.name_fallbacks(chosen)
    with device.memory_errors(config):
        run = _assemble(config, run_dir, inputs, fabric, chosen, precision, stop, state)
        run.step.lap = lap
        try:
            return fit(run)
        except BaseException as error:
            run.tracking.finish({}, exit_code=143 if isinstance(error, StoppedError) else 1)
            raise
        finally:
            stop.deferred = False
            run.reporter.close()
            end_workers(run.loader)
            run.val_batches.close()
            for images in inputs.images:
                images.close()


def _inputs(config: Config, run_dir: Path) -> Inputs:
    """Check the data and the augmentation of the run. Raises ConfigError or DataError."""
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
            f"{run_dir}: uid {uid} cannot create this folder ({error.strerror}); set RUN_DIR to another folder"
        ) from None
    table = read_training(root, config.data, run_dir / "data_faults.txt")
    val_view = ValidationView(plain, corruption, table.ids)
    split = split_images(table, config.data)
    leaks.refuse(table, split, duplicates.equal_files(table.paths), config.data.allowed_leaks)
    for note in split.notes:
        print(f"warning: {note}")
    check_batch(config.training, len(split.train))
    fingerprint = training_fingerprint(table)
    images = _images(config, table, fingerprint)
    _rehearse(table, split, images, train_view, plain)
    return Inputs(table, split, fingerprint, images, train_view, val_view)


def _images(config: Config, table: Table, fingerprint: str) -> tuple[Images, Images]:
    """The image sources of training and validation: one object if both lists of transforms start alike."""
    if not config.data.fast:
        return (Images(table.paths, None),) * 2
    limits = [Limit.of(entries) for entries in (config.data.train_transforms, config.data.val_transforms)]
    by_limit = {
        limit: decode.shared(table.paths, table.ids, limit, config.data.cache_gb, fingerprint)
        for limit in dict.fromkeys(limits)
    }
    return by_limit[limits[0]], by_limit[limits[1]]


def _rehearse(table: Table, split: Split, images: tuple[Images, Images], *views: Augmentation) -> None:
    """Run the training and the validation transforms on one image per class. Wrong transforms then fail here, not in a
    worker."""
    rows = {table.targets[row]: row for row in split.train}.values()
    for its, view in zip(images, views, strict=True):
        for row in rows:
            view(its(row), 0, row)


def _assemble(
    config: Config,
    run_dir: Path,
    inputs: Inputs,
    fabric: Fabric,
    chosen: str,
    precision: str,
    stop: Stop,
    state: dict[str, Any] | None,
) -> Run:
    """A new run, or one resumed from the `state` of a last.ckpt. The first process makes the files and prints the first
    log lines."""
    table, split, training, world = inputs.table, inputs.split, config.training, fabric.world_size
    channels_last = device.channels_last(training.channels_last, chosen)
    teaching = teachers.load(training.teachers, table.class_names, fabric.device, channels_last)
    if state is not None:
        _check_resumable(state, table, split)
    usable = len(split.train) - (len(split.train) % training.batch_size if training.drop_last else 0)
    steps_per_epoch = math.ceil(usable / training.batch_size)
    progress = Progress(**state["progress"]) if state is not None else Progress()
    micro = training.micro_batch or training.batch_size

    net, optimizer = learner(config, len(table.class_names), fabric.device, precision, channels_last, state)
    total = total_steps(config, steps_per_epoch)
    passes = (total - progress.step) * (training.batch_size // micro)
    device.allow_fast_kernels(chosen, passes)
    asked = False if training.grad_checkpointing else training.compile
    compiled, note = compiling.model_for(asked, net, fabric, micro // world, config.data.img_size, passes)
    weights = _class_weights(config, inputs)
    step = set_up(config, fabric, net, optimizer, weights, steps_per_epoch, teaching, state)

    sampler = _sampler(config, inputs, fabric, usable)
    sampler.set_position(progress.epoch, progress.step_in_epoch * training.batch_size // world)
    loader, val_batches = _loaders(config, inputs, fabric, chosen, sampler)
    run = Run(
        config=config,
        folder=run_dir,
        table=table,
        split=split,
        step=step,
        loader=loader,
        sampler=sampler,
        val_batches=val_batches,
        device=chosen,
        precision=precision,
        channels_last=channels_last,
        compiled=compiled,
        stop=stop,
        progress=progress,
        reporter=Reporter(run_dir, training.epochs, total, chosen, fabric.global_rank == 0),
        tracking=Tracking(to_dict(config), run_dir, active=fabric.global_rank == 0),
        provenance={
            "git_sha": provenance.revision(),
            "data_fingerprint": inputs.fingerprint,
            "precision": precision,
        },
    )
    run.reporter.best_f1 = progress.best.get(MAIN)
    if run.chief:
        keep.sweep(run_dir)
        write_text(run_dir / "config.yaml", to_yaml(config))
        _introduce(run, note, resumed=state is not None)
    return run


def _class_weights(config: Config, inputs: Inputs) -> list[float]:
    """The weight of each class in the loss: inverse to its share of the training images. None without class weights."""
    classes, rows = range(len(inputs.table.class_names)), inputs.split.train
    if not config.training.class_weights:
        return [1.0 for _ in classes]
    counts = Counter(inputs.table.targets[row] for row in rows)
    return [len(rows) / (len(counts) * counts[c]) if counts[c] else 0.0 for c in classes]


def _sampler(config: Config, inputs: Inputs, fabric: Fabric, usable: int) -> sampling.EpochSampler:
    """The order of this process's training images. An epoch has `usable` images over all processes."""
    rows = inputs.split.train
    targets = [inputs.table.targets[row] for row in rows] if config.training.balanced_sampling else None
    return sampling.EpochSampler(rows, config.seed, usable, fabric.global_rank, fabric.world_size, targets)


def _loaders(
    config: Config, inputs: Inputs, fabric: Fabric, chosen: str, sampler: sampling.EpochSampler
) -> tuple[DataLoader[Any], Remembered]:
    """This process's batches for training and for validation."""
    world, rank = fabric.world_size, fabric.global_rank
    batch = max(1, (config.training.micro_batch or config.training.batch_size) // world)
    workers = cores.workers(config.training.num_workers, chosen, world)
    training = ImageDataset(inputs.table, inputs.train_view, inputs.images[0])
    validation = ImageDataset(inputs.table, inputs.val_view, inputs.images[1])

    def val_loader(copies: Sequence[Item]) -> DataLoader[Any]:
        return _loader(config, validation, copies, batch, workers)

    copies = validation_items(inputs.split.val, inputs.val_view.copies, rank, world)
    return _loader(config, training, sampler, batch, workers), Remembered(val_loader, copies)


def _introduce(run: Run, note: str, resumed: bool) -> None:
    """Print the first lines of the log: model, device, data, and notes. `note` is about torch.compile."""
    config, training, table, split = run.config, run.config.training, run.table, run.split
    run.reporter.say(
        f"{config.model.name} on {run.device}{f' ×{run.world_size}' if run.world_size > 1 else ''} in {run.precision}, "
        f"{config.data.img_size} px: {len(split.train)} training and {len(split.val)} validation images in "
        f"{len(table.class_names)} classes; "
        f"{training.epochs} epochs of {run.step.steps_per_epoch} steps of {training.batch_size} images"
    )
    if note:
        run.reporter.say(f"note: {note}")
    if table.groups is not None:
        run.reporter.say(
            "note: intervals are too narrow here: they assume independent images, but images of one group are similar"
        )
    doubtful = teachers.saw_validation(run.step.teachers, split.fingerprint)
    if doubtful:
        run.reporter.say(
            f"warning: training.teachers: {', '.join(doubtful)} may have trained on this run's validation images "
            "(another or unknown split); the validation metrics may be too good"
        )
    if resumed:
        run.reporter.say(f"resumed in epoch {run.progress.epoch + 1} after optimizer step {run.progress.step}")


def _loader(
    config: Config, images: ImageDataset, sampler: Iterable[tuple[int, int]], batch: int, workers: int
) -> DataLoader[Any]:
    return DataLoader(
        images,
        batch_size=batch,
        sampler=sampler,  # yields (epoch, row) or (copy, row) for the dataset
        num_workers=workers,
        pin_memory=config.training.pin_memory and torch.cuda.is_available(),
        persistent_workers=workers > 0,
        prefetch_factor=loading.PREFETCH if workers else None,
        worker_init_fn=ignore_in_worker if workers else None,
        collate_fn=collate,
    )


def _check_resumable(state: dict[str, Any], table: Table, split: Split) -> None:
    if state["class_names"] != table.class_names or state["split_fingerprint"] != split.fingerprint:
        raise ConfigError(
            "resume: the checkpoint has other data or another split; use the data and split of the first start, or "
            "start again with another RUN_DIR"
        )
