"""A list of augmentations done with less work and the same draws: at the page's own resolution before it is scaled up,
with one warp for all that moves it.

Every transform is asked for its parameters as albumentations would ask it, in the same order and from the same random
streams, so that a sample gets what the list as written would give it; only the order in which pixels are made changes:

- a page smaller than `data.img_size` stays so until a step needs the final pixels (noise, sharpening, blur, …);
- turns by 90° and flips move whole pixels; what follows is multiplied into one matrix and interpolated once, where the
  list would interpolate after each step;
- steps that look at each pixel's colour, and CLAHE, whose tiles scale with the page, run on the small page.

A transform that is not known here runs as albumentations has it, on the final pixels: any list comes out right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Matrix = NDArray[np.float64]
Shape = tuple[int, int]
"""Height, width."""

ANY_RESOLUTION = (
    A.CLAHE,
    A.ChannelShuffle,
    A.ColorJitter,
    A.HueSaturationValue,
    A.InvertImg,
    A.RGBShift,
    A.RandomBrightnessContrast,
    A.RandomGamma,
    A.ToGray,
)
"""Look at colours, or at shares of the page: the same before and after it is scaled, turned by 90° or mirrored."""
WHITE = (255.0, 255.0, 255.0)
NOISE_POOL = 2**22
"""Samples of a normal distribution from which fields of noise are cut."""


@dataclass
class Page:
    """A page on its way: `pixels`, and what is still to be done to them before they fill `shape`."""

    pixels: Image
    shape: Shape
    """Of the final page: what the transforms believe to see."""
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Final pixels of `fill` above, below, left and right of `pixels` scaled up."""
    fill: tuple[float, ...] | None = None
    """Colour of what is no page; None while there is no such place."""
    interpolation: int = cv2.INTER_LINEAR
    """How `pixels` are scaled, where nothing else moves them."""
    matrix: Matrix | None = None
    """From the coordinates of `pixels` to those of `shape`, padding and scale included. None: only those two."""


def merge(pipeline: A.Compose, image: Image) -> Image:
    """`image`, (H, W, 3) uint8 RGB, through `pipeline`, whose random state is set: what `pipeline(image=image)` makes
    up to one interpolation more or less."""
    if pipeline.py_random.random() >= pipeline.p:  # Compose draws before its transforms do
        return image
    page = Page(image, image.shape[:2])
    for transform in pipeline.transforms:
        if not transform.should_apply():
            continue
        step = STEPS.get(type(transform))
        if step is not None and step(page, transform):
            continue
        if isinstance(transform, ANY_RESOLUTION):
            _lay_out(page)
        else:
            finish(page)
        page.pixels = transform(image=own(page.pixels), force_apply=True)["image"]
        if not isinstance(transform, ANY_RESOLUTION):
            page.shape = page.pixels.shape[:2]
    return finish(page)


def own(image: Image) -> Image:
    """`image`, or a copy where it may not be written to, as one from a cache: some transforms work in place."""
    return image if image.flags.writeable else image.copy()


def _parameters(page: Page, transform: Any) -> dict[str, Any]:
    """What the transform draws for a page of the final shape."""
    seen = {"image": np.broadcast_to(np.uint8(0), (*page.shape, 3))}
    params: dict[str, Any] = transform.update_transform_params(transform.get_params(), seen)
    params.update(transform.get_params_dependent_on_data(params, seen))
    return params


def _scale(page: Page) -> tuple[float, float]:
    """Final pixels a pixel, down and across."""
    top, bottom, left, right = page.pads
    height, width = page.pixels.shape[:2]
    return (page.shape[0] - top - bottom) / height, (page.shape[1] - left - right) / width


def _matrix(page: Page) -> Matrix:
    """From pixels to the final page. Pixel centres are whole numbers, as OpenCV has them."""
    if page.matrix is not None:
        return page.matrix
    (down, across), (top, _, left, _) = _scale(page), page.pads
    return np.array([[across, 0, left + (across - 1) / 2], [0, down, top + (down - 1) / 2], [0, 0, 1]])


