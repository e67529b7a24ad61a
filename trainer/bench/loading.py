"""Loading speed, compared with a plain loader and timm's loader. The measurements alternate."""

from __future__ import annotations

import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import albumentations as A
import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from trainer.augment.pipeline import Augmentation, build
from trainer.config.compose import compose
from trainer.config.schema import DataConfig
from trainer.data import drawn
from trainer.data.dataset import ImageDataset, collate
from trainer.data.rows import Table
from trainer.images import decode
from trainer.training.stop import ignore_in_worker

SOURCES = {"jpeg": (498, 538, 24), "scan": (2480, 3508, 12)}
"""Width, height and number of pages: as in the competition, and A4 at 300 dpi."""
BATCH = 6
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Pages:
    """Drawn pages with one folder per class, for both loaders."""

    root: Path
    table: Table
    megabytes: float
    """Mean file size, bytes."""


def draw(folder: Path, source: str) -> Pages:
    """Pages with paper grain, so that their JPEG files are as large as scans."""
    width, height, count = SOURCES[source]
    chance, grain = random.Random(0), np.random.default_rng(0)
    kinds, paths = list(drawn.KINDS)[:2], []
    for number in range(count):
        page = drawn.draw(kinds[number % 2], chance).resize((width, height), Image.Resampling.BICUBIC)
        noisy = np.asarray(page) + grain.normal(0, 3.5, (height, width, 1))
        path = folder / source / kinds[number % 2] / f"{number:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(path, quality=90)
        paths.append(path)
    table = Table([path.name for path in paths], paths, [n % 2 for n in range(count)], kinds, kinds)
    return Pages(folder / source, table, statistics.mean(path.stat().st_size for path in paths) / 1e6)


class Plain(Dataset[tuple[torch.Tensor, int]]):
    """A simple loader: imread, the configuration's list, albumentations' Normalize. It has the trainer's draws."""

    def __init__(self, pages: Pages, settings: DataConfig) -> None:
        self.pages, self.epoch = pages, 0
        listed = build(settings.train_transforms, "data.train_transforms").transforms
        self.pipeline = A.Compose([*listed, A.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.pages.table)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        generator = np.random.default_rng((0, self.epoch, row))
        self.pipeline.set_random_state(generator, random.Random(int(generator.integers(2**63))))
        image = _imread(self.pages.table.paths[row])
        pixels = self.pipeline(image=image)["image"]
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))), self.pages.table.targets[row]


def _imread(path: Path) -> Any:
    read: Any = cv2.imread(str(path))
    return cv2.cvtColor(read, cv2.COLOR_BGR2RGB)


def timm_loader(pages: Pages, size: int) -> Iterable[Any]:
    """timm's loader with its own training augmentation and no processes."""
    from timm.data import create_dataset, create_loader  # type: ignore[attr-defined]  # exported, but not in __all__

    dataset = create_dataset("", root=str(pages.root), is_training=True)
    loader: Iterable[Any] = create_loader(
        dataset,
        input_size=(3, size, size),
        batch_size=BATCH,
        is_training=True,
        use_prefetcher=False,
        num_workers=0,
        persistent_workers=False,
        mean=MEAN,
        std=STD,
    )
    return loader


def ours(
    images: decode.Images, pages: Pages, settings: DataConfig, epochs: Iterable[int], workers: int = 0
) -> Iterable[Any]:
    """The trainer's loader of these epochs."""
    view = Augmentation(settings.train_transforms, "data.train_transforms", settings.img_size, 0, merge=True)
    items: Any = [(epoch, row) for epoch in epochs for row in range(len(pages.table))]
    return DataLoader(
        ImageDataset(pages.table, view, images),
        batch_size=BATCH,
        sampler=items,
        num_workers=workers,
        worker_init_fn=ignore_in_worker if workers else None,
        collate_fn=collate,
    )


def _spent(work: Callable[[], Iterable[Any]]) -> float:
    """Seconds to make the loader and go through it."""
    started = time.perf_counter()
    for _ in work():
        pass
    return time.perf_counter() - started


