"""Default boxes (anchors) of an SSD: one set per cell of each feature map."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipdet.types import Canvas


@dataclass(frozen=True)
class DefaultBoxLevel:
    """The default boxes of one feature map.

    Attributes:
        rows: of cells.
        columns: of cells.
        sides: width and height of each box, as fractions of the image's.
        stride: pixels from one centre to the next, for a map that covers more than the image; None
            for a map that covers exactly the image.
        shift: pixels (right, down) from the image's centre to that of the map.
    """

    rows: int
    columns: int
    sides: tuple[tuple[float, float], ...]
    stride: int | None = None
    shift: tuple[float, float] = (0.0, 0.0)


def default_boxes(levels: Sequence[DefaultBoxLevel], canvas: Canvas) -> Tensor:
    """Return all default boxes, level by level, row by row, cell by cell, ratio by ratio.

    Centres lie at cell centres.

    Returns:
        (A, 4) float32 cx, cy, w, h in pixels.
    """
    boxes = [
        (
            _centre(column, level.columns, level.stride, canvas.width, level.shift[0]),
            _centre(row, level.rows, level.stride, canvas.height, level.shift[1]),
            *sides,
        )
        for level in levels
        for row, column in itertools.product(range(level.rows), range(level.columns))
        for sides in level.sides
    ]
    width, height = canvas.width, canvas.height
    return torch.tensor(boxes, dtype=torch.float32) * torch.tensor([width, height, width, height])


def _centre(cell: int, cells: int, stride: int | None, pixels: int, shift: float) -> float:
    """Return a cell's centre as a fraction of the image."""
    step = 1 / cells if stride is None else stride / pixels
    return 0.5 + shift / pixels + (cell + 0.5 - cells / 2) * step


def sides(scale: float, ratios: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """Return boxes of one size and several shapes, clamped to the image as in the reference model.

    Args:
        scale: geometric mean side, as a fraction of the image.
        ratios: width : height of each.
    """
    return tuple(
        (min(scale * math.sqrt(ratio), 1.0), min(scale / math.sqrt(ratio), 1.0)) for ratio in ratios
    )
