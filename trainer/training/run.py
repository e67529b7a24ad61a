"""Train one classifier. Check device, data, augmentation and model before training."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch.utils.data import DataLoader

from trainer.augment import pipeline
from trainer.augment.corruption import Corruption
from trainer.augment.pipeline import Augmentation
from trainer.base import cores, provenance
from trainer.base.errors import ConfigError, StoppedError
from trainer.base.figures import MAIN
from trainer.base.files import check_folder, resume_file, write_text
from trainer.base.names import GROUPED
from trainer.base.plural import counted
from trainer.config.compose import own_transforms
from trainer.config.plain import to_dict, to_yaml
from trainer.config.schema import Config
from trainer.data import duplicates, leaks, sampling
from trainer.data.dataset import ImageDataset, collate
from trainer.data.quick_check import check_batch
from trainer.data.rows import Table
from trainer.data.split import Split, split_images
from trainer.data.table import data_root, read_training, training_fingerprint
from trainer.images import decode, examined
from trainer.images.decode import Images, Limit
from trainer.images.prepared import Prepared
from trainer.models import build, compiling
from trainer.training import device, keep, teachers
from trainer.training import resume as resuming
from trainer.training.alone import alone
from trainer.training.full_memory import memory_errors
from trainer.training.loop import fit, write_history
from trainer.training.progress import Reporter
from trainer.training.state import Progress, Run, Saved
from trainer.training.step import learner, set_up, total_steps, warmup_steps
from trainer.training.stop import Poll, Stop, ignore_in_worker
from trainer.training.tracking import Tracking
from trainer.training.val_batches import Item, Remembered, ValidationView, copies_on_disk, end_workers
from trainer.training.val_batches import items as validation_items


@dataclass(frozen=True)
class Inputs:
    """The checked data, and how to make batches of them."""

    root: Path
    table: Table
    split: Split
    fingerprint: str
    images: tuple[Images, Images]
    """Images for training and for validation."""
    train_view: Augmentation
    val_view: ValidationView
    copies: Prepared | None
    """The corrupted validation images on disk, if they are kept."""


def train(config: Config, run_dir: Path, stop: Stop, lap: Callable[[str], None] = lambda part: None) -> dict[str, Any]:
    """Train the configuration in `run_dir`. Returns the content of metrics.json. The run calls `lap` with the name of
    each part of a step at its end.

    Checks data, model and augmentation before training. Raises ConfigError, DataError, DeviceMemoryError or
    StoppedError.
    """
    with alone(run_dir) if _is_first_process() else nullcontext():
        return _train(config, run_dir, stop, lap)


def _train(config: Config, run_dir: Path, stop: Stop, lap: Callable[[str], None]) -> dict[str, Any]:
    with _once():
        chosen = device.choose(config.device)
        devices = device.count(config, chosen)
        precision = device.precision(config.training.precision, chosen)
        build.check_name(config.model.name)
        check_folder(run_dir)
        if devices > 1:
            examined.folder = run_dir / ".examined"  # this process reads the images, and the others learn from it
        past = _past(config, run_dir)
        build.check(config.model, config.data.img_size, config.training.grad_checkpointing, load_weights=past is None)
        inputs = _inputs(config, run_dir)
        if past is not None:
            _check_past(past, config, inputs, run_dir)

    fabric = device.fabric(chosen, precision, devices)
    if devices > 1:
        # The default folder contains the time: only one process may choose it.
        os.environ["RUN_DIR"] = str(run_dir.resolve())
    fabric.launch()
    if fabric.global_rank == 0:
        shutil.rmtree(run_dir / ".examined", ignore_errors=True)  # the others have started: they have checked the data
    stop.listen()  # launching may have replaced the handlers
    device.limit_threads()
    device.limit_memory(chosen, fabric.device.index if devices > 1 else None)
    device.name_fallbacks(chosen)
    with memory_errors(config):
        with _once():
            run = _assemble(config, run_dir, inputs, fabric, chosen, precision, stop, past)
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
            if inputs.copies is not None:
                inputs.copies.close()


@dataclass
class Past:
    """What a run continues from: its last.ckpt, and what has changed since."""

    path: Path
    state: dict[str, Any]
    changes: list[resuming.Change]
    note: str = ""


def _past(config: Config, run_dir: Path) -> Past | None:
    """The last.ckpt of `config.resume`. None for a new run. Raises ConfigError if the run cannot continue with this
    configuration."""
    path = resume_file(config.resume, run_dir)
    if path is None:
        return None
    state = keep.read_last(path)
    return Past(path, state, resuming.check(state, config, path))


def _check_past(past: Past, config: Config, inputs: Inputs, run_dir: Path) -> None:
    """Check that the data are those of `past`, and bring its checkpoints to `run_dir`. Raises ConfigError.

    The first process has done so before the others start; they do not touch the files."""
    state, progress = past.state, past.state["progress"]
    resuming.check_data(state, inputs.table, inputs.split.fingerprint, past.path, config)
    per_epoch = _steps_per_epoch(config, inputs)
    resuming.check_length(progress, config, per_epoch, total_steps(config, per_epoch))
    progress["top"] = progress["top"][: config.training.keep_top]
    past.note = resuming.carry(past.path.parent, run_dir, progress, touch=_is_first_process())
    progress["changes"] = [
        *progress.get("changes", []),
        *(asdict(change) | {"after_step": progress["step"]} for change in past.changes),
    ]


def _is_first_process() -> bool:
    """Fabric starts the other processes of a run on several devices with LOCAL_RANK."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


