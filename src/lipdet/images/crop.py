"""From a photograph to the rectangle that the network sees.

Three ways, all seeded:
- `reference_region`: the crop of the reference experiment (ADI's SVHN_74), for evaluation;
- `jittered_region`: the same idea with more freedom, for training;
- `full_region`: the whole picture, letter-boxed, when nobody knows where the number is.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lipdet.errors import InputError
from lipdet.images.resize import resized
from lipdet.images.source import clip_boxes
from lipdet.types import IGNORED, Canvas

EXPANSION = 0.3
JITTER_ENLARGEMENT = 1.4
JITTER_ASPECT = 0.15
# Of a picture with what is repeated beyond it, unless the picture itself has half as many.
MOST_PIXELS = 2**27


class Region(NamedTuple):
    """A rectangle in pixels of the picture; it may reach beyond the border."""

    left: float
    top: float
    right: float
    bottom: float


def reference_region(
    boxes: NDArray[np.float32], width: int, height: int, rng: np.random.Generator
) -> Region | None:
    """Return the smallest square around all boxes, slid along its free direction, then enlarged.

    The square is as wide as the number's longer side; along the other side its place is drawn
    from those that contain the number and lie inside the picture. It then grows by up to 30 %,
    halving the growth until the picture allows it.

    Returns:
        The square, or None if no such square fits into the picture or there is no box.
    """
    if len(boxes) == 0:
        return None
    left, top = np.floor(boxes[:, :2].min(axis=0)).astype(int).tolist()
    right, bottom = np.ceil(boxes[:, 2:].max(axis=0)).astype(int).tolist()
    side = max(right - left, bottom - top)
    first_left, last_left = max(0, right - side), min(left, width - side)
    first_top, last_top = max(0, bottom - side), min(top, height - side)
    if first_left > last_left or first_top > last_top:
        return None
    left = int(rng.integers(first_left, last_left + 1))
    top = int(rng.integers(first_top, last_top + 1))
    growth = round(side * EXPANSION / 2)
    while growth > min(left, top, width - left - side, height - top - side):
        growth //= 2
    return Region(left - growth, top - growth, left + side + growth, top + side + growth)


def jittered_region(boxes: NDArray[np.float32], rng: np.random.Generator) -> Region:
    """Return a nearly square rectangle anywhere around all boxes (at least one).

    Its side is 1.0 to 1.4 times the number's longer side, its aspect within 15 % of square; it
    always contains the number and may overhang the picture.
    """
    left, top = boxes[:, :2].min(axis=0).tolist()
    right, bottom = boxes[:, 2:].max(axis=0).tolist()
    side = max(right - left, bottom - top) * rng.uniform(1.0, JITTER_ENLARGEMENT)
    stretch = np.sqrt(rng.uniform(1 - JITTER_ASPECT, 1 + JITTER_ASPECT))
    width = max(side * stretch, right - left)
    height = max(side / stretch, bottom - top)
    # Where the number fills an axis, rounding may put the first end behind the second.
    region_left = rng.uniform(min(right - width, left), left)
    region_top = rng.uniform(min(bottom - height, top), top)
    return Region(region_left, region_top, region_left + width, region_top + height)


def full_region(width: int, height: int, canvas: Canvas) -> Region:
    """Return the rectangle of a canvas's shape around the whole picture, which is in its centre."""
    return around(Region(0, 0, width, height), canvas)


def around(region: Region, canvas: Canvas) -> Region:
    """Return the smallest rectangle of a canvas's shape around a region, which is in its centre."""
    width, height = region.right - region.left, region.bottom - region.top
    if width * canvas.height >= height * canvas.width:
        across, down = float(width), width * canvas.height / canvas.width
    else:
        across, down = height * canvas.width / canvas.height, float(height)
    left, top = region.left + (width - across) / 2, region.top + (height - down) / 2
    return Region(left, top, left + across, top + down)


def cut(image: Image.Image, region: Region, canvas: Canvas) -> NDArray[np.uint8]:
    """Return the region at the size of a canvas (H, W, 3); beyond the border its edge is repeated.

    The region must share at least one pixel with the picture.

    Raises:
        InputError: the picture is so long and narrow that what is beyond it would fill the memory.
    """
    left, top = math.floor(region.left), math.floor(region.top)
    right, bottom = math.ceil(region.right), math.ceil(region.bottom)
    if (right - left) * (bottom - top) > max(MOST_PIXELS, 2 * image.width * image.height):
        raise InputError(
            f"A picture of {image.width}×{image.height} pixels is too long and narrow to be seen "
            f"whole at {canvas}: cut it into parts."
        )
    inside = (max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height))
    margins = ((inside[1] - top, bottom - inside[3]), (inside[0] - left, right - inside[2]), (0, 0))
    pixels = np.pad(np.asarray(image.crop(inside)), margins, mode="edge")
    box = (region.left - left, region.top - top, region.right - left, region.bottom - top)
    picture = Image.fromarray(pixels)
    size = canvas.width, canvas.height
    return np.asarray(resized(picture, size, Image.Resampling.BILINEAR, box))


def cut_mask(mask: NDArray[np.uint8], region: Region, canvas: Canvas) -> NDArray[np.uint8]:
    """Return a region of a mask (h, w) at the size of a canvas (H, W); beyond it is IGNORED.

    Each pixel has the class of the one at its centre.
    """
    rows, columns = (
        np.floor(low + (np.arange(count) + 0.5) * (high - low) / count).astype(int)
        for low, high, count in (
            (region.top, region.bottom, canvas.height),
            (region.left, region.right, canvas.width),
        )
    )
    inside = [
        (axis >= 0) & (axis < size) for axis, size in zip((rows, columns), mask.shape, strict=True)
    ]
    placed = np.full(tuple(canvas), IGNORED, np.uint8)
    placed[np.ix_(*inside)] = mask[np.ix_(rows[inside[0]], columns[inside[1]])]
    return placed


def into_region(
    boxes: NDArray[np.float32], region: Region, canvas: Canvas
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return boxes (N, 4) in pixels of the cut picture, clipped to it, and which have area (N,)."""
    origin = np.array([region.left, region.top] * 2, np.float32)
    return clip_boxes((boxes - origin) * _scale(region, canvas), canvas.width, canvas.height)


def picture_part(region: Region, width: int, height: int, canvas: Canvas) -> NDArray[np.float32]:
    """Return the part (4,) xyxy of a cut picture that shows the picture, not its repeated edge."""
    parts, _ = into_region(np.array([[0, 0, width, height]], np.float32), region, canvas)
    part: NDArray[np.float32] = parts[0]
    return part


def out_of_region(
    boxes: NDArray[np.float32], region: Region, canvas: Canvas
) -> NDArray[np.float32]:
    """Return boxes (N, 4) in pixels of a cut picture as boxes in the photograph; the way back."""
    origin = np.array([region.left, region.top] * 2, np.float32)
    return boxes / _scale(region, canvas) + origin


def _scale(region: Region, canvas: Canvas) -> NDArray[np.float32]:
    across = canvas.width / (region.right - region.left)
    down = canvas.height / (region.bottom - region.top)
    return np.array([across, down] * 2, np.float32)
