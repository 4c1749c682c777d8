"""Default boxes (anchors) of an SSD: one set per cell of each feature map."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DefaultBoxLevel:
    """The default boxes of one square feature map.

    Attributes:
        cells: side of the feature map.
        sides: width and height of each box, as fractions of the image.
        stride: pixels from one centre to the next, for a map that covers more than the image and
            is centred on it; None for a map that covers exactly the image.
    """

    cells: int
    sides: tuple[tuple[float, float], ...]
    stride: int | None = None


def default_boxes(levels: Sequence[DefaultBoxLevel], image_size: int) -> Tensor:
    """Return all default boxes, level by level, row by row, cell by cell, ratio by ratio.

    Centres lie at cell centres.

    Returns:
        (A, 4) float32 cx, cy, w, h in pixels.
    """
    boxes = [
        (_centre(level, column, image_size), _centre(level, row, image_size), width, height)
        for level in levels
        for row, column in itertools.product(range(level.cells), repeat=2)
        for width, height in level.sides
    ]
    return torch.tensor(boxes, dtype=torch.float32) * image_size


def _centre(level: DefaultBoxLevel, cell: int, image_size: int) -> float:
    """Return a cell's centre as a fraction of the image; 0.5 for the middle of the map."""
    step = 1 / level.cells if level.stride is None else level.stride / image_size
    return 0.5 + (cell + 0.5 - level.cells / 2) * step


def sides(scale: float, ratios: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """Return boxes of one size and several shapes, clamped to the image as in the reference model.

    Args:
        scale: geometric mean side, as a fraction of the image.
        ratios: width : height of each.
    """
    return tuple(
        (min(scale * math.sqrt(ratio), 1.0), min(scale / math.sqrt(ratio), 1.0)) for ratio in ratios
    )
