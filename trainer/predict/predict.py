"""Predict the test images with a checkpoint or an ensemble, and write submission.csv and predictions.npz."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from trainer.base.errors import ConfigError, DataError
from trainer.base.files import write_json
from trainer.base.plural import counted
from trainer.data.rows import Table
from trainer.data.table import advice, content_fingerprint, in_short, read_test, say_notes, say_other_classes
from trainer.images import examined
from trainer.models import ensemble_file
from trainer.models.checkpoint import Checkpoint
from trainer.models.ensemble_file import Loaded
from trainer.predict import inference, predictions
from trainer.predict.inference import Options
from trainer.predict.predictions import Origin, Predictions

Model = Callable[[Path, Path, Options], tuple[Predictions, Origin]]
"""A function from a model file, a data folder and options to predictions of the test images, and their origin."""


def test_images(root: Path, skip_unreadable: bool = False) -> Table:
    """The checked images to predict. Prints notes. Raises DataError with all errors; with `skip_unreadable` an image
    that cannot be read is left out and named."""
    try:
        table = read_test(root)
    except DataError as error:
        lines = str(error).splitlines()
        raise DataError("\n".join(in_short(lines, str(root)) if len(lines) > 1 else lines)) from None
    say_notes(table)
    base = root if root.is_dir() else root.parent
    broken = dict(examined.unreadable(table.paths))
    faults = [
        f"{table.paths[row].relative_to(base)}: {reason}{advice(table.paths[row])}" for row, reason in broken.items()
    ]
    if not faults:
        return table
    if not skip_unreadable or len(faults) == len(table):
        others = ["or predict the others with --skip_unreadable"] if len(faults) < len(table) else []
        raise DataError("\n".join([*in_short(faults, str(root)), *others]))
    for fault in faults:
        print(f"left out: {fault}")
    have = "has" if len(faults) == 1 else "have"
    print(f"note: {len(faults)} of {len(table)} images cannot be read and {have} no row in submission.csv")
    return table.without(broken)


def say_classes(root: Path, model: Checkpoint) -> None:
    """Print a note if the data folder has training data of other classes than the model."""
    say_other_classes(root, model.class_names, model.labels, "the predictions are classes of the model")


def origin_of(sha256: str, fingerprint: str, options: Options) -> Origin:
    """The origin of the predictions of a model file."""
    return Origin(sha256, fingerprint, options.tta or "none", options.real_precision)


def members_predictions(
    wanted: Sequence[Loaded], table: Table, fingerprint: str, options: Options
) -> list[Predictions]:
    """Each checkpoint's predictions of the test images. Reuses stored predictions, and stores new ones."""
    by_digest: dict[str, Predictions] = {}
    for member in wanted:
        reused = predictions.stored(member.path, table.ids, origin_of(member.sha256, fingerprint, options))
        if reused is not None:
            print(f"reused the predictions of {member.path} for {counted(len(table), 'image')}: {reused[1]}")
            by_digest[member.sha256] = reused[0]
    missing = {member.sha256: member.checkpoint for member in wanted if member.sha256 not in by_digest}
    computed: list[torch.Tensor] = inference.probabilities(list(missing.values()), table, options) if missing else []
    for (digest, model), probabilities in zip(missing.items(), computed, strict=True):
        by_digest[digest] = Predictions(table.ids, probabilities, model.class_names, model.labels)
        predictions.keep(by_digest[digest], origin_of(digest, fingerprint, options))
    return [by_digest[member.sha256] for member in wanted]


def of_checkpoint(path: Path, root: Path, options: Options) -> tuple[Predictions, Origin]:
    """The predictions of the checkpoint at `path` for `root`'s test images. Raises ConfigError or DataError."""
    member = ensemble_file.load(path)
    say_classes(root, member.checkpoint)
    table = test_images(root, options.skip_unreadable)
    fingerprint = content_fingerprint(table.paths)
    predicted = members_predictions([member], table, fingerprint, options)[0]
    return predicted, origin_of(member.sha256, fingerprint, options)


def predict(path: Path, root: Path, output: Path, options: Options, model: Model = of_checkpoint) -> dict[str, Any]:
    """Predict `root`'s test images with the file at `path` and write the results into `output`. The function `model`
    predicts with the file; the default is for a checkpoint.

    If `output` is the folder of a run or an ensemble, its metrics.json stays. Returns the content of metrics.json for
    another folder. Raises DataError, or ConfigError, also if `output` is the folder of another ensemble.
    """
    _refuse_anothers(path, output)
    predicted, origin = model(path, root, options)
    predictions.write(predicted, output, origin)
    summary = {
        "images": len(predicted.ids),
        "checkpoint": str(path),
        "tta": origin.tta,
        "class_names": predicted.class_names,
    }
    if not any((output / name).exists() for name in ("best.ckpt", "ensemble.json")):
        write_json(output / "metrics.json", summary)
    return summary


def _refuse_anothers(source: Path, output: Path) -> None:
    """Raises ConfigError if the predictions of `source` would replace those of an ensemble."""
    there = output / "ensemble.json"
    if there.exists() and source.exists() and not there.samefile(source):
        raise ConfigError(
            f"{there}: the submission.csv in this folder belongs to the ensemble; the predictions of {source} need "
            "another folder: --output DIR"
        )
