"""Submissions whose runs have ended, with the validation predictions of made-up models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from launcher.record import predictions
from launcher.record.journal import append_event, create_run
from launcher.record.request import Kind, RunRequest
from launcher.record.states import State
from trainer.base.files import write_json

CLASSES = ["invoice", "letter", "receipt"]


def images(count: int = 60, start: int = 0) -> list[str]:
    return [f"{number:04d}.png" for number in range(start, start + count)]


def truth(ids: list[str]) -> np.ndarray[Any, Any]:
    return np.array([int(image[:4]) % len(CLASSES) for image in ids])


def predicted(ids: list[str], wrong: int, offset: int = 0) -> np.ndarray[Any, Any]:
    """Probabilities (N, classes) that miss `wrong` of the images, from the one numbered `offset` on."""
    classes = truth(ids)
    misses = np.arange(offset, offset + wrong)
    classes[misses] = (classes[misses] + 1) % len(CLASSES)
    return np.eye(len(CLASSES), dtype=np.float32)[classes] * 0.8 + 0.1


def write_predictions(
    run_dir: Path, ids: list[str], clean: Any, corrupted: Any = None, split: str = "s", folds: str | None = None
) -> dict[str, Any]:
    """val_predictions.npz as the trainer writes it; returns the figures of it for metrics.json."""
    more = {"corrupted": corrupted} if corrupted is not None else {}
    more |= {"folds_fingerprint": np.array(folds)} if folds else {}
    np.savez_compressed(
        run_dir / "val_predictions.npz", ids=np.array(ids), targets=truth(ids), class_names=np.array(CLASSES),
        probabilities=clean, split_fingerprint=np.array(split), **more,
    )  # fmt: skip
    made = predictions.load(run_dir)
    assert made is not None
    found = predictions.scores(made)
    monitor = "val_f1_mean" if corrupted is not None else "val_f1"
    return {**found, "monitor": monitor, "score": found[monitor], "split_fingerprint": split}


def add_run(
    submission: Path, name: str, state: State = "succeeded", kind: Kind = "train", **more: Any
) -> Path:  # fmt: skip
    """A run that has ended; `more` are fields of its request."""
    index = int(name.split("-")[0])
    run_dir = submission / name
    config = {"model": name.split("-")[1], "img_size": 64, **more.pop("config", {})}
    create_run(run_dir, RunRequest(name, index, kind, [kind], config=config, **more))
    for each in ("starting", "running", state):
        append_event(run_dir, each)  # type: ignore[arg-type]
    if state == "succeeded":
        (run_dir / "best.ckpt").write_text(f"{submission.name}/{name}")
    return run_dir


def scored_run(submission: Path, name: str, wrong: int, worse: int | None = None, offset: int = 0, **more: Any) -> Path:
    """A run that misses `wrong` of the clean images and, where given, `worse` of the corrupted ones."""
    ids = more.pop("ids", images())
    split, folds, monitor = more.pop("split", "s"), more.pop("folds", None), more.pop("monitor", None)
    run_dir = add_run(submission, name, **more)
    corrupted = predicted(ids, worse, offset) if worse is not None else None
    figures = write_predictions(run_dir, ids, predicted(ids, wrong, offset), corrupted, split, folds)
    if monitor:
        figures |= {"monitor": monitor, "score": figures[monitor]}
    write_json(run_dir / "metrics.json", {**figures, "seconds": 60, "epochs": 3})
    return run_dir


def scored_folds(submission: Path, model: str, first: int, wrong: list[int], **more: Any) -> None:
    """A configuration of as many folds of 20 images as `wrong` has figures; None is one that failed."""
    for fold, misses in enumerate(wrong):
        name = f"{first + fold:03d}-{model}-fold{fold}"
        fields = {"configuration": model, "config": {"fold": fold, "folds": len(wrong)}, **more}
        if misses is None:
            add_run(submission, name, "failed", **fields)
        else:
            ids = images(20, 20 * fold)
            scored_run(submission, name, misses, misses + 2, ids=ids, split=f"s{fold}", folds="f", **fields)
