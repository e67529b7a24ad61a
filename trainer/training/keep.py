"""The checkpoints of a run: best.ckpt with its validation predictions, the next best in top/, and last.ckpt."""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from trainer.base import figures
from trainer.base.brief import in_brief
from trainer.base.errors import ConfigError
from trainer.base.files import link_or_copy
from trainer.config.plain import to_dict
from trainer.models import build, checkpoint
from trainer.scores import val_predictions
from trainer.scores.validation import Outcome, calibration_figures
from trainer.training.state import Run, Saved

LAST_FORMAT = 2


def keep(run: Run, values: dict[str, float], score: float, best: bool, outcome: Outcome) -> None:
    """After a validation: write best.ckpt if it is the best, and keep the next best in top/. Of equal scores the
    earliest is the best.

    After a best one also write last.ckpt: a GPU may not repeat results to the bit, so a killed run must resume from its
    best. Until then the former best stays in top/, so that the old last.ckpt can still be resumed.
    """
    progress, count = run.progress, run.config.training.keep_top
    monitored = figures.columns()[run.config.training.monitor]
    name = f"epoch{progress.number:03d}-step{progress.step:06d}-{monitored.figure.name}_{score:.4f}.ckpt"
    former = progress.top[0][1] if progress.top else None
    ranked = sorted([*progress.top, [score, name]], key=lambda item: -monitored.worth(item[0]))
    progress.top = ranked[:count]
    if best:
        new = _checkpoint(run, values, outcome)
        if former is not None and (run.folder / "best.ckpt").exists():
            link_or_copy(run.folder / "best.ckpt", run.folder / "top" / former)
        checkpoint.save(run.folder / "best.ckpt", new)
        val_predictions.write(run.folder / "val_predictions.npz", new.validation, new.class_names)
        save_last(run)
    elif [score, name] in progress.top:
        checkpoint.save(run.folder / "top" / name, _checkpoint(run, values, outcome))
    remove_others(run.folder, [other for _, other in progress.top[1:]])


def remove_others(run_dir: Path, names: Collection[str]) -> None:
    """Remove the checkpoints in top/ that are not among `names`, and the folder if it is then empty."""
    top = run_dir / "top"
    for path in top.glob("epoch*.ckpt"):
        if path.name not in names:
            path.unlink(missing_ok=True)
    if top.is_dir() and not any(top.iterdir()):
        top.rmdir()


def _checkpoint(run: Run, values: dict[str, float], outcome: Outcome) -> checkpoint.Checkpoint:
    mean, std = build.mean_std(run.config.model.name)
    return checkpoint.Checkpoint(
        state_dict={k: v.detach().cpu() for k, v in run.step.scored.model.state_dict().items()},
        class_names=run.table.class_names,
        labels=run.table.labels,
        config=to_dict(run.config),
        preprocessing={
            "img_size": run.config.data.img_size,
            "mean": list(mean),
            "std": list(std),
            "transforms": run.config.data.val_transforms,
            "fast": run.config.data.fast,
        },
        metrics={**values, "epoch": run.progress.number, "step": run.progress.step},
        validation=val_predictions.arrays(
            [run.table.ids[row] for row in outcome.rows],
            outcome.targets,
            outcome.clean,
            outcome.corrupted,
            run.split.fingerprint,
            run.split.folds_fingerprint,
        ),
        calibration=calibration_figures(outcome),
        versions=checkpoint.versions(),
        provenance=run.provenance,
    )


def save_last(run: Run) -> None:
    """Write last.ckpt: the whole state between two optimizer steps."""
    if not run.chief:
        return
    step, began = run.step, time.monotonic()
    checkpoint.write(
        run.folder / "last.ckpt",
        {
            "last_format": LAST_FORMAT,
            "model": step.normalized.state_dict(),
            "ema": step.ema.module.state_dict() if step.ema is not None else None,
            "optimizer": step.optimizer.optimizer.state_dict(),
            "scaler": step.scaler.state_dict() if step.scaler is not None else None,
            "progress": {**vars(run.progress), "loss_sum": float(step.loss_sum)},
            "class_names": run.table.class_names,
            "labels": run.table.labels,
            "order": run.order,
            "split_fingerprint": run.split.fingerprint,
            "config": to_dict(run.config),
            "files": run.files,
            "used": run.used,
            "provenance": run.provenance,
        },
    )
    run.saved = Saved(time.monotonic(), time.monotonic() - began)


def sweep(run_dir: Path) -> None:
    """Remove temporary checkpoint files of killed processes."""
    for folder in (run_dir, run_dir / "top"):
        for unfinished in folder.glob(".*.ckpt"):
            unfinished.unlink(missing_ok=True)


def read_last(path: Path) -> dict[str, Any]:
    """Read a file of `save_last`. Raises ConfigError if it is damaged or another kind of file."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise any error
        raise ConfigError(f"resume: cannot read {path}: {in_brief(str(error), 160)}") from None
    if not isinstance(state, dict) or state.get("last_format") != LAST_FORMAT:
        raise ConfigError(f"resume: {path} is not a last.ckpt of this version of the trainer")
    return state