@contextmanager
def _cache(folder: Path) -> Iterator[None]:
    before = os.environ.get("CACHE_DIR")
    os.environ["CACHE_DIR"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["CACHE_DIR"]
        else:
            os.environ["CACHE_DIR"] = before
        shutil.rmtree(folder, ignore_errors=True)


def _opened(pages: Pages, settings: DataConfig) -> decode.Images:
    limit = decode.Limit.of(settings.train_transforms)
    return decode.shared(pages.table.paths, pages.table.ids, limit, None, "bench")


def measure(quick: bool) -> list[dict[str, Any]]:
    """Rows with `source`, `size`, `epoch` (first: it fills an empty cache; later), `images_per_s`, `reference`, `timm`,
    `ratio` and `ratio_timm`, each on one core. Values are medians over rounds; all loaders alternate in a round. A
    ratio is the median of the ratios within a round. The reference of the first epoch has the same draws, because the
    cost of augmentation depends on them."""
    cv2.setNumThreads(0)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, one_thread():
        folder = Path(name)
        for source in SOURCES:
            pages = draw(folder, source)
            for size in (768, 384):
                rows += _compare(pages, source, size, folder / "cache", 2 if quick else 5)
    return rows


LATER = 4
"""Epochs per round after the first. The cost of augmentation depends on its draws, and few images have few draws."""


def _later(turn: int) -> range:
    return range(2 * turn + 1, 2 * turn + 1 + LATER)


def _compare(pages: Pages, source: str, size: int, cache: Path, rounds: int) -> list[dict[str, Any]]:
    settings = compose([f"data.img_size={size}"]).data
    plain = Plain(pages, settings)
    reference: Iterable[Any] = DataLoader(plain, batch_size=BATCH)
    theirs = timm_loader(pages, size)
    seconds: dict[str, list[float]] = {key: [] for key in ("reference", "same draws", "timm", "first", "later")}
    for turn in range(rounds + 1):  # the first is a warm-up
        with _cache(cache):
            plain.epoch = 2 * turn
            spent = {"same draws": _spent(lambda: reference)}
            opened: list[decode.Images] = []

            def first(turn: int = turn, opened: list[decode.Images] = opened) -> Iterable[Any]:
                opened.append(_opened(pages, settings))
                return ours(opened[0], pages, settings, [2 * turn])

            def later(turn: int = turn, opened: list[decode.Images] = opened) -> Iterable[Any]:
                return ours(opened[0], pages, settings, _later(turn))

            spent["first"] = _spent(first)
            plain.epoch = 2 * turn + 1
            spent["reference"] = (spent["same draws"] + _spent(lambda: reference)) / 2
            spent["later"] = _spent(later) / LATER
            spent["timm"] = _spent(lambda: theirs)
            opened[0].close()
        if turn:
            for key, value in spent.items():
                seconds[key].append(value)
    speed = {key: len(pages.table) / statistics.median(values) for key, values in seconds.items()}

    def ratio(epoch: str, to: str) -> float:
        return round(statistics.median(a / b for a, b in zip(seconds[to], seconds[epoch], strict=True)), 3)

    return [
        {
            "source": source,
            "size": size,
            "epoch": epoch,
            "images_per_s": round(speed[epoch], 2),
            "reference": round(speed["reference"], 2),
            "ratio": ratio(epoch, "same draws" if epoch == "first" else "reference"),
            "timm": round(speed["timm"], 2),
            "ratio_timm": ratio(epoch, "timm"),
            "megabytes": round(pages.megabytes, 3),
        }
        for epoch in ("first", "later")
    ]


def gains(quick: bool) -> list[dict[str, Any]]:
    """Time saved by each loading step at 768 px, milliseconds per image on one core. The variants alternate and have
    the same draws."""
    cv2.setNumThreads(0)
    settings = compose(["data.img_size=768"]).data
    limit = decode.Limit.of(settings.train_transforms)
    assert limit is not None
    rows = []
    with tempfile.TemporaryDirectory() as name, one_thread(), _cache(Path(name) / "cache"):
        for source in SOURCES:
            pages = draw(Path(name), source)
            plain, images = Plain(pages, settings), _opened(pages, settings)
            listed, view = (
                Augmentation(settings.train_transforms, "data.train_transforms", 768, 0, merge)
                for merge in (False, True)
            )
            up = A.LongestMaxSize(768, interpolation=limit.interpolation)

            def read(row: int, pages: Pages = pages) -> Any:
                return _imread(pages.table.paths[row])

            ways: dict[str, Callable[[int, int], Any]] = {
                "the list as written": lambda _, row, plain=plain: plain[row],  # type: ignore[misc]
                "bytes, normalised on the device": lambda e, row, v=listed, read=read: v(read(row), e, row),  # type: ignore[misc]
                "whole turns, one warp": lambda e, row, v=view, read=read, up=up: v(
                    up(image=read(row))["image"], e, row
                ),  # type: ignore[misc]
                "at the page's own size": lambda e, row, v=view, read=read: v(read(row), e, row),  # type: ignore[misc]
                "decoded near the size": lambda e, row, v=view, p=pages: v(  # type: ignore[misc]
                    decode.decode(p.table.paths[row], limit), e, row
                ),
                "decoded once": lambda e, row, v=view, i=images: v(i(row), e, row),  # type: ignore[misc]
            }
            spent: dict[str, list[float]] = {way: [] for way in ways}
            for turn in range((2 if quick else 5) + 1):  # the first fills the cache and is not counted
                plain.epoch = turn
                for way, make in ways.items():
                    started = time.perf_counter()
                    for row in range(len(pages.table)):
                        make(turn, row)
                    if turn:
                        spent[way].append((time.perf_counter() - started) / len(pages.table) * 1e3)
            images.close()
            before = None
            for way, values in spent.items():
                now = statistics.median(values)
                saved = "" if before is None else f"{before - now:.2f}"
                rows.append({"source": source, "step": way, "ms": f"{now:.2f}", "saves_ms": saved})
                before = now
    return rows


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread for image loading, as in a loader process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def scaling(quick: bool) -> list[dict[str, Any]]:
    """Images per second with 1 and 2 loading processes (`workers`), and with 1 and 2 parallel runs (`runs`). The runs
    share one cache and have one loading process each. 498 × 538 JPEGs at 768 px, later epochs."""
    settings = compose(["data.img_size=768"]).data
    rows = []
    with tempfile.TemporaryDirectory() as name, _cache(Path(name) / "cache"):
        pages = draw(Path(name), "jpeg")
        images = _opened(pages, settings)
        for _ in ours(images, pages, settings, [0]):
            pass
        times: dict[int, list[float]] = {1: [], 2: []}
        for turn in range(2 if quick else 5):
            for workers, spent in times.items():
                spent.append(_passes(pages, settings, workers, turn))
        count = PASSES * len(pages.table)
        rows = [{"workers": w, "images_per_s": round(count / statistics.median(s), 2)} for w, s in times.items()]
        for runs in (1, 2):
            spans = []
            for turn in range(2 if quick else 5):
                with ProcessPoolExecutor(runs) as pool:
                    jobs = [pool.submit(_passes, pages, settings, 0, turn) for _ in range(runs)]
                    spans.append(max(job.result() for job in jobs))
            rows.append({"runs": runs, "images_per_s": round(runs * count / statistics.median(spans), 2)})
        images.close()
    return rows


PASSES = 4
"""Epochs per measurement of `scaling`, so that the start of processes has little effect."""


def _passes(pages: Pages, settings: DataConfig, workers: int, turn: int) -> float:
    """Seconds for `PASSES` epochs in one loader."""
    cv2.setNumThreads(0)
    with one_thread():
        images = _opened(pages, settings)
        loader = ours(images, pages, settings, range(turn * PASSES, (turn + 1) * PASSES), workers)
        spent = _spent(lambda: loader)
        images.close()
    return spent
