"""Find duplicate images: equal files, equal pixels, or a rescaled, re-encoded, rotated or mirrored copy.

Three filters run one after another. The first compares descriptors of 24 × 24 pixels of all pairs in eight
orientations. The second compares thumbnails. The third compares the images at the size of the smaller one. The last two
measure the worst place of a pair, not the mean, because pages of one template differ only in a few characters.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.base import cores
from trainer.base.activity import counting
from trainer.images import examined
from trainer.images.examined import digests
from trainer.images.read_page import page_shape, read_page
from trainer.images.reading import open_image

TURNS = tuple((quarters, mirrored) for mirrored in (False, True) for quarters in range(4))
"""The eight orientations of a page: counter-clockwise quarter turns, then perhaps a mirror image (left to right)."""

DESCRIPTOR, THUMBNAIL, LARGEST = 24, 128, 1024
"""Image sides in pixels: first filter, second filter, and a square with the area of the largest images in the third."""
SIMILAR = 0.85
"""First filter: lowest correlation. Copies have 0.97, or 0.87 if they were reduced without smoothing."""
THUMBNAIL_DIFFERENCE, THUMBNAIL_DIFFERENCE_RESIZED = 0.3, 0.7
"""Second filter: largest difference for equal sizes (copies: 0.14) and for two sizes (unsmoothed copies: 0.62)."""
DIFFERENCE = 0.2
"""Third filter: largest difference. Copies have 0.16. Invoices of 1,000 pixels with five other digits have 0.56."""
RESIZED = 1.05
"""Above this ratio of sides, the smaller image may be reduced without smoothing."""
REDUCTIONS = (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_NEAREST, cv2.INTER_NEAREST_EXACT)
"""How libraries reduce images. All except the first drop details and add false patterns."""
MOST_PAIRS = 100_000
"""About the most pairs of one group of equal files."""
BATCH = 1024
"""Largest number of pairs that wait for the third filter. Each takes memory."""

Grey = NDArray[np.uint8]


@dataclass(frozen=True)
class Look:
    """Data of an image for the comparison: SHA-256 of file and pixels, size, and a grey thumbnail (128, 128)."""

    file: str
    pixels: str
    width: int
    height: int
    thumbnail: Grey


@dataclass(frozen=True)
class Pair:
    """Two rows `a` < `b` with the same image."""

    a: int
    b: int
    kind: str
    """file (equal bytes), pixels (equal decoded pixels) or look (similar)."""
    turn: tuple[int, bool] = TURNS[0]
    """The orientation, one of `TURNS`, that maps `b` to `a`. `b` is `a`, perhaps mirrored, rotated clockwise by it."""
    difference: float = 0.0
    """Difference at the worst place: 0 equal, 1 nothing in common."""


@dataclass(frozen=True)
class Duplicates:
    pairs: list[Pair]
    candidates: int
    """Number of pairs that passed the first filter."""
    compared: int
    """Number of pairs compared at full size."""


def equal_files(paths: Sequence[Path]) -> list[Pair]:
    """Pairs of files with equal bytes. Reads only files of equal size, so it is fast.

    Of many equal files, such as blank pages, only some pairs are listed, about `MOST_PAIRS`: each file with the first
    ones. A split between any two of them is also a split of a listed pair.
    """
    sizes: dict[int, list[int]] = defaultdict(list)
    for row, path in enumerate(paths):
        sizes[path.stat().st_size].append(row)
    rows = sorted(row for same in sizes.values() if len(same) > 1 for row in same)
    groups: dict[bytes, list[int]] = defaultdict(list)
    for row, digest in zip(rows, digests([paths[row] for row in rows]), strict=True):
        groups[digest].append(row)
    return [
        Pair(a, b, "file")
        for same in groups.values()
        for place, a in enumerate(same[: max(1, MOST_PAIRS // len(same))])
        for b in same[place + 1 :]
    ]


def look(path: Path) -> Look:
    """The `Look` of an image file. Raises the errors of `trainer.images.read_page.read_page`."""
    with examined.opened(path) as (file, digest):
        height, width = page_shape(file)
        file.seek(0)
        image = Image.fromarray(read_page(file))
    pixels = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
    thumbnail = _resize(np.asarray(image.convert("L")), THUMBNAIL, THUMBNAIL)
    return Look(digest.hex(), pixels, width, height, thumbnail)


def find_duplicates(paths: Sequence[Path], looks: Sequence[Look]) -> Duplicates:
    """All pairs of duplicates in `paths`. `looks` has one entry per path, in the same order."""
    if not looks:
        return Duplicates([], 0, 0)
    exact = [Pair(a, b, "file") for a, b in _equal({row: seen.file for row, seen in enumerate(looks)})]
    known = {(pair.a, pair.b) for pair in exact}
    same = [p for p in _equal({row: seen.pixels for row, seen in enumerate(looks)}) if p not in known]
    exact += [Pair(a, b, "pixels") for a, b in same]
    known.update(same)

    turns: dict[tuple[int, int], list[tuple[int, bool]]] = defaultdict(list)
    for a, b, turn in _similar(looks):
        if (a, b) not in known and _same_shape(looks[a], looks[b], turn):
            turns[a, b].append(turn)
    grey = lru_cache(maxsize=32)(lambda row: np.asarray(open_image(paths[row]).convert("L")))

    def compare(pair: tuple[int, int]) -> tuple[bool, Pair | None]:
        a, b = pair
        near = [turn for turn in turns[pair] if _alike(looks[a], looks[b], turn)]
        best = min(((difference(grey(a), turned(grey(b), t)), t) for t in near), default=(1.0, TURNS[0]))
        duplicate = Pair(a, b, "look", best[1], round(best[0], 4)) if best[0] < DIFFERENCE else None
        return bool(near), duplicate

    candidates = sorted(turns)
    with ThreadPoolExecutor(cores.available()) as pool:
        batches = (candidates[start : start + BATCH] for start in range(0, len(candidates), BATCH))
        compared = (result for batch in batches for result in pool.map(compare, batch))
        results = list(counting(compared, "comparing similar pairs", len(candidates)))
    pairs = sorted([*exact, *(duplicate for _, duplicate in results if duplicate)], key=lambda p: (p.a, p.b))
    return Duplicates(pairs, len(turns), sum(near for near, _ in results))


def turned(image: Grey, turn: tuple[int, bool]) -> Grey:
    """`image` (H, W) in the orientation `turn`."""
    rotated = np.rot90(image, turn[0])
    return np.ascontiguousarray(rotated[:, ::-1] if turn[1] else rotated)


def difference(a: Grey, b: Grey) -> float:
    """Difference of two grey images (H, W) at the worst place: 0 equal, about 1 nothing in common, 2 inverted.

    The larger image is reduced to the size of the smaller, in each way of the common libraries. The result is that of
    the first way with equal images, else the lowest. Both must have the same orientation and aspect ratio.
    """
    if a.size < b.size:
        a, b = b, a
    height, width = b.shape
    scale = min(1.0, LARGEST / (height * width) ** 0.5)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = _resize(b, *size)
    least = 2.0
    for way in REDUCTIONS if (a.size / b.size) ** 0.5 > RESIZED else REDUCTIONS[:1]:
        least = min(least, _difference(_resize(_resize(a, width, height, way), *size), small, 8, 8))
        if least < DIFFERENCE:
            break
    return least


def _difference(a: Grey, b: Grey, spread: float, noise: float) -> float:
    """Largest relative difference of energy in a window of 16 × 16 pixels.

    A light blur first removes the finest details, which codecs and resampling change. A filter removes variation over
    more than `spread` pixels (lighting, shading). `noise`, in grey levels, is what a codec may add to an empty place.
    The result is at least 1 − the correlation of the whole images, so that two empty sheets are not equal."""
    first, second = _details(a, spread), _details(b, spread)
    energies = float(np.square(first).sum()), float(np.square(second).sum())
    if not min(energies):
        return 1.0
    correlation = float((first * second).sum()) / (energies[0] * energies[1]) ** 0.5
    second *= min(max((energies[0] / energies[1]) ** 0.5, 0.5), 2)  # undo a change of contrast
    lost = cv2.blur(np.square(first - second), (16, 16))
    energy = cv2.blur(np.square(first) + np.square(second), (16, 16))
    return float(max(1 - correlation, (lost / (energy + noise**2)).max()))


def _details(image: Grey, spread: float) -> NDArray[np.float32]:
    smooth = cv2.GaussianBlur(image.astype(np.float32), (0, 0), 1)
    return np.asarray(smooth - cv2.GaussianBlur(smooth, (0, 0), spread), np.float32)


def _alike(a: Look, b: Look, turn: tuple[int, bool]) -> bool:
    ratio = (a.width * a.height / (b.width * b.height)) ** 0.5
    limit = THUMBNAIL_DIFFERENCE_RESIZED if max(ratio, 1 / ratio) > RESIZED else THUMBNAIL_DIFFERENCE
    return _difference(a.thumbnail, turned(b.thumbnail, turn), 6, 6) < limit


def _same_shape(a: Look, b: Look, turn: tuple[int, bool]) -> bool:
    """Whether the aspect ratios are equal, except for rounding to whole pixels."""
    width, height = (b.height, b.width) if turn[0] % 2 else (b.width, b.height)
    shortest = min(a.width, a.height, b.width, b.height)
    return abs(float(np.log(a.width * height / (a.height * width)))) < 0.02 + 1 / shortest


def _similar(looks: Sequence[Look], chunk: int = 512) -> Iterator[tuple[int, int, tuple[int, bool]]]:
    """Rows a < b, and orientations, with correlated descriptors."""
    small = [_resize(seen.thumbnail, DESCRIPTOR, DESCRIPTOR) for seen in looks]
    still = _descriptors(small)
    for turn in TURNS:
        laid = _descriptors([turned(image, turn) for image in small])
        for start in range(0, len(looks), chunk):
            similar = still[start : start + chunk] @ laid[start:].T > SIMILAR
            for a, b in zip(*np.nonzero(np.triu(similar, 1)), strict=True):
                yield start + int(a), start + int(b), turn


def _descriptors(images: Sequence[Grey]) -> NDArray[np.float32]:
    """Descriptors (N, D) of unit length, so that products are correlations. Zero for an image without details."""
    descriptors = []
    for image in images:
        plain = image.astype(np.float32)
        plain -= cv2.GaussianBlur(plain, (0, 0), 3)
        plain -= plain.mean()
        descriptors.append((plain / max(float(np.linalg.norm(plain)), 1e-3)).ravel())
    return np.array(descriptors, np.float32).reshape(len(images), -1)


def _resize(image: Grey, width: int, height: int, way: int = cv2.INTER_AREA) -> Grey:
    if image.shape == (height, width):
        return image
    return np.asarray(cv2.resize(image, (width, height), interpolation=way), np.uint8)


def _equal(digests: dict[int, str]) -> list[tuple[int, int]]:
    rows: dict[str, list[int]] = defaultdict(list)
    for row, digest in digests.items():
        rows[digest].append(row)
    return [pair for same in rows.values() for pair in combinations(same, 2)]
