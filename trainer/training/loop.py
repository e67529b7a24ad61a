"""The training loop: optimizer steps, validations, early stopping, and stopping on request.

A run can resume after any optimizer step. There is no random stream: the augmentation of a sample depends on (seed,
epoch, row), and dropout and mixing of a step on (seed, step).
"""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch

from trainer.base import figures
from trainer.base.durations import duration
from trainer.base.errors import StoppedError, TrainerError
from trainer.base.files import write_json, write_text
from trainer.base.plural import counted
from trainer.models import checkpoint
from trainer.scores import intervals
from trainer.scores.validation import Outcome, certainty
from trainer.training import device, keep, step, teachers
from trainer.training.progress import rounded, validation_line
from trainer.training.state import Run


def fit(run: Run) -> dict[str, Any]:
    """Train until the limit of epochs, steps or patience."""
    progress, training = run.progress, run.config.training
    run.stop.deferred = True
    marks = validation_marks(run.step.steps_per_epoch, training.validate_per_epoch)
    started = time.monotonic() - progress.seconds
    while progress.epoch < training.epochs and not _out_of_patience(run):
        if progress.step >= run.step.total_steps and not progress.step_in_epoch:
            break  # otherwise the run stopped after the last step: its validation may be due
        for images in _epoch(run, marks):
            progress.seconds = time.monotonic() - started
            run.reporter.step(progress.epoch, progress.step, images, device.memory_in_use(run.device))
            if _stop_asked(run):
                _stop(run)
            elif run.saved.due(epoch_ended=False):
                keep.save_last(run)
        progress.seconds = time.monotonic() - started
        if progress.step_in_epoch < run.step.steps_per_epoch:
            break  # training.max_steps ends within the epoch; a resume with more steps trains on the rest of it
        progress.epoch += 1
        progress.step_in_epoch = 0
        if run.saved.due(epoch_ended=True):
            keep.save_last(run)
        if _stop_asked(run):
            _stop(run)
    if progress.best_score is None:  # resumed at its end, and its best checkpoint was lost
        _validate(run)
    keep.save_last(run)
    return _finish(run)


def validation_marks(steps_per_epoch: int, times: int) -> set[int]:
    """The steps of an epoch (from 1) with a validation: `times` evenly spaced steps, including the last."""
    return {max(1, round(steps_per_epoch * k / times)) for k in range(1, times + 1)}


