"""The training loop: optimiser steps, validations, early stopping, and stopping on request.

What stands between two optimiser steps is all there is to resume from. Nothing depends on a random stream: a sample's
augmentation is drawn from (seed, epoch, row), dropout and mixing of a step from (seed, step).
"""

from __future__ import annotations

import csv
import io
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from timm.utils import ModelEmaV3  # type: ignore[attr-defined]
from torch import nn
from torch.utils.data import DataLoader

from trainer.augment import mixing
from trainer.base import figures
from trainer.base.durations import duration
from trainer.base.errors import StoppedError, TrainerError
from trainer.base.files import write_json, write_text
from trainer.config.schema import Config, TrainingConfig
from trainer.data import sampling
from trainer.data.split import Split
from trainer.data.table import Table
from trainer.models import build, checkpoint, losses
from trainer.scores import intervals
from trainer.scores.validation import Outcome, certainty
from trainer.training import device, keep
from trainer.training import teachers as distill
from trainer.training import val_batches as validation
from trainer.training.progress import Reporter, rounded, validation_line
from trainer.training.stop import Stop
from trainer.training.tracking import Tracking


@dataclass
class Progress:
    """Where a run stands between two optimiser steps. Plain values: it travels in last.ckpt."""

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    validated_at: int = -1
    best: dict[str, Any] = field(default_factory=dict)
    """Figures of the best validation, as metrics.json will have them."""
    best_score: float | None = None
    """Its value of `training.monitor`."""
    best_epoch: int = 0
    loss_sum: float = 0.0
    loss_images: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    top: list[list[Any]] = field(default_factory=list)
    """[score, file name] of the checkpoints in top/, best first."""


@dataclass
class Job:
    """All that a run works with."""

    config: Config
    run_dir: Path
    table: Table
    split: Split
    fabric: Fabric
    net: Any
    optimizer: Any
    class_weights: torch.Tensor
    loader: DataLoader[Any]
    val_batches: validation.Remembered
    sampler: sampling.EpochSampler
    steps_per_epoch: int
    accumulate: int
    device: str
    precision: str
    channels_last: bool
    stop: Stop
    progress: Progress
    reporter: Reporter
    tracking: Tracking
    loss_sum: torch.Tensor
    """Of the images since the last validation; stays on the device, so that no step waits for it."""
    provenance: dict[str, str] = field(default_factory=dict)
    """As in a checkpoint; empty but in the first process."""
    ema: ModelEmaV3 | None = None
    teachers: list[distill.Teacher] = field(default_factory=list)
    compiled: bool = False
    lap: Callable[[str], None] = lambda part: None
    """Called at the end of each part of a step: what measures where its time goes."""

    @property
    def total_steps(self) -> int:
        return total_steps(self.config, self.steps_per_epoch)

    @property
    def normalized(self) -> nn.Module:
        """The module behind Fabric's wrapper (and DistributedDataParallel's, which Fabric looks through)."""
        return self.net.module  # type: ignore[no-any-return]

    @property
    def scored(self) -> Any:
        """What is validated and kept: the moving average of `normalized` where there is one, else that itself."""
        return self.ema.module if self.ema is not None else self.normalized

    @property
    def bare(self) -> nn.Module:
        """The timm model itself."""
        return self.normalized.model  # type: ignore[return-value]

    @property
    def chief(self) -> bool:
        return self.fabric.global_rank == 0


def total_steps(config: Config, steps_per_epoch: int) -> int:
    total = config.training.epochs * steps_per_epoch
    return min(total, config.training.max_steps or total)


def learning_rate(training: TrainingConfig, step: int, steps_per_epoch: int, total: int) -> float:
    """The learning rate of optimiser step `step` (from 0) of `total`: linear warm-up, then cosine down to min_lr
    (Loshchilov and Hutter 2017, eq. 5, one period) or constant."""
    warmup = min(training.warmup_epochs * steps_per_epoch, total)
    if step < warmup:
        return training.lr * (training.warmup_start + (1 - training.warmup_start) * step / warmup)
    if training.scheduler == "constant":
        return training.lr
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return training.min_lr + (training.lr - training.min_lr) * (1 + math.cos(math.pi * done)) / 2