@contextmanager
def _once() -> Iterator[None]:
    """Print nothing in the other processes of a run: they repeat the checks of the first one, and its notes."""
    if _is_first_process():
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):  # noqa: PTH123
        yield


def _usable(config: Config, inputs: Inputs) -> int:
    """The training images of an epoch."""
    images, batch = len(inputs.split.train), config.training.batch_size
    return images - images % batch if config.training.drop_last else images


def _steps_per_epoch(config: Config, inputs: Inputs) -> int:
    return math.ceil(_usable(config, inputs) / config.training.batch_size)


def _inputs(config: Config, run_dir: Path) -> Inputs:
    """Check the data and the augmentation of the run. Raises ConfigError or DataError."""
    for name, entries in own_transforms(config).items():
        pipeline.try_out(entries, f"data.{name}", config.data.img_size)
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
    # Before the other images: they take longest, so they get their room first.
    copies = copies_on_disk(config.data, table, split.val) if corruption is not None else None
    images = _images(config, table, fingerprint)
    _rehearse(table, split, images, train_view, plain)
    return Inputs(root, table, split, fingerprint, images, train_view, val_view, copies)


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
    past: Past | None,
) -> Run:
    """A new run, or one that continues from `past`. The first process makes the files and prints the first log
    lines."""
    table, split, training, world = inputs.table, inputs.split, config.training, fabric.world_size
    channels_last = device.channels_last(training.channels_last, chosen)
    teaching = teachers.load(training.teachers, table.class_names, fabric.device, channels_last, split.fingerprint)
    state = past.state if past is not None else None
    usable, steps_per_epoch = _usable(config, inputs), _steps_per_epoch(config, inputs)
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
        reporter=Reporter(run_dir, training.epochs, total, chosen, fabric.global_rank == 0, step.steps_per_epoch),
        tracking=Tracking(to_dict(config), run_dir, active=fabric.global_rank == 0),
        provenance=_origin(
            inputs, past, precision, device.evaluation_precision(training.precision, chosen), config.data.group_column
        ),
        files=resuming.digests(to_dict(config)) | (state.get("files", {}) if state is not None else {}),
        order=resuming.order_of(table),
        saved=Saved(time.monotonic()),
        poll=Poll(progress.step),
    )
    if teaching:
        run.provenance["teachers"] = ", ".join(sorted(f"{t.described} × {t.share:.6g}" for t in teaching))
    run.reporter.best_f1 = progress.best.get(MAIN)
    if run.chief:
        keep.sweep(run_dir)
        write_text(run_dir / "config.yaml", to_yaml(config))
        if past is not None:
            (run_dir / "metrics.json").unlink(missing_ok=True)  # of an end that this process goes beyond
            _record_changes(run, past)
        _introduce(run, note, past)
    return run


