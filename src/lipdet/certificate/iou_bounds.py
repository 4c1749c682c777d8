"""Lowest and highest IoU of boxes that are only known to lie in a `BoxRange`.

Everything broadcasts over the leading dimensions: ranges (N, 1) against (1, M) give (N, M).

Notable choices:
- One axis at a time. With the sides across it fixed, IoU ≥ s > 0 reads
  (1+s)·I_y·I_x − s·(areas) ≥ 0, where the overlap I_x is concave in centres and sides and the areas
  are linear: superlevel sets are convex, and the least IoU is at a vertex (THEORY §4). What the
  vertices of one axis contribute is computed once and combined with those of the other.
- For given sides, IoU falls with the overlap, and the overlap with the distance of the centres. So
  of the vertices with the same sides only the one with the centres farthest apart is needed:
  4 instead of 16 for a known box and an uncertain one, 16 instead of 256 for two.
- IoU never falls when a corner moves towards that of the other box. Moving x1 outward by Δ to meet
  it adds Δ·I_y to the intersection I and Δ·(h − I_y) to the union U, and I_y·U ≥ (h − I_y)·I since
  U ≥ I_x·(h − I_y); moving it inward removes union alone. So where corners are independent, the
  least IoU has them as far apart as their intervals allow, and the highest as near.
- A union of zero area counts as IoU 0. torchvision computes 0/0 = NaN there, which neither
  suppresses (NaN > η is false) nor matches.
"""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from lipdet.certificate.box_range import BoxRange, corner_range


class _Vertex(NamedTuple):
    """What one axis contributes: both boxes' sides in units of their overlap; ∞ if there is none.

    1 / IoU + 1 = (w_a·h_a + w_b·h_b) / (I_x·I_y) is the product of `a` of both axes plus that of
    `b`.
    """

    a: Tensor
    b: Tensor


def min_iou_fixed(boxes: BoxRange, fixed: Tensor, size: float | None = None) -> Tensor:
    """The lowest IoU of an uncertain box with a known one; exact, up to float64.

    Where `fixed` lies in the image, the result without `size` is a lower bound for the clipped box
    too, since clipping takes away only what lies outside `fixed`; with `size` it is the least.

    Args:
        boxes: (..., 4).
        fixed: (..., 4) xyxy pixels.
        size: side of the image to which the uncertain box is clipped; None if it is not.

    Returns:
        (...) float64.
    """
    known = _known(fixed)
    lowest = _least(*(_vertices_of_centers(boxes, known, axis) for axis in (0, 1)))
    if size is None:
        return lowest
    reaches = _reaches_border(boxes, size).any(dim=-1).expand(lowest.shape)
    some, one = _where(reaches, boxes, known)
    corners, _ = corner_range(one)
    axes = [
        [
            _vertex(*ends, corners[:, axis], corners[:, axis + 2])
            for ends in _points_after_clipping(some, axis, size)
        ]
        for axis in (0, 1)
    ]
    return lowest.masked_scatter(reaches, _least(*axes))


def min_iou_pair(a: BoxRange, b: BoxRange, size: float | None) -> Tensor:
    """A lower bound of the IoU of two uncertain boxes.

    Exact without clipping, and where neither box can reach the border. On an axis where one can,
    the corners after clipping take the place of centres and sides, as if they were independent.

    Args:
        a: (..., 4).
        b: (..., 4).
        size: side of the image to which both are clipped; None for boxes that are not.

    Returns:
        (...) float64.
    """
    lowest = _least(*(_vertices_of_centers(a, b, axis) for axis in (0, 1)))
    if size is None:
        return lowest
    reaches = _reaches_border(a, size) | _reaches_border(b, size)
    some = reaches.any(dim=-1)
    (a, b), reaches = _where(some, a, b), reaches[some]
    corners = corner_range(a, size), corner_range(b, size)
    axes = []
    for axis in (0, 1):
        outer = _vertices_of_corners(*corners, axis)
        inner = _vertices_of_centers(a, b, axis)
        axes.append(
            [
                _Vertex(*(torch.where(reaches[:, axis], x, y) for x, y in zip(o, i, strict=True)))
                for o, i in zip(outer, inner, strict=True)
            ]
        )
    return lowest.masked_scatter(some, _least(*axes))


def min_iou_pair_clipped(a: BoxRange, b: BoxRange, size: float) -> Tensor:
    """The lowest IoU of two uncertain boxes that are clipped to the image; exact, and slow.

    The argument for one box (`_points_after_clipping`) holds for each of two: overlap is concave in
    both, and each one's clipped side bends where that one meets the border.

    Args:
        a: (P, 4).
        b: (P, 4).
        size: side of the image.

    Returns:
        (P,) float64.
    """
    axes = []
    for axis in (0, 1):
        pairs = itertools.product(*(_points_after_clipping(r, axis, size) for r in (a, b)))
        vertices = [_vertex(*x, *y) for x, y in pairs]
        axes.append(torch.stack([torch.stack(vertex, dim=-1) for vertex in vertices], dim=-2))
    # Without ∞, of which a matrix product makes NaN in a sum of one term as well.
    highest = (axes[0].clamp(max=1e100) @ axes[1].clamp(max=1e100).mT).flatten(-2).amax(dim=-1)
    return 1 / (highest - 1)


