"""A page inside a list of augmentations: its pixels and its pending operations."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from trainer.images.read_page import Pixels, Shape

Matrix = NDArray[np.float64]

WHITE = (255.0, 255.0, 255.0)


@dataclass
class PendingPage:
    """A page with pending operations: `pixels`, and the operations that lead to the final `shape`."""

    pixels: Pixels
    shape: Shape
    """Shape of the final page, as the transforms see it."""
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Padding with `fill` above, below, left and right of the scaled `pixels`, in final pixels."""
    fill: tuple[float, ...] | None = None
    """Colour outside the page. None if there is no such place yet."""
    interpolation: int = cv2.INTER_LINEAR
    """Interpolation for scaling `pixels`, if there is no other warp."""
    matrix: Matrix | None = None
    """Matrix from the coordinates of `pixels` to those of `shape`, including padding and scale. None: only padding and
    scale, after the rotation of the page."""
    turns: int = 0
    """Pending counter-clockwise rotation of `pixels`, × 90°. `pads` and `shape` are as after it."""
    mirrored: bool = False
    """Whether a flip of `pixels` (left to right) is pending. It comes before the rotation."""


def writable(image: Pixels) -> Pixels:
    """`image`, or a copy if it is read-only (from a cache): some transforms work in place."""
    return image if image.flags.writeable else image.copy()


def parameters(page: PendingPage, transform: Any) -> dict[str, Any]:
    """The drawn parameters of the transform for a page of the final shape."""
    seen = {"image": np.broadcast_to(np.uint8(0), (*page.shape, 3))}
    params: dict[str, Any] = transform.update_transform_params(transform.get_params(), seen)
    params.update(transform.get_params_dependent_on_data(params, seen))
    return params


def _scale(page: PendingPage) -> tuple[float, float]:
    """Final pixels per pixel, down and across."""
    top, bottom, left, right = page.pads
    height, width = _turned(page)
    return (page.shape[0] - top - bottom) / height, (page.shape[1] - left - right) / width


def _turned(page: PendingPage) -> Shape:
    """The shape of the pixels after the pending rotation."""
    height, width = page.pixels.shape[:2]
    return (width, height) if page.turns % 2 else (height, width)


def _matrix(page: PendingPage) -> Matrix:
    """Matrix from pixels to the final page. Pixel centres are whole numbers, as in OpenCV."""
    if page.matrix is not None:
        return page.matrix
    (down, across), (top, _, left, _) = _scale(page), page.pads
    scaled = np.array([[across, 0, left + (across - 1) / 2], [0, down, top + (down - 1) / 2], [0, 0, 1]])
    return scaled @ _turning(page.pixels.shape[:2], page.turns, page.mirrored)


def _turning(shape: Shape, turns: int, mirrored: bool) -> Matrix:
    """Matrix from the coordinates of a page of `shape` to those after flip and rotation."""
    height, width = shape
    matrix = np.array([[-1, 0, width - 1], [0, 1, 0], [0, 0, 1.0]]) if mirrored else np.eye(3)
    for _ in range(turns):
        matrix = np.array([[0, 1, 0], [-1, 0, width - 1], [0, 0, 1.0]]) @ matrix
        height, width = width, height
    return matrix


def colour(fill: Any) -> tuple[float, ...]:
    values = tuple(np.ravel(fill).astype(float))
    return values * 3 if len(values) == 1 else values


def turn(page: PendingPage, turns: int, mirrored: bool) -> bool:
    """Flip left to right, then rotate by `turns` × 90° counter-clockwise."""
    if page.matrix is not None:
        page.matrix = _turning(page.shape, turns, mirrored) @ page.matrix
    else:
        page.turns = (turns + (-page.turns if mirrored else page.turns)) % 4
        page.mirrored ^= mirrored
        top, bottom, left, right = page.pads
        if mirrored:
            left, right = right, left
        for _ in range(turns):
            top, left, bottom, right = right, top, left, bottom
        page.pads = (top, bottom, left, right)
    page.shape = page.shape if turns % 2 == 0 else (page.shape[1], page.shape[0])
    return True


def settle(page: PendingPage) -> None:
    """Apply a pending flip and rotation to the pixels."""
    turned: Any = page.pixels
    if page.mirrored and page.turns % 2 == 0:
        turned = cv2.flip(turned, 0 if page.turns else 1)
    elif page.mirrored:
        turned = cv2.transpose(turned)
        turned = turned if page.turns == 1 else cv2.flip(turned, -1)
    elif page.turns:
        code = {1: cv2.ROTATE_90_COUNTERCLOCKWISE, 2: cv2.ROTATE_180, 3: cv2.ROTATE_90_CLOCKWISE}[page.turns]
        turned = cv2.rotate(turned, code)
    page.pixels, page.turns, page.mirrored = image_of(turned), 0, False