def _origin(inputs: Inputs, past: Past | None, precision: str, val_precision: str, column: str) -> dict[str, str]:
    """Commit, data, data folder, number formats of the run, and the `column` of its
    groups if it has some. `+` joins those of several attempts if they differ."""
    now = {"git_sha": provenance.revision(), "data_fingerprint": inputs.fingerprint}
    before = past.state.get("provenance", {}) if past is not None else {}
    both = {key: resuming.joined(before.get(key), value) for key, value in now.items()}
    more = {"data_folder": str(inputs.root.resolve()), "precision": precision, "val_precision": val_precision}
    groups = {} if inputs.table.groups is None else {"groups": column}
    return {**both, **more, **groups}


def _record_changes(run: Run, past: Past) -> None:
    """Add what `auto` means in this process, if it is new, to the changes of the run. Write history.csv and last.ckpt:
    the folder may be new."""
    asked = {change.key for change in past.changes}
    found = resuming.changes(past.state.get("used", run.used), run.used)
    past.changes += [change for change in found if change.key not in asked]
    run.progress.changes += [
        asdict(change) | {"after_step": run.progress.step} for change in found if change.key not in asked
    ]
    if run.progress.history:
        write_history(run)
    if past.path.parent.resolve() != run.folder.resolve():
        keep.save_last(run)


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
    validation = ImageDataset(inputs.table, inputs.val_view, inputs.images[1], inputs.copies)

    def val_loader(copies: Sequence[Item]) -> DataLoader[Any]:
        return _loader(config, validation, copies, batch, workers)

    copies = validation_items(inputs.split.val, inputs.val_view.copies, rank, world)
    return _loader(config, training, sampler, batch, workers), Remembered(val_loader, copies)


def _introduce(run: Run, note: str, past: Past | None) -> None:
    """Print the first lines of the log: model, device, data, and notes. `note` is about torch.compile."""
    config, training, table, split = run.config, run.config.training, run.table, run.split
    run.reporter.say(
        f"{config.model.name} on {run.device}{f' ×{run.world_size}' if run.world_size > 1 else ''} in {run.precision}, "
        f"{config.data.img_size} px: {len(split.train)} training and {counted(len(split.val), 'validation image')} in "
        f"{counted(len(table.class_names), 'class')}; "
        f"{counted(training.epochs, 'epoch')} of {counted(run.step.steps_per_epoch, 'step')} of "
        f"{counted(training.batch_size, 'image')}"
    )
    if note:
        run.reporter.say(f"note: {note}")
    warmup = warmup_steps(training, run.step.steps_per_epoch, run.step.total_steps)
    if warmup != training.warmup_epochs * run.step.steps_per_epoch:
        run.reporter.say(
            f"note: training.warmup_epochs={training.warmup_epochs:g} is long for a run of "
            f"{counted(run.step.total_steps, 'step')}; the warm-up ends after a tenth of them ({warmup:.0f})"
        )
    if table.own_split:
        run.reporter.say(f"note: the validation images are the data folder's own: {table.own_split}")
    if table.groups is not None:
        run.reporter.say(f"note: intervals are too narrow here: {GROUPED}")
    doubtful = teachers.saw_validation(run.step.teachers, split.fingerprint)
    if doubtful:
        run.reporter.say(
            f"warning: training.teachers: {', '.join(doubtful)} may have trained on this run's validation images "
            "(another or unknown split); the validation metrics may be too good"
        )
    if past is not None:
        run.reporter.say(f"resumed in epoch {run.progress.epoch + 1} after optimizer step {run.progress.step}")
        for change in past.changes:
            run.reporter.say(f"  from here on with another {change}")
        if past.note:
            run.reporter.say(f"warning: {past.note}")
        if "+" in run.provenance["git_sha"]:
            run.reporter.say(
                f"note: the code has changed since the first start of this run: {run.provenance['git_sha']}"
            )
        if "+" in run.provenance["data_fingerprint"]:
            run.reporter.say("warning: the training images have changed since the first start of this run")


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
        prefetch_factor=cores.PREFETCH if workers else None,
        worker_init_fn=ignore_in_worker if workers else None,
        collate_fn=collate,
    )