def max_iou_fixed(boxes: BoxRange, fixed: Tensor, size: float | None) -> Tensor:
    """An upper bound of the IoU of an uncertain box with a known one: each corner at its nearest.

    The vertices of the range would not do, since the best box lies inside it.

    Args:
        boxes: (..., 4).
        fixed: (..., 4) xyxy pixels.
        size: side of the image to which the uncertain box is clipped; None if it is not.

    Returns:
        (...) float64.
    """
    low, high = corner_range(boxes, size)
    fixed = fixed.double()
    return _iou(torch.minimum(torch.maximum(fixed, low), high), fixed)


def max_iou_pair(a: BoxRange, b: BoxRange, size: float | None) -> Tensor:
    """An upper bound of the IoU of two uncertain boxes: corners in common, or at their nearest.

    Where the intervals of a corner meet, both boxes take the common value that makes them largest;
    moving one common corner outward by Δ adds Δ·I_y to I and Δ·(h_a + h_b − I_y) to U, and
    U ≥ I_x·(h_a + h_b − I_y).

    Args:
        a: (..., 4).
        b: (..., 4).
        size: side of the image to which both are clipped; None for boxes that are not.

    Returns:
        (...) float64.
    """
    (low_a, high_a), (low_b, high_b) = corner_range(a, size), corner_range(b, size)
    start = torch.maximum(low_a[..., :2], low_b[..., :2])
    end = torch.minimum(high_a[..., 2:], high_b[..., 2:])
    best = [
        torch.cat([torch.minimum(start, high[..., :2]), torch.maximum(end, low[..., 2:])], dim=-1)
        for low, high in ((low_a, high_a), (low_b, high_b))
    ]
    return _iou(*best)


def _known(boxes: Tensor) -> BoxRange:
    """Boxes (..., 4) xyxy as ranges of one point."""
    boxes = boxes.double()
    centers, sides = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    return BoxRange(*[torch.cat([centers, sides], dim=-1)] * 2)


def _where(mask: Tensor, *ranges: BoxRange) -> list[BoxRange]:
    """Ranges that broadcast to the shape of a mask, at its true places: (P, 4) each."""
    return [BoxRange(*(x.expand(*mask.shape, 4)[mask] for x in each)) for each in ranges]


def _vertices_of_centers(a: BoxRange, b: BoxRange, axis: int) -> list[_Vertex]:
    """Every combination of sides, with the centres as far apart as they can be."""
    apart = torch.maximum(
        b.high[..., axis] - a.low[..., axis], a.high[..., axis] - b.low[..., axis]
    )
    sides = [(r.low[..., axis + 2], r.high[..., axis + 2]) for r in (a, b)]
    return [
        _ratios(torch.minimum(torch.minimum(x, y), (x + y) / 2 - apart), x, y)
        for x, y in itertools.product(*sides)
    ]


def _vertices_of_corners(
    a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], axis: int
) -> list[_Vertex]:
    """Both ways of moving the two first corners apart, times both of the two second ones.

    A combination may have a corner beyond its opposite; it has no overlap then, as some real box on
    the way there has none.
    """
    starts = [(x[..., axis], y[..., axis]) for x, y in ((a[0], b[1]), (a[1], b[0]))]
    ends = [(x[..., axis + 2], y[..., axis + 2]) for x, y in ((a[0], b[1]), (a[1], b[0]))]
    return [
        _vertex(start_a, end_a, start_b, end_b)
        for (start_a, start_b), (end_a, end_b) in itertools.product(starts, ends)
    ]


def _points_after_clipping(boxes: BoxRange, axis: int, size: float) -> list[tuple[Tensor, Tensor]]:
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


def _vertex(start_a: Tensor, end_a: Tensor, start_b: Tensor, end_b: Tensor) -> _Vertex:
    overlap = torch.minimum(end_a, end_b) - torch.maximum(start_a, start_b)
    return _ratios(overlap, end_a - start_a, end_b - start_b)


def _ratios(overlap: Tensor, side_a: Tensor, side_b: Tensor) -> _Vertex:
    # Lengths below any of interest keep 0/0 out; they only lower the IoU.
    scale = overlap.clamp_min(1e-100).reciprocal()
    return _Vertex(side_a.clamp_min(1e-50) * scale, side_b.clamp_min(1e-50) * scale)


def _reaches_border(boxes: BoxRange, size: float) -> Tensor:
    """Whether clipping to [0, size] can change a box, (..., 2): along x, along y."""
    low, high = corner_range(boxes)
    return (low[..., :2] < 0) | (high[..., 2:] > size)


def _least(along_x: list[_Vertex], along_y: list[_Vertex]) -> Tensor:
    """The lowest IoU over all combinations of a vertex of each axis."""
    pairs = itertools.product(along_x, along_y)
    return 1 / (functools.reduce(torch.maximum, (x.a * y.a + x.b * y.b for x, y in pairs)) - 1)


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boxes (..., 4) xyxy, one by one; 0 where the union is empty."""
    ends = torch.minimum(a[..., 2:], b[..., 2:])
    overlap = (ends - torch.maximum(a[..., :2], b[..., :2])).clamp_min(0).prod(dim=-1)
    areas = (a[..., 2:] - a[..., :2]).prod(dim=-1) + (b[..., 2:] - b[..., :2]).prod(dim=-1)
    return overlap / (areas - overlap).clamp_min(1e-300)