def move(page: PendingPage, drawn: Matrix, shape: Shape, fill: Any) -> bool:
    """Multiply a warp of the final page into the pending matrix, if the result is the same as two warps in sequence."""
    step = np.vstack([drawn, [0, 0, 1]]) if len(drawn) == 2 else np.asarray(drawn, dtype=np.float64)
    beyond = colour(fill)
    if page.fill is not None and page.fill != beyond:
        lay_out(page)
    if page.matrix is not None and not _inside(np.linalg.inv(step), shape, page.shape):
        lay_out(page)  # the earlier step cut off pixels that this one would show again
    page.matrix = step @ _matrix(page)
    page.pads, page.shape, page.fill, page.turns, page.mirrored = (0, 0, 0, 0), shape, beyond, 0, False
    return True


def _inside(back: Matrix, shape: Shape, before: Shape) -> bool:
    """Whether the corners of a page of `shape`, mapped by `back`, are on the page `before`."""
    height, width = shape[0] - 1, shape[1] - 1
    corners = back @ np.array([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1.0]])
    if not (corners[2] > 0).all():
        return False
    across, down = corners[:2] / corners[2]
    return bool(
        (across >= -1).all() and (across <= before[1]).all() and (down >= -1).all() and (down <= before[0]).all()
    )


def borders(page: PendingPage) -> tuple[int, int, int, int]:
    """The padding in pixels of the page's own resolution."""
    (down, across), (top, bottom, left, right) = _scale(page), page.pads
    return round(top / down), round(bottom / down), round(left / across), round(right / across)


def lay_out(page: PendingPage) -> None:
    """Apply all pending operations to the pixels, at the page's own resolution."""
    settle(page)
    if page.matrix is None and not any(page.pads):
        return
    if page.matrix is None:
        page.pixels = image_of(
            cv2.copyMakeBorder(page.pixels, *borders(page), cv2.BORDER_CONSTANT, value=page.fill or WHITE)
        )
    else:
        smaller = min(1.0, max(page.pixels.shape[:2]) / max(page.shape))
        height, width = (max(1, round(side * smaller)) for side in page.shape)
        down, across = height / page.shape[0], width / page.shape[1]
        shrink = np.array([[across, 0, (across - 1) / 2], [0, down, (down - 1) / 2], [0, 0, 1]])
        page.pixels = _warped(page.pixels, shrink @ page.matrix, (height, width), page.fill)
    page.matrix, page.pads, page.fill = None, (0, 0, 0, 0), None


def finish(page: PendingPage) -> Pixels:
    """Apply all pending operations and return the final pixels."""
    settle(page)
    if page.matrix is not None:
        page.pixels = _warped(page.pixels, page.matrix, page.shape, page.fill)
    else:
        top, bottom, left, right = page.pads
        inner = (page.shape[1] - left - right, page.shape[0] - top - bottom)
        if inner != page.pixels.shape[1::-1]:
            page.pixels = image_of(cv2.resize(page.pixels, inner, interpolation=page.interpolation))
        if any(page.pads):
            page.pixels = image_of(
                cv2.copyMakeBorder(page.pixels, *page.pads, cv2.BORDER_CONSTANT, value=page.fill or WHITE)
            )
    page.matrix, page.pads, page.fill, page.interpolation = None, (0, 0, 0, 0), None, cv2.INTER_LINEAR
    return page.pixels


def _warped(pixels: Pixels, matrix: Matrix, shape: Shape, fill: tuple[float, ...] | None) -> Pixels:
    """Warp with four channels (OpenCV has a faster kernel for them), in memory that is reused for each page."""
    border, size = (*(fill or (0.0, 0.0, 0.0)), 0.0), (shape[1], shape[0])
    whole = cv2.cvtColor(pixels, cv2.COLOR_RGB2RGBA, dst=_scratch.get("whole", pixels.shape[:2]))
    warp: Any = cv2.warpPerspective
    step = matrix
    if np.allclose(matrix[2], [0, 0, 1], atol=1e-12):
        warp, step = cv2.warpAffine, matrix[:2]
    moved = warp(whole, step, size, dst=_scratch.get("moved", shape), flags=cv2.INTER_LINEAR, borderValue=border)
    return image_of(cv2.cvtColor(moved, cv2.COLOR_RGBA2RGB))


class _Scratch(threading.local):
    """Reusable images of four channels, per thread. New memory would take a tenth of a warp's time."""

    def __init__(self) -> None:
        self.buffers: dict[str, Pixels] = {}

    def get(self, name: str, shape: Shape) -> Pixels:
        if name not in self.buffers or self.buffers[name].shape[:2] != shape:
            self.buffers[name] = np.empty((*shape, 4), dtype=np.uint8)
        return self.buffers[name]


_scratch = _Scratch()


def image_of(array: Any) -> Pixels:
    return np.asarray(array, dtype=np.uint8)
