"""`make bench`: how fast images are loaded and models trained, as ratios to a plain reference measured in the same run.

Reference and candidate take turns, and medians are compared: absolute figures of a busy machine say little.
"""

from __future__ import annotations

import itertools
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import albumentations as A
import cv2
import numpy as np
import timm
import torch
from torch.nn.functional import cross_entropy

from trainer import config, data, device
from trainer.augment import Augmentation, build
from trainer.model import Normalized, mean_std
from trainer.sample_data import write_sample_data

ROUNDS = 5


def compare(reference: Callable[[], int], candidate: Callable[[], int]) -> tuple[float, float]:
    """Medians of images per second of both, taking turns; the first turn of each warms up and does not count."""
    speeds: dict[int, list[float]] = {0: [], 1: []}
    for turn in range(ROUNDS + 1):
        for which, work in enumerate((reference, candidate)):
            started = time.perf_counter()
            images = work()
            if turn:
                speeds[which].append(images / (time.perf_counter() - started))
    return statistics.median(speeds[0]), statistics.median(speeds[1])


def loading(root: Path, size: int) -> tuple[float, float]:
    """One process, the manual's augmentation: cv2.imread + albumentations + its Normalize, against the trainer's dataset."""
    settings = config.compose([f"data.img_size={size}"]).data
    table = data.read_training(root, settings)
    rows = range(80)
    plain = build(settings.train_transforms, "x").transforms
    pipeline = A.Compose([*plain, A.Normalize()])
    dataset = data.ImageDataset(table, Augmentation(settings.train_transforms, "x", size))

    def reference() -> int:
        for row in rows:
            image = cv2.cvtColor(cv2.imread(str(table.paths[row])), cv2.COLOR_BGR2RGB)
            torch.from_numpy(np.ascontiguousarray(pipeline(image=image)["image"].transpose(2, 0, 1)))
        return len(rows)

    epochs = itertools.count()  # other draws in every turn, as the reference has them

    def candidate() -> int:
        epoch = next(epochs)
        for row in rows:
            dataset[epoch, row]
        return len(rows)

    return compare(reference, candidate)


def training(name: str, size: int, batch: int) -> tuple[float, float]:
    """Steps on the CPU: the plain model in float32, against the trainer's precision and memory layout."""
    precision = device.precision("auto", "cpu")
    images = torch.randint(0, 255, (batch, 3, size, size), dtype=torch.uint8)
    targets = torch.randint(0, 17, (batch,))

    def steps(channels_last: bool, autocast: bool) -> Callable[[], int]:
        net = Normalized(timm.create_model(name, num_classes=17), *mean_std(name), channels_last)
        optimizer = torch.optim.AdamW(net.parameters())

        def work() -> int:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = cross_entropy(net(images), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return batch

        return work

    return compare(steps(False, False), steps(device.channels_last(None, "cpu"), precision == "bf16"))


def main() -> None:
    cv2.setNumThreads(0)
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        write_sample_data(Path(folder) / "data", 2, 40, 0)
        for size in (768, 384):
            reference, candidate = loading(Path(folder) / "data", size)
            print(f"load  {size} px   {candidate:7.1f} images/s   {candidate / reference:.2f}× the plain pipeline")
    for name, size, batch in (("resnet34", 224, 8), ("efficientnet_b4", 224, 4)):
        reference, candidate = training(name, size, batch)
        print(f"train {name} {size} px   {candidate:7.1f} images/s   {candidate / reference:.2f}× plain float32")


if __name__ == "__main__":
    main()