def run(job: Job) -> dict[str, Any]:
    """Train until the epochs, the steps or the patience are used up."""
    progress, training = job.progress, job.config.training
    job.stop.deferred = True
    marks = validation_marks(job.steps_per_epoch, training.validate_per_epoch)
    started = time.monotonic() - progress.seconds
    while progress.epoch < training.epochs and not _out_of_patience(job):
        if progress.step >= job.total_steps and not progress.step_in_epoch:
            break  # else the last epoch has its steps, and was interrupted before its end: its validation may be due
        for images in _epoch(job, marks):
            progress.seconds = time.monotonic() - started
            job.reporter.step(progress.epoch, progress.step, images, device.memory_in_use(job.device))
            if _stop_asked(job):
                _stop(job)
        progress.epoch += 1
        progress.step_in_epoch = 0
        progress.seconds = time.monotonic() - started
        keep.save_last(job)
        if _stop_asked(job):
            _stop(job)
    return _finish(job)


def validation_marks(steps_per_epoch: int, times: int) -> set[int]:
    """After which steps of an epoch (from 1) to validate: `times` evenly spaced ones, the last step among them."""
    return {max(1, round(steps_per_epoch * k / times)) for k in range(1, times + 1)}


def _epoch(job: Job, marks: set[int]) -> Iterator[int]:
    """The rest of an epoch: yields the number of images after each optimiser step, validates where it is due."""
    progress = job.progress

    def validate_if_due() -> None:
        ends = progress.step == job.total_steps
        if (progress.step_in_epoch in marks or ends) and progress.validated_at != progress.step:
            _validate(job)

    job.sampler.set_position(
        progress.epoch, progress.step_in_epoch * job.config.training.batch_size // job.fabric.world_size
    )
    validate_if_due()  # due already where a run was stopped between a step and its validation
    if progress.step_in_epoch >= job.steps_per_epoch or progress.step >= job.total_steps:
        return
    job.net.train()
    group: list[Any] = []
    left = job.sampler.remaining()
    job.lap("validation")
    for batch in job.loader:
        group.append(batch)
        left -= len(batch[0])
        if len(group) < job.accumulate and left > 0:
            continue
        job.lap("data")
        images = _step(job, group)
        group = []
        progress.step += 1
        progress.step_in_epoch += 1
        yield images * job.fabric.world_size
        job.lap("rest")
        validate_if_due()
        job.net.train()
        job.lap("validation")
        if progress.step >= job.total_steps:
            return


def _step(job: Job, group: list[Any]) -> int:
    """One optimiser step over the micro-batches of `group`; returns this process's number of images.

    The loss is summed over all images of the step and divided by their number, so it does not depend on how they are
    cut into micro-batches.
    """
    training, step = job.config.training, job.progress.step
    size = sum(len(batch[0]) for batch in group)
    mix = mixing.draw(training, job.config.seed, step, job.config.data.img_size)
    torch.manual_seed((job.config.seed * 1_000_003 + step) * 1024 + job.fabric.global_rank)
    for number, batch in enumerate(group, start=1):
        images, wanted = _inputs(job, batch, group[number % len(group)], mix)
        job.lap("transfer")
        with job.fabric.no_backward_sync(job.net, enabled=number < len(group) and job.fabric.world_size > 1):
            loss = _loss(job, images, wanted) / size
            job.lap("forward")
            with build.frozen_statistics(job.bare, training.grad_checkpointing):
                job.fabric.backward(loss)
            job.lap("backward")
    job.progress.loss_images += size
    if training.gradient_clip is not None:
        # What is not finite is fp16's scaler to skip, else validation's to tell; asking here would wait for the device.
        job.fabric.clip_gradients(job.net, job.optimizer, max_norm=training.gradient_clip, error_if_nonfinite=False)
    lr = learning_rate(training, step, job.steps_per_epoch, job.total_steps)
    for parameters in job.optimizer.param_groups:
        parameters["lr"] = lr * parameters.get("lr_scale", 1.0)
    job.optimizer.step()
    job.optimizer.zero_grad()
    job.lap("optimizer")
    if job.ema is not None:
        job.ema.update(job.normalized, step)
    return size