def _colour(fill: Any) -> tuple[float, ...]:
    values = tuple(np.ravel(fill).astype(float))
    return values * 3 if len(values) == 1 else values


def _longest_max_size(page: Page, transform: Any) -> bool:
    if isinstance(transform.max_size, list | tuple) or transform.max_size is None or page.matrix is not None:
        return False
    height, width = page.shape
    scale = transform.max_size / max(height, width)
    if scale < 1 or any(page.pads):
        return False
    page.shape = (round(height * scale), round(width * scale))
    page.interpolation = transform.interpolation
    return True


def _pad_if_needed(page: Page, transform: Any) -> bool:
    if transform.border_mode != cv2.BORDER_CONSTANT or page.matrix is not None or any(page.pads):
        return False
    drawn = _parameters(page, transform)
    page.pads = tuple(drawn[f"pad_{side}"] for side in ("top", "bottom", "left", "right"))
    page.fill = _colour(transform.fill)
    top, bottom, left, right = page.pads
    page.shape = (page.shape[0] + top + bottom, page.shape[1] + left + right)
    return True


def _rotate90(page: Page, transform: Any) -> bool:
    return _turn(page, _parameters(page, transform)["factor"], mirrored=False)


def _horizontal_flip(page: Page, transform: Any) -> bool:
    return _turn(page, 0, mirrored=True)


def _vertical_flip(page: Page, transform: Any) -> bool:
    return _turn(page, 2, mirrored=True)


def _transpose(page: Page, transform: Any) -> bool:
    return _turn(page, 1, mirrored=True)


def _d4(page: Page, transform: Any) -> bool:
    turns, mirrored = {
        "e": (0, False),
        "r90": (1, False),
        "r180": (2, False),
        "r270": (3, False),
        "v": (2, True),
        "hvt": (3, True),
        "h": (0, True),
        "t": (1, True),
    }[_parameters(page, transform)["group_element"]]
    return _turn(page, turns, mirrored)


def _turn(page: Page, turns: int, mirrored: bool) -> bool:
    """Mirror left to right, then turn by `turns` × 90° counter-clockwise."""
    if page.matrix is not None:
        height, width = page.shape
        if mirrored:
            page.matrix = np.array([[-1, 0, width - 1], [0, 1, 0], [0, 0, 1.0]]) @ page.matrix
        for _ in range(turns):
            page.matrix = np.array([[0, 1, 0], [-1, 0, width - 1], [0, 0, 1.0]]) @ page.matrix
            height, width = width, height
        page.shape = (height, width)
        return True
    top, bottom, left, right = page.pads
    if mirrored:
        page.pixels, left, right = _image(cv2.flip(page.pixels, 1)), right, left
    if turns:
        code = {1: cv2.ROTATE_90_COUNTERCLOCKWISE, 2: cv2.ROTATE_180, 3: cv2.ROTATE_90_CLOCKWISE}[turns]
        page.pixels = _image(cv2.rotate(page.pixels, code))
    for _ in range(turns):
        top, left, bottom, right = right, top, left, bottom
        page.shape = (page.shape[1], page.shape[0])
    page.pads = (top, bottom, left, right)
    return True


def _rotate(page: Page, transform: Any) -> bool:
    if transform.crop_border or not _mergeable(transform):
        return False
    return _move(page, _parameters(page, transform)["matrix"], page.shape, transform.fill)


def _affine(page: Page, transform: Any) -> bool:
    if not _mergeable(transform):
        return False
    drawn = _parameters(page, transform)
    height, width = (round(float(side)) for side in drawn["output_shape"])
    return _move(page, drawn["matrix"], (height, width), transform.fill)


def _perspective(page: Page, transform: Any) -> bool:
    if not _mergeable(transform):
        return False
    drawn = _parameters(page, transform)
    drawn_height, drawn_width = drawn["max_height"], drawn["max_width"]
    if not transform.keep_size:
        return _move(page, drawn["matrix"], (drawn_height, drawn_width), transform.fill)
    height, width = page.shape
    return _move(
        page, np.diag([width / drawn_width, height / drawn_height, 1]) @ drawn["matrix"], page.shape, transform.fill
    )


