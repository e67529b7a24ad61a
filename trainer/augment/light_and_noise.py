"""Faster augmentations of light and noise, with the same draws or the same distribution as albumentations."""

from __future__ import annotations

from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from trainer.augment.warps import WHITE, PendingPage, borders, finish, image_of, lay_out, parameters, settle
from trainer.images.read_page import Pixels, Shape

NOISE_POOL = 2**22
"""Number of normal samples in the pool for noise fields."""


def clahe(page: PendingPage, transform: Any) -> bool:
    """CLAHE on L of Lab, as in albumentations. Two shortcuts avoid most conversions to Lab and back. First, the white
    paper around a page stays white, because the histogram of a tile sums to 255. Second, nearly grey pixels change like
    grey pixels of the same lightness. The error is the rounding of a grey value, times the clip limit."""
    drawn = parameters(page, transform)
    if page.matrix is not None or page.fill not in (None, WHITE):
        lay_out(page)
    settle(page)
    around = borders(page)
    pixels, top, left = page.pixels, around[0], around[2]
    height, width = pixels.shape[:2]
    colourful = _colourful(pixels)
    labs = [cv2.cvtColor(np.ascontiguousarray(pixels[place]), cv2.COLOR_RGB2LAB) for place in colourful]
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    lightness = image_of(cv2.LUT(grey, _greys()[0]))
    for place, lab in zip(colourful, labs, strict=True):
        lightness[place] = lab[..., 0]
    lightness = image_of(cv2.copyMakeBorder(lightness, *around, cv2.BORDER_CONSTANT, value=(255.0,)))
    equalizer = cv2.createCLAHE(clipLimit=drawn["clip_limit"], tileGridSize=transform.tile_grid_size)
    lightness = image_of(equalizer.apply(lightness))[top : top + height, left : left + width]
    after = cv2.LUT(lightness, _greys()[1])
    brighter, darker = (cv2.merge([cv2.subtract(*pair)] * 3) for pair in ((after, grey), (grey, after)))
    page.pixels = image_of(cv2.subtract(cv2.add(pixels, brighter), darker))
    for place, lab in zip(colourful, labs, strict=True):
        lab[..., 0] = lightness[place]
        page.pixels[place] = cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)
    return True


NEARLY_GREY = 24
"""Largest difference between red, green and blue of a nearly grey pixel, of 255."""
BLOCK = 32
"""Side of the squares for the test of nearly grey, pixels."""