def _inputs(job: Job, batch: Any, following: Any, mix: mixing.Mix | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 3, H, W) uint8 and their wanted distributions (N, classes) of a micro-batch, on the device. The last
    image's partner is the first of the `following` micro-batch."""
    on, classes, smoothing = job.fabric.device, len(job.table.class_names), job.config.training.label_smoothing
    images = batch[0].to(on, non_blocking=True)
    wanted = losses.wanted(batch[1].to(on, non_blocking=True), classes, smoothing)
    if mix is None:
        return images, wanted
    next_image, next_target = (part[:1].to(on, non_blocking=True) for part in following[:2])
    partner = losses.wanted(next_target, classes, smoothing)
    images = mixing.images(mix, images, torch.cat([images[1:], next_image]))
    return images, mix.share * wanted + (1 - mix.share) * torch.cat([wanted[1:], partner])


def _loss(job: Job, images: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The sum of the images' losses. What the log shows is that of the labels, classes unweighted."""
    training = job.config.training
    logits = job.net(images)
    terms = losses.by_class(logits, wanted, training)
    job.loss_sum += terms.detach().sum()
    loss = (terms * job.class_weights).sum()
    if job.teachers:
        with job.fabric.autocast():
            taught = distill.probabilities(job.teachers, images)
        apart = losses.distance(logits, taught, training.distill_temperature).sum()
        loss = (1 - training.distill_weight) * loss + training.distill_weight * apart
    return loss


def _validate(job: Job) -> None:
    """Score the validation split, clean and corrupted; keep the checkpoint if it is the best so far."""
    progress, monitor = job.progress, job.config.training.monitor
    job.net.eval()
    if job.fabric.world_size > 1:
        for buffer in job.scored.buffers():  # batch statistics: each process has its own, and the first's are kept
            torch.distributed.broadcast(buffer, 0)
    parts: list[torch.Tensor] = []
    with torch.inference_mode():
        for images, _, _ in job.val_batches:
            with job.fabric.autocast():  # not through the wrapper, which would have processes wait for each other
                logits = job.scored(images.to(job.fabric.device, non_blocking=True))
            parts.append(logits.softmax(1).cpu())
            job.reporter.beat(progress.epoch, progress.step, device.memory_in_use(job.device))
            # Alone it may stop here, and the validation is due again. Several processes have different numbers of
            # batches, so that they can agree only afterwards.
            if job.fabric.world_size == 1 and job.stop.requested:
                _stop(job)
    made = _gather(job, torch.cat(parts) if parts else torch.empty(0, len(job.table.class_names)))
    if not all(bool(torch.isfinite(p).all()) for p in (made.clean, made.corrupted) if p is not None):
        raise _diverged(job)
    values = figures.values(made.targets.numpy(), made.copies)
    score, worth = figures.score(values, monitor), figures.columns()[monitor].worth
    best = progress.best_score is None or worth(score) > worth(progress.best_score)
    entry = {
        "epoch": progress.epoch + 1,
        "step": progress.step,
        "train_loss": round(float(job.loss_sum) / max(1, progress.loss_images), 6),
        **values,
        "lr": float(f"{max(group['lr'] for group in job.optimizer.param_groups):.6g}"),
        "seconds": round(progress.seconds, 1),
        "best": best,
    }
    job.loss_sum.zero_()
    progress.loss_images = 0
    progress.validated_at = progress.step
    progress.history.append(entry)
    if best:
        progress.best_score, progress.best_epoch = score, progress.epoch + 1
        progress.best = {**values, "monitor": monitor, "score": score, **certainty(made)}
    if job.chief:
        keep.keep(job, values, score, best, made)
        if best:
            keep.save_last(job)  # so that a killed run, which may not repeat to the bit on a GPU, goes on from its best
        job.reporter.best_f1 = progress.best[figures.MAIN]
        eta = job.reporter.eta(progress.step)
        job.reporter.say(validation_line(entry, job.config.training.epochs, job.reporter.images_per_second, eta))
        job.reporter.beat(progress.epoch, progress.step, device.memory_in_use(job.device), force=True)
        job.tracking.log({key: value for key, value in entry.items() if key != "best"}, progress.step)
        write_text(job.run_dir / "history.csv", _history_csv(progress.history))


def _gather(job: Job, probabilities: torch.Tensor) -> Outcome:
    """Every process's probabilities, in the order of the rows, the clean copies and the corrupted ones."""
    wanted = job.val_batches.items
    if job.fabric.world_size > 1:
        everyone: list[Any] = [None] * job.fabric.world_size
        torch.distributed.all_gather_object(everyone, (wanted, probabilities))
        wanted = [item for part, _ in everyone for item in part]
        probabilities = torch.cat([part for _, part in everyone])
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    rows = [wanted[position][1] for position in order if wanted[position][0] == 0]
    ordered = probabilities[order]
    return Outcome(
        rows,
        torch.tensor([job.table.targets[row] for row in rows]),
        ordered[: len(rows)],
        ordered[len(rows) :] if len(ordered) > len(rows) else None,
    )


def _history_csv(history: list[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(
        out, [key for key in history[0] if key != "best"], extrasaction="ignore", lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(history)
    return out.getvalue()


def _stop_asked(job: Job) -> bool:
    """Whether any process was asked to stop; all of them get the same answer."""
    if job.fabric.world_size == 1:
        return job.stop.requested
    return bool(job.fabric.strategy.reduce_boolean_decision(job.stop.requested, all=False))


def _diverged(job: Job) -> TrainerError:
    return TrainerError(
        f"the loss has become infinite or not a number by step {job.progress.step}; lower training.lr "
        f"(now {job.config.training.lr:g}), or say training.precision=fp32"
    )


def _stop(job: Job) -> None:
    if not all(bool(torch.isfinite(weights).all()) for weights in job.normalized.parameters()):
        raise _diverged(job)  # the last.ckpt of the last validation stays
    keep.save_last(job)
    raise StoppedError(
        f"stopped in epoch {job.progress.epoch + 1} after step {job.progress.step}; "
        f"continue with RUN_DIR={job.run_dir} and resume=auto"
    )


def _out_of_patience(job: Job) -> bool:
    patience = job.config.training.patience
    if not patience or job.progress.epoch - job.progress.best_epoch < patience or not job.progress.history:
        return False
    job.reporter.say(
        f"stopped early: no better {job.config.training.monitor} in {patience} epochs "
        f"(best in epoch {job.progress.best_epoch})"
    )
    return True


def _finish(job: Job) -> dict[str, Any]:
    progress = job.progress
    summary = {
        **progress.best,
        "best_epoch": progress.best_epoch,
        "epochs": progress.epoch,
        "steps": progress.step,
        "seconds": round(progress.seconds, 1),
        "images_per_second": rounded(job.reporter.images_per_second, 2),
        "params": sum(p.numel() for p in job.bare.parameters()),
        "device": job.device,
        "devices": job.fabric.world_size,
        "device_memory_bytes": device.memory_in_use(job.device),
        "precision": job.precision,
        "channels_last": job.channels_last,
        "compiled": job.compiled,
        **job.config.choices,
        "model_name": job.config.model.name,
        "img_size": job.config.data.img_size,
        "batch_size": job.config.training.batch_size,
        "seed": job.config.seed,
        "train_images": len(job.split.train),
        "val_images": len(job.split.val),
        "class_names": job.table.class_names,
        "split_fingerprint": job.split.fingerprint,
        "folds_fingerprint": job.split.folds_fingerprint,
        "fold": job.config.data.fold if job.config.data.folds else None,
        **_teaching(job),
        "threads": torch.get_num_threads(),
        "host": os.uname().nodename,
        "versions": checkpoint.versions(),
        **job.provenance,
    }
    if job.chief:
        write_json(job.run_dir / "metrics.json", summary)
        job.tracking.finish({k: v for k, v in summary.items() if k in (*progress.history[-1], "best_epoch")})
        main, corrupted = figures.MAIN, figures.F1.column("corrupted")
        sure = intervals.in_words(summary[f"{main}_interval"], summary[main], len(job.split.val))
        worse = f", {summary[corrupted]:.4f} corrupted" if corrupted in summary else ""
        job.reporter.say(
            f"best {main} {summary[main]:.4f} ({sure}){worse}, in epoch "
            f"{progress.best_epoch}, after {duration(progress.seconds)}; {job.run_dir / 'best.ckpt'}"
        )
    return summary


def _teaching(job: Job) -> dict[str, bool]:
    if not job.teachers:
        return {}
    return {"teachers_saw_validation": bool(distill.saw_validation(job.teachers, job.split.fingerprint))}
