"""What a run keeps: best.ckpt and its validation predictions, the next best in top/, last.ckpt to resume from."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trainer.base import figures
from trainer.base.errors import ConfigError
from trainer.config.plain import to_dict
from trainer.models import build, checkpoint
from trainer.scores.validation import Outcome, calibration_figures, save_validation

if TYPE_CHECKING:
    from trainer.training.loop import Job

LAST_FORMAT = 2


def keep(job: Job, values: dict[str, float], score: float, best: bool, outcome: Outcome) -> None:
    """After a validation: best.ckpt if it is the best, and the few next best in top/. The best of equals is the
    earliest."""
    progress, count = job.progress, job.config.training.keep_top
    monitored = figures.columns()[job.config.training.monitor]
    name = f"epoch{progress.epoch + 1:03d}-step{progress.step:06d}-{monitored.figure.name}_{score:.4f}.ckpt"
    ranked = sorted([*progress.top, [score, name]], key=lambda item: -monitored.worth(item[0]))
    progress.top = ranked[:count]
    if [score, name] not in progress.top:
        return
    kept = _checkpoint(job, values, outcome)
    if best:
        _demote(job.run_dir, [other for _, other in progress.top[1:2]])
        checkpoint.save(job.run_dir / "best.ckpt", kept)
        save_validation(job.run_dir / "val_predictions.npz", kept)
    else:
        checkpoint.save(job.run_dir / "top" / name, kept)
    for _, dropped in ranked[count:]:
        (job.run_dir / "top" / dropped).unlink(missing_ok=True)


def _demote(run_dir: Path, names: list[str]) -> None:
    """Give the best.ckpt that is about to be replaced its place in top/. Linked, so that best.ckpt is never missing."""
    for name in names:
        place = run_dir / "top" / name
        if (run_dir / "best.ckpt").exists() and not place.exists():
            place.parent.mkdir(exist_ok=True)
            try:
                os.link(run_dir / "best.ckpt", place)
            except OSError:  # a file system without hard links
                shutil.copyfile(run_dir / "best.ckpt", place)


def _checkpoint(job: Job, values: dict[str, float], outcome: Outcome) -> checkpoint.Checkpoint:
    mean, std = build.mean_std(job.config.model.name)
    stored = {
        "ids": [job.table.ids[row] for row in outcome.rows],
        "targets": outcome.targets,
        "probabilities": outcome.clean,
        "split_fingerprint": job.split.fingerprint,
    }
    if outcome.corrupted is not None:
        stored["corrupted"] = outcome.corrupted
    if job.split.folds_fingerprint is not None:
        stored["folds_fingerprint"] = job.split.folds_fingerprint
    return checkpoint.Checkpoint(
        state_dict={k: v.detach().cpu() for k, v in job.scored.model.state_dict().items()},
        class_names=job.table.class_names,
        labels=job.table.labels,
        config=to_dict(job.config),
        preprocessing={
            "img_size": job.config.data.img_size,
            "mean": list(mean),
            "std": list(std),
            "transforms": job.config.data.val_transforms,
            "fast": job.config.data.fast,
        },
        metrics={**values, "epoch": job.progress.epoch + 1, "step": job.progress.step},
        validation=stored,
        calibration=calibration_figures(outcome),
        versions=checkpoint.versions(),
        provenance=job.provenance,
    )


def save_last(job: Job) -> None:
    """last.ckpt: everything between two optimiser steps."""
    if not job.chief:
        return
    scaler = getattr(job.fabric.strategy.precision, "scaler", None)
    checkpoint.write(
        job.run_dir / "last.ckpt",
        {
            "last_format": LAST_FORMAT,
            "model": job.normalized.state_dict(),
            "ema": job.ema.module.state_dict() if job.ema is not None else None,
            "optimizer": job.optimizer.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "progress": {**vars(job.progress), "loss_sum": float(job.loss_sum)},
            "class_names": job.table.class_names,
            "split_fingerprint": job.split.fingerprint,
            "config": to_dict(job.config),
        },
    )


def sweep(run_dir: Path) -> None:
    """Remove what a process that was killed while it wrote checkpoints has left of them."""
    for folder in (run_dir, run_dir / "top"):
        for unfinished in folder.glob(".*.ckpt"):
            unfinished.unlink(missing_ok=True)


def read_last(path: Path) -> dict[str, Any]:
    """What `save_last` wrote. Raises ConfigError where it is damaged or something else."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises whatever its bytes provoke
        raise ConfigError(f"resume: {path} cannot be read: {' '.join(str(error).split())[:160]}") from None
    if not isinstance(state, dict) or state.get("last_format") != LAST_FORMAT:
        raise ConfigError(f"resume: {path} is not a last.ckpt of this version of the trainer")
    return state