def _colourful(pixels: Pixels) -> list[tuple[slice, slice]]:
    """Slices that contain all coloured pixels: runs of blocks, or the whole page."""
    red, green, blue = cv2.split(pixels)
    chroma = cv2.subtract(cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue))
    height, width = chroma.shape
    chroma = cv2.copyMakeBorder(chroma, 0, -height % BLOCK, 0, -width % BLOCK, cv2.BORDER_CONSTANT, value=(0.0,))
    strong = chroma.reshape(-1, BLOCK, chroma.shape[1] // BLOCK, BLOCK).max((1, 3)) > NEARLY_GREY
    if strong.mean() > 0.5:
        return [(slice(None), slice(None))]
    edges = np.diff(np.pad(strong, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    down, across = (BLOCK * place for place in np.nonzero(edges))  # per row: start, end, start, end, …
    runs = zip(down[::2].tolist(), across[::2].tolist(), across[1::2].tolist(), strict=True)
    return [(slice(top, top + BLOCK), slice(left, right)) for top, left, right in runs]


@cache
def _greys() -> tuple[Pixels, Pixels]:
    """Tables from grey value to lightness and from lightness to grey value: L of Lab (L, 128, 128)."""
    grey = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    lab = np.full((1, 256, 3), 128, dtype=np.uint8)
    lab[0, :, 0] = np.arange(256)
    lightness, back = cv2.cvtColor(grey, cv2.COLOR_RGB2LAB)[0, :, 0], cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)[0, :, 1]
    return image_of(lightness).copy(), image_of(back).copy()


def gauss_noise(page: PendingPage, transform: Any) -> bool:
    """Gaussian noise as in albumentations, cut from a pool of samples. Neighbouring pixels are independent, and two
    images almost never get equal noise."""
    if not transform.per_channel or transform.noise_scale_factor != 1:
        return False
    finish(page)
    sigma = transform.py_random.uniform(*transform.std_range) * 255
    mean = transform.py_random.uniform(*transform.mean_range) * 255
    wanted = page.pixels.size
    pool = _pool()
    if wanted > len(pool) // 2:
        noise = transform.random_generator.standard_normal(wanted, dtype=np.float32)
    else:
        start = int(transform.random_generator.integers(len(pool) - wanted))
        noise = pool[start : start + wanted]
    field = noise.reshape(page.pixels.shape[0], -1) * np.float32(sigma)
    if mean:
        field = field + np.float32(mean)
    # Truncate before the addition, as in albumentations. The configuration compensates the smaller σ.
    rows = page.pixels.reshape(page.pixels.shape[0], -1)
    np.trunc(field, out=field)
    page.pixels = image_of(cv2.add(rows, field, dtype=cv2.CV_8U)).reshape(page.pixels.shape)
    return True


def illumination(page: PendingPage, transform: Any) -> bool:
    drawn = parameters(page, transform)
    lay_out(page)
    height, width = page.pixels.shape[:2]
    # The light is smooth: compute its effect on grey at an eighth of the resolution. Not on 4 rows: OpenCV would take a
    # column of 4 numbers for a scalar.
    small = max(8, -(-height // 8)), max(8, -(-width // 8))
    grey = np.full((*small, 3), 0.5, dtype=np.float32)
    _light(page, transform.apply(grey, **drawn)[..., 0] * 2)
    return True


def plasma_shadow(page: PendingPage, transform: Any) -> bool:
    finish(page)
    intensity = transform.py_random.uniform(*transform.shadow_intensity_range)
    _light(page, 1 - intensity * plasma(page.shape, transform.roughness, transform.random_generator))
    return True


def plasma(shape: Shape, roughness: float, generator: np.random.Generator) -> NDArray[np.float32]:
    """A field from 0 to 1 by the diamond-square algorithm, with the same steps as in albumentations. It computes only
    the visible part of each grid, sometimes a quarter of the points."""
    steps = int(np.ceil(np.log2(max(shape) - 1))) - 1
    needed = [shape]
    for _ in range(steps):
        needed.append((needed[-1][0] // 2 + 2, needed[-1][1] // 2 + 2))
    grid = generator.uniform(-1, 1, (3, 3)).astype(np.float32)
    for step in range(steps):
        scale = np.float32(roughness**step)
        height, width = 2 * grid.shape[0] - 1, 2 * grid.shape[1] - 1
        noise = (generator.random((height, width), dtype=np.float32) * 2 - 1) * scale
        wider = np.zeros((height, width), dtype=np.float32)
        wider[::2, ::2] = grid + noise[::2, ::2]
        for kernel in (_DIAMOND, _SQUARE):
            between = cv2.filter2D(wider, -1, kernel, borderType=cv2.BORDER_CONSTANT)
            wider += np.where(between > 0, between + noise, 0)
        height, width = needed[steps - 1 - step]
        wider = np.ascontiguousarray(wider[:height, :width])
        grid = np.asarray(cv2.normalize(wider, wider, 0, 1, cv2.NORM_MINMAX), dtype=np.float32)
    return np.asarray(cv2.normalize(grid[: shape[0], : shape[1]].copy(), None, 0, 1, cv2.NORM_MINMAX), dtype=np.float32)  # type: ignore[call-overload]


_DIAMOND = np.array([[0.25, 0, 0.25], [0, 0, 0], [0.25, 0, 0.25]], dtype=np.float32)
_SQUARE = np.array([[0, 0.25, 0], [0.25, 0, 0.25], [0, 0.25, 0]], dtype=np.float32)


def _light(page: PendingPage, field: NDArray[np.float32]) -> None:
    """Multiply the page with a light field (h, w), scaled to the page."""
    height, width = page.pixels.shape[:2]
    light = cv2.resize(np.asarray(field, dtype=np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    page.pixels = image_of(cv2.multiply(page.pixels, cv2.merge([light] * 3), dtype=cv2.CV_8U))


@cache
def _pool() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(NOISE_POOL, dtype=np.float32)