def _epoch(run: Run, marks: set[int]) -> Iterator[int]:
    """Train the rest of an epoch and validate when it is due. Yields the number of images after each optimizer step."""
    progress = run.progress

    def validate_if_due() -> None:
        ends = progress.step == run.step.total_steps
        if (progress.step_in_epoch in marks or ends) and progress.validated_at != progress.step:
            _validate(run)

    run.sampler.set_position(progress.epoch, progress.step_in_epoch * run.config.training.batch_size // run.world_size)
    validate_if_due()  # the run may have stopped between a step and its validation
    if progress.step_in_epoch >= run.step.steps_per_epoch or progress.step >= run.step.total_steps:
        return
    run.step.net.train()
    group: list[Any] = []
    left = run.sampler.remaining()
    run.step.lap("validation")
    for batch in run.loader:
        group.append(batch)
        left -= len(batch[0])
        if len(group) < run.accumulate and left > 0:
            continue
        run.step.lap("data")
        images = step.take(run.step, group, progress.step)
        progress.loss_images += images
        group = []
        progress.step += 1
        progress.step_in_epoch += 1
        yield images * run.world_size
        run.step.lap("rest")
        validate_if_due()
        run.step.net.train()
        run.step.lap("validation")
        if progress.step >= run.step.total_steps:
            return


def _validate(run: Run) -> None:
    """Score clean and corrupted validation images. Keep the checkpoint if it is the best so far."""
    progress, monitor = run.progress, run.config.training.monitor
    outcome = _gather(run, _held_out_probabilities(run))
    if not all(bool(torch.isfinite(p).all()) for p in (outcome.clean, outcome.corrupted) if p is not None):
        raise _diverged(run)
    values = figures.values(outcome.targets.numpy(), outcome.copies)
    score, worth = figures.score(values, monitor), figures.columns()[monitor].worth
    best = progress.best_score is None or worth(score) > worth(progress.best_score)
    entry = {
        "epoch": progress.number,
        "step": progress.step,
        "train_loss": round(float(run.step.loss_sum) / max(1, progress.loss_images), 6),
        **values,
        "lr": float(f"{max(group['lr'] for group in run.step.optimizer.param_groups):.6g}"),
        "seconds": round(progress.seconds, 1),
        "best": best,
    }
    run.step.loss_sum.zero_()
    progress.loss_images = 0
    progress.validated_at = progress.step
    if progress.history and progress.history[-1]["step"] == progress.step:
        progress.history.pop()
    progress.history.append(entry)
    if best:
        progress.best_score, progress.best_epoch = score, progress.number
        progress.best = {**values, "monitor": monitor, "score": score, **certainty(outcome)}
    if run.chief:
        keep.keep(run, values, score, best, outcome)
        _report(run, entry)


def _held_out_probabilities(run: Run) -> torch.Tensor:
    """Probabilities (N, classes) for this process's share of the validation images and copies, in its item order."""
    step, progress = run.step, run.progress
    step.net.eval()
    if run.world_size > 1:
        for buffer in step.scored.buffers():  # batch statistics differ between processes; use those of the first
            torch.distributed.broadcast(buffer, 0)
    parts: list[torch.Tensor] = []
    mixed = run.val_precision != "fp32"
    with torch.inference_mode(), device.full_float32():
        for images, _, _ in run.val_batches:
            # Without the wrapper, which would make processes wait for each other.
            with step.fabric.autocast() if mixed else nullcontext():
                logits = step.scored(images.to(step.fabric.device, non_blocking=True))
            parts.append(logits.softmax(1).cpu())
            run.reporter.validating(sum(map(len, parts)), len(run.val_batches.items))
            run.reporter.beat(progress.epoch, progress.step, device.memory_in_use(run.device))
            # A single process can stop here; the validation is then due again. Several processes have different numbers
            # of batches, so they can only agree on a stop after the loop.
            if run.world_size == 1 and run.stop.requested:
                _stop(run)
    return torch.cat(parts) if parts else torch.empty(0, len(run.table.class_names))


def _report(run: Run, entry: dict[str, Any]) -> None:
    """Write a validation to the log, progress.json, W&B and history.csv."""
    progress, reporter = run.progress, run.reporter
    reporter.best_f1 = progress.best[figures.MAIN]
    eta = reporter.eta(progress.step)
    reporter.say(validation_line(entry, run.config.training.epochs, reporter.images_per_second, eta))
    reporter.beat(progress.epoch, progress.step, device.memory_in_use(run.device), force=True)
    run.tracking.log({key: value for key, value in entry.items() if key != "best"}, progress.step)
    write_history(run)


def write_history(run: Run) -> None:
    """Write history.csv: the validations up to now."""
    write_text(run.folder / "history.csv", _history_csv(run.progress.history))


def _gather(run: Run, probabilities: torch.Tensor) -> Outcome:
    """The probabilities of all processes in row order, for clean and corrupted copies."""
    items = run.val_batches.items
    if run.world_size > 1:
        everyone: list[Any] = [None] * run.world_size
        torch.distributed.all_gather_object(everyone, (items, probabilities))
        items = [item for part, _ in everyone for item in part]
        probabilities = torch.cat([part for _, part in everyone])
    order = sorted(range(len(items)), key=items.__getitem__)
    rows = [items[position][1] for position in order if items[position][0] == 0]
    ordered = probabilities[order]
    return Outcome(
        rows,
        torch.tensor([run.table.targets[row] for row in rows]),
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


def _stop_asked(run: Run) -> bool:
    """Whether any process got a stop signal. The answer is the same in all processes; several processes ask each other
    about once a second, and at the end of an epoch."""
    progress = run.progress
    if run.world_size == 1:
        return run.stop.requested
    if progress.step_in_epoch and not run.poll.due(progress.step):
        return False
    return run.poll.ask(run.step.fabric, run.stop.requested, progress.step)


def _diverged(run: Run) -> TrainerError:
    exact = "" if run.precision == "fp32" else ", or training.precision=fp32"
    return TrainerError(
        f"the loss is infinite or NaN at step {run.progress.step}; use a training.lr smaller than "
        f"{run.config.training.lr:g}{exact}"
    )


def _stop(run: Run) -> None:
    if not all(bool(torch.isfinite(weights).all()) for weights in run.step.normalized.parameters()):
        raise _diverged(run)  # keep the last.ckpt of the last validation
    keep.save_last(run)
    # The launcher gives every run resume=auto, and continues it with a command of its own.
    again = f"continue with RUN_DIR={run.folder}, the same words and resume=auto"
    how = "last.ckpt is saved; the same command continues it" if run.config.resume == "auto" else again
    raise StoppedError(f"stopped in epoch {run.progress.number} after step {run.progress.step}; {how}")


def _out_of_patience(run: Run) -> bool:
    patience = run.config.training.patience
    if not patience or run.progress.epoch - run.progress.best_epoch < patience or not run.progress.history:
        return False
    run.reporter.say(
        f"early stopping: no better {run.config.training.monitor} in {counted(patience, 'epoch')} "
        f"(best: epoch {run.progress.best_epoch})"
    )
    return True


def _finish(run: Run) -> dict[str, Any]:
    progress = run.progress
    summary = {
        **progress.best,
        "best_epoch": progress.best_epoch,
        "epochs": progress.number,
        "steps": progress.step,
        "warmup_steps": round(step.warmup_steps(run.config.training, run.step.steps_per_epoch, run.step.total_steps)),
        "seconds": round(progress.seconds, 1),
        "images_per_second": rounded(run.reporter.images_per_second, 2),
        "params": sum(p.numel() for p in run.step.bare.parameters()),
        "device": run.device,
        "devices": run.world_size,
        "device_memory_bytes": device.memory_in_use(run.device),
        "precision": run.precision,
        "channels_last": run.channels_last,
        "compiled": run.compiled,
        **run.config.choices,
        "changed_on_resume": progress.changes,
        "model_name": run.config.model.name,
        "img_size": run.config.data.img_size,
        "batch_size": run.config.training.batch_size,
        "seed": run.config.seed,
        "train_images": len(run.split.train),
        "val_images": len(run.split.val),
        "class_names": run.table.class_names,
        "split_fingerprint": run.split.fingerprint,
        "folds_fingerprint": run.split.folds_fingerprint,
        "fold": run.config.data.fold if run.config.data.folds else None,
        **_teaching(run),
        "threads": torch.get_num_threads(),
        "host": os.uname().nodename,
        "versions": checkpoint.versions(),
        **run.provenance,
    }
    if run.chief:
        write_json(run.folder / "metrics.json", summary)
        run.tracking.finish({k: v for k, v in summary.items() if k in (*progress.history[-1], "best_epoch")})
        main, corrupted = figures.MAIN, figures.F1.column("corrupted")
        sure = intervals.in_words(summary[f"{main}_interval"], summary[main], len(run.split.val))
        worse = f", {summary[corrupted]:.4f} corrupted" if corrupted in summary else ""
        monitor = run.config.training.monitor
        by = f" (the best by {monitor})" if monitor != main else ""
        run.reporter.say(
            f"best {main} {summary[main]:.4f} ({sure}){worse}, in epoch "
            f"{progress.best_epoch}{by}, after {duration(progress.seconds)}; {run.folder / 'best.ckpt'}"
        )
    return summary


def _teaching(run: Run) -> dict[str, bool]:
    if not run.step.teachers:
        return {}
    return {"teachers_saw_validation": bool(teachers.saw_validation(run.step.teachers, run.split.fingerprint))}
