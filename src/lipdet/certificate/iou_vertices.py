"""What decides the lowest IoU of uncertain boxes along one axis, and how two axes combine.

Notable choices:
- One axis at a time. With the sides across it fixed, IoU ≥ s > 0 reads
  (1+s)·I_y·I_x − s·(areas) ≥ 0, where the overlap I_x is concave in centres and sides and the areas
  are linear: superlevel sets are convex, and the least IoU is at a vertex (THEORY §4). What the
  vertices of one axis contribute is computed once and combined with those of the other.
- For given sides, IoU falls with the overlap, and the overlap with the distance of the centres. So
  of the vertices with the same sides only the one with the centres farthest apart is needed:
  4 instead of 16 for a known box and an uncertain one, 16 instead of 256 for two.
"""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from lipdet.certificate.box_range import BoxRange


class Vertex(NamedTuple):
    """What one axis contributes: the sides of both boxes in units of their overlap.

    1 / IoU + 1 = (w_a·h_a + w_b·h_b) / (I_x·I_y) is the product of `a` of both axes plus that of
    `b`. Without overlap they are huge.
    """

    a: Tensor
    b: Tensor


def vertices_of_centers(a: BoxRange, b: BoxRange, axis: int) -> list[Vertex]:
    """Every combination of sides, with the centres as far apart as they can be."""
    apart = torch.maximum(
        b.high[..., axis] - a.low[..., axis], a.high[..., axis] - b.low[..., axis]
    )
    sides = [(r.low[..., axis + 2], r.high[..., axis + 2]) for r in (a, b)]
    return [
        _ratios(torch.minimum(torch.minimum(x, y), (x + y) / 2 - apart), x, y)
        for x, y in itertools.product(*sides)
    ]


def vertices_of_corners(
    a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], axis: int
) -> list[Vertex]:
    """Both ways of moving the two first corners apart, times both of the two second ones.

    A combination may have a corner beyond its opposite; it has no overlap then, as some real box on
    the way there has none.
    """
    starts = [(x[..., axis], y[..., axis]) for x, y in ((a[0], b[1]), (a[1], b[0]))]
    ends = [(x[..., axis + 2], y[..., axis + 2]) for x, y in ((a[0], b[1]), (a[1], b[0]))]
    return [
        vertex(start_a, end_a, start_b, end_b)
        for (start_a, start_b), (end_a, end_b) in itertools.product(starts, ends)
    ]


def points_after_clipping(boxes: BoxRange, axis: int, size: float) -> list[tuple[Tensor, Tensor]]:
    """The pairs of clipped corners along one axis that decide, whatever the other box.

    The clipped side is linear in centre c and side s but for bends, where c − s/2 = 0 and where
    c + s/2 = size. Within each part the argument for vertices holds, so the least IoU is at a
    vertex of a part: one of the range, an end of a bend, or where the bends cross. There the box is
    the whole image, as it is at the longer end of either bend.
    """
    centers = boxes.low[..., axis], boxes.high[..., axis]
    sides = boxes.low[..., axis + 2], boxes.high[..., axis + 2]
    points = [(c - s / 2, c + s / 2) for c in centers for s in sides]
    # Along a bend the box runs from a border over any side that both intervals allow.
    to_first = 2 * centers[0], 2 * centers[1]
    to_last = 2 * (size - centers[1]), 2 * (size - centers[0])
    for (least, most), at_first in ((to_first, True), (to_last, False)):
        shortest, longest = torch.maximum(least, sides[0]), torch.minimum(most, sides[1])
        for side in (shortest, longest):
            zero = torch.zeros_like(side)
            ends = (zero, side) if at_first else (size - side, zero + size)
            # Where there is no bend, a vertex stands in.
            pairs = zip(ends, points[0], strict=True)
            x1, x2 = (torch.where(shortest <= longest, x, y) for x, y in pairs)
            points.append((x1, x2))
    return [(x1.clamp(0, size), x2.clamp(0, size)) for x1, x2 in points]


def vertex(start_a: Tensor, end_a: Tensor, start_b: Tensor, end_b: Tensor) -> Vertex:
    """What two boxes with these corners along one axis contribute."""
    overlap = torch.minimum(end_a, end_b) - torch.maximum(start_a, start_b)
    return _ratios(overlap, end_a - start_a, end_b - start_b)


def _ratios(overlap: Tensor, side_a: Tensor, side_b: Tensor) -> Vertex:
    # Lengths below any of interest keep 0/0 out. An IoU of 0 becomes one of less than 1e-50.
    scale = overlap.clamp_min(1e-100).reciprocal()
    return Vertex(side_a.clamp_min(1e-50) * scale, side_b.clamp_min(1e-50) * scale)


def least(along_x: list[Vertex], along_y: list[Vertex]) -> Tensor:
    """The lowest IoU over all combinations of a vertex of each axis."""
    pairs = itertools.product(along_x, along_y)
    return 1 / (functools.reduce(torch.maximum, (x.a * y.a + x.b * y.b for x, y in pairs)) - 1)
