"""Predict the test images with a checkpoint or an ensemble, and write submission.csv and predictions.npz."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from rich.progress import track
from torch.utils.data import DataLoader

from trainer import checkpoint, data, device, model
from trainer.augment import Augmentation
from trainer.errors import DataError
from trainer.files import replacing, write_json, write_text
from trainer.stop import ignore_in_worker


@dataclass(frozen=True)
class Options:
    """How to run models over images. `batch_size` and `num_workers` None: as the checkpoint was trained."""

    device: str = "auto"
    precision: str = "auto"
    batch_size: int | None = None
    num_workers: int | None = None


@dataclass(frozen=True)
class Predictions:
    """Probabilities (N, classes) float32 of the images `ids`, and the names and labels of the classes."""

    ids: list[str]
    probabilities: torch.Tensor
    class_names: list[str]
    labels: list[str]


def test_images(root: Path) -> data.Table:
    """The images to predict, each of them checked. Raises DataError that names every fault."""
    table = data.read_test(root)
    faults = [f"test/{table.ids[row]}: {reason}" for row, reason in data.unreadable(table.paths)]
    if faults:
        raise DataError("\n".join(faults))
    return table


def run_model(member: checkpoint.Checkpoint, table: data.Table, options: Options) -> Predictions:
    """The probabilities that one checkpoint gives to the images of `table`."""
    config = member.settings
    chosen = device.choose(options.device)
    precision = device.precision(options.precision, chosen)
    size = member.preprocessing["img_size"]
    view = Augmentation(member.preprocessing["transforms"], "data.val_transforms", size, config.seed)
    bare = model.restore(config.model, len(member.class_names), size, member.state_dict)
    mean, std = tuple(member.preprocessing["mean"]), tuple(member.preprocessing["std"])
    net: Any = model.Normalized(bare, mean, std, device.channels_last(config.training.channels_last, chosen))
    fabric = Fabric(
        accelerator={"cuda": "gpu"}.get(chosen, chosen),
        devices=1,
        precision=device.FABRIC_PRECISION[precision],  # type: ignore[arg-type]
    )
    device.limit_memory(chosen)
    device.name_fallbacks(chosen)
    workers = config.training.num_workers if options.num_workers is None else options.num_workers
    loader: DataLoader[Any] = DataLoader(
        data.ImageDataset(table, view),
        batch_size=options.batch_size or config.training.micro_batch or config.training.batch_size,
        sampler=data.EpochSampler(range(len(table)), None, len(table)),  # yields (epoch, row), as the dataset takes it
        num_workers=workers,
        worker_init_fn=ignore_in_worker if workers else None,
    )
    with device.memory_errors(config), torch.inference_mode():
        net = fabric.setup_module(net).eval()
        batches = track(loader, f"{config.model.name}: predicting", transient=True, disable=not _terminal())
        parts = [net(images.to(fabric.device)).softmax(1).cpu() for images, _, _ in batches]
    return Predictions(table.ids, torch.cat(parts), member.class_names, member.labels)


def _terminal() -> bool:
    import sys

    return sys.stdout.isatty()


def predict(path: Path, root: Path, output: Path, options: Options) -> dict[str, Any]:
    """Predict `root`'s test images with the checkpoint or ensemble.json at `path`; write the results into `output`.

    Returns what metrics.json holds. Raises ConfigError or DataError.
    """
    from trainer import ensemble

    if path.suffix == ".json":
        made = ensemble.read(path)
        table = test_images(root)
        fingerprint = data.content_fingerprint(table.paths)
        stored = read_predictions(path.parent / "predictions.npz", table.ids, fingerprint)
        if stored is not None:
            print(f"the ensemble has predicted these {len(table)} images already: {path.parent / 'predictions.npz'}")
            predictions = stored
        else:
            predictions = ensemble.run(made, table, options)
    else:
        member = checkpoint.load(path)
        table = test_images(root)
        fingerprint = data.content_fingerprint(table.paths)
        predictions = run_model(member, table, options)
    write(predictions, output, fingerprint)
    summary = {"images": len(table), "checkpoint": str(path), "class_names": predictions.class_names}
    write_json(output / "metrics.json", summary)
    return summary


def write(predictions: Predictions, output: Path, fingerprint: str) -> None:
    """submission.csv (ID,target) and predictions.npz (ids, probabilities, class_names, labels, test_fingerprint)."""
    with replacing(output / "predictions.npz") as temporary:
        np.savez_compressed(
            temporary,
            ids=np.array(predictions.ids),
            probabilities=predictions.probabilities.numpy(),
            class_names=np.array(predictions.class_names),
            labels=np.array(predictions.labels),
            test_fingerprint=np.array(fingerprint),
        )
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["ID", "target"])
    choices = predictions.probabilities.argmax(1).tolist()
    writer.writerows([i, predictions.labels[c]] for i, c in zip(predictions.ids, choices, strict=True))
    write_text(output / "submission.csv", out.getvalue())
    print(f"{len(predictions.ids)} images predicted: {output / 'submission.csv'}")


def read_predictions(path: Path, ids: Sequence[str], fingerprint: str) -> Predictions | None:
    """What `write` left, where it is of the very images asked for; else None."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["test_fingerprint"]) != fingerprint or stored["ids"].tolist() != list(ids):
                return None
            return Predictions(
                list(ids),
                torch.from_numpy(stored["probabilities"]),
                stored["class_names"].tolist(),
                stored["labels"].tolist(),
            )
    except (ValueError, KeyError, OSError):  # not ours, or damaged: predict anew
        return None