def _mergeable(transform: Any) -> bool:
    return bool(transform.border_mode == cv2.BORDER_CONSTANT and transform.interpolation == cv2.INTER_LINEAR)


def _move(page: Page, drawn: Matrix, shape: Shape, fill: Any) -> bool:
    """Multiply a warp of the final page in, where that shows what one warp after the other would show."""
    step = np.vstack([drawn, [0, 0, 1]]) if len(drawn) == 2 else np.asarray(drawn, dtype=np.float64)
    colour = _colour(fill)
    if page.fill is not None and page.fill != colour:
        _lay_out(page)
    if page.matrix is not None and not _inside(np.linalg.inv(step), shape, page.shape):
        _lay_out(page)  # the step before cut off what this one would bring back into sight
    page.matrix = step @ _matrix(page)
    page.pads, page.shape, page.fill = (0, 0, 0, 0), shape, colour
    return True


def _inside(back: Matrix, shape: Shape, before: Shape) -> bool:
    """Whether the corners of a page of `shape`, followed `back`, lie on the page `before`."""
    height, width = shape[0] - 1, shape[1] - 1
    corners = back @ np.array([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1.0]])
    if not (corners[2] > 0).all():
        return False
    across, down = corners[:2] / corners[2]
    return bool(
        (across >= -1).all() and (across <= before[1]).all() and (down >= -1).all() and (down <= before[0]).all()
    )


def _clahe(page: Page, transform: Any) -> bool:
    """As albumentations: on L of Lab. The paper around a page is white, and needs no conversion to Lab and back."""
    if page.matrix is not None or not any(page.pads) or page.fill != WHITE:
        return False
    drawn = _parameters(page, transform)
    top, bottom, left, right = borders = _borders(page)
    lab = cv2.cvtColor(page.pixels, cv2.COLOR_RGB2LAB)
    lightness = cv2.copyMakeBorder(cv2.extractChannel(lab, 0), *borders, cv2.BORDER_CONSTANT, value=(255.0,))
    lightness = cv2.createCLAHE(clipLimit=drawn["clip_limit"], tileGridSize=transform.tile_grid_size).apply(lightness)
    height, width = lightness.shape[:2]
    inside = (slice(top, height - bottom), slice(left, width - right))
    cv2.insertChannel(np.ascontiguousarray(lightness[inside]), lab, 0)
    page.pixels = _image(cv2.cvtColor(cv2.LUT(lightness, _greys()), cv2.COLOR_GRAY2RGB))
    page.pixels[inside] = cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)
    page.pads, page.fill = (0, 0, 0, 0), None
    return True


@cache
def _greys() -> Image:
    """The grey value of each lightness: Lab (L, 128, 128) in RGB."""
    lab = np.full((1, 256, 3), 128, dtype=np.uint8)
    lab[0, :, 0] = np.arange(256)
    return _image(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB))[0, :, 1].copy()


def _gauss_noise(page: Page, transform: Any) -> bool:
    """Noise as albumentations draws it, cut from a pool of samples: neighbours are independent, and two images hardly
    ever get the same."""
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
    # Truncated towards zero before it is added, as albumentations has it: its σ is compensated in the configuration.
    rows = page.pixels.reshape(page.pixels.shape[0], -1)
    np.trunc(field, out=field)
    page.pixels = _image(cv2.add(rows, field, dtype=cv2.CV_8U)).reshape(page.pixels.shape)
    return True


def _illumination(page: Page, transform: Any) -> bool:
    drawn = _parameters(page, transform)
    _lay_out(page)
    height, width = page.pixels.shape[:2]
    # What it does to grey tells the light, which is smooth: an eighth of the resolution holds it.
    grey = np.full((-(-height // 8), -(-width // 8), 3), 0.5, dtype=np.float32)
    _light(page, transform.apply(grey, **drawn)[..., 0] * 2)
    return True


def _plasma_shadow(page: Page, transform: Any) -> bool:
    finish(page)
    intensity = transform.py_random.uniform(*transform.shadow_intensity_range)
    _light(page, 1 - intensity * _plasma(page.shape, transform.roughness, transform.random_generator))
    return True


def _plasma(shape: Shape, roughness: float, generator: np.random.Generator) -> NDArray[np.float32]:
    """A field from 0 to 1 by diamonds and squares, step by step as albumentations makes it, but of the part of each
    grid alone that the page will show, which may be a quarter of the points."""
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


def _light(page: Page, field: NDArray[np.float32]) -> None:
    """Multiply the page by a field of light, (h, w), which is scaled to it."""
    height, width = page.pixels.shape[:2]
    light = cv2.resize(np.asarray(field, dtype=np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    page.pixels = _image(cv2.multiply(page.pixels, cv2.merge([light] * 3), dtype=cv2.CV_8U))


@cache
def _pool() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(NOISE_POOL, dtype=np.float32)


STEPS: dict[type, Callable[[Page, Any], bool]] = {
    A.LongestMaxSize: _longest_max_size,
    A.PadIfNeeded: _pad_if_needed,
    A.RandomRotate90: _rotate90,
    A.HorizontalFlip: _horizontal_flip,
    A.VerticalFlip: _vertical_flip,
    A.Transpose: _transpose,
    A.D4: _d4,
    A.Rotate: _rotate,
    A.Affine: _affine,
    A.Perspective: _perspective,
    A.CLAHE: _clahe,
    A.GaussNoise: _gauss_noise,
    A.Illumination: _illumination,
    A.PlasmaShadow: _plasma_shadow,
}
"""What is done here: False, and nothing drawn, where it is left to albumentations."""


def _borders(page: Page) -> tuple[int, int, int, int]:
    """The pads in pixels of the page's own resolution."""
    (down, across), (top, bottom, left, right) = _scale(page), page.pads
    return round(top / down), round(bottom / down), round(left / across), round(right / across)


def _lay_out(page: Page) -> None:
    """Bring everything that is pending to pixels, at the page's own resolution."""
    if page.matrix is None and not any(page.pads):
        return
    if page.matrix is None:
        page.pixels = _image(
            cv2.copyMakeBorder(page.pixels, *_borders(page), cv2.BORDER_CONSTANT, value=page.fill or WHITE)
        )
    else:
        smaller = min(1.0, max(page.pixels.shape[:2]) / max(page.shape))
        height, width = (max(1, round(side * smaller)) for side in page.shape)
        down, across = height / page.shape[0], width / page.shape[1]
        shrink = np.array([[across, 0, (across - 1) / 2], [0, down, (down - 1) / 2], [0, 0, 1]])
        page.pixels = _warped(page.pixels, shrink @ page.matrix, (height, width), page.fill)
    page.matrix, page.pads, page.fill = None, (0, 0, 0, 0), None


def finish(page: Page) -> Image:
    """Bring everything that is pending to the final pixels, and return them."""
    if page.matrix is not None:
        page.pixels = _warped(page.pixels, page.matrix, page.shape, page.fill)
    else:
        top, bottom, left, right = page.pads
        inner = (page.shape[1] - left - right, page.shape[0] - top - bottom)
        if inner != page.pixels.shape[1::-1]:
            page.pixels = _image(cv2.resize(page.pixels, inner, interpolation=page.interpolation))
        if any(page.pads):
            page.pixels = _image(
                cv2.copyMakeBorder(page.pixels, *page.pads, cv2.BORDER_CONSTANT, value=page.fill or WHITE)
            )
    page.matrix, page.pads, page.fill, page.interpolation = None, (0, 0, 0, 0), None, cv2.INTER_LINEAR
    return page.pixels


def _warped(pixels: Image, matrix: Matrix, shape: Shape, fill: tuple[float, ...] | None) -> Image:
    border = (0.0, 0.0, 0.0) if fill is None else fill
    size = (shape[1], shape[0])
    if np.allclose(matrix[2], [0, 0, 1], atol=1e-12):
        return _image(cv2.warpAffine(pixels, matrix[:2], size, flags=cv2.INTER_LINEAR, borderValue=border))
    return _image(cv2.warpPerspective(pixels, matrix, size, flags=cv2.INTER_LINEAR, borderValue=border))


def _image(array: Any) -> Image:
    return np.asarray(array, dtype=np.uint8)
