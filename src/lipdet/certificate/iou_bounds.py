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

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from lipdet.certificate.box_range import BoxRange, corner_range


class _Vertex(NamedTuple):
    """What one axis contributes: the overlap and both boxes' sides, each (...)."""

    overlap: Tensor
    side_a: Tensor
    side_b: Tensor


def min_iou_fixed(boxes: BoxRange, fixed: Tensor) -> Tensor:
    """The lowest IoU of an uncertain box, not clipped, with a known one; exact.

    Where `fixed` lies in the image, this is a lower bound for the clipped box too: clipping takes
    away only what lies outside `fixed`.

    Args:
        boxes: (..., 4).
        fixed: (..., 4) xyxy pixels.

    Returns:
        (...) float64.
    """
    known = _known(fixed)
    return _least(*(_vertices_of_centers(boxes, known, axis) for axis in (0, 1)))


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
    if size is None:
        return _least(*(_vertices_of_centers(a, b, axis) for axis in (0, 1)))
    corners = (corner_range(a, size), corner_range(b, size))
    reaches = _reaches_border(a, size) | _reaches_border(b, size)
    axes = []
    for axis in (0, 1):
        inner = _vertices_of_centers(a, b, axis)
        outer = _vertices_of_corners(*corners, axis)
        axes.append(
            [
                _Vertex(*(torch.where(reaches[..., axis], x, y) for x, y in zip(o, i, strict=True)))
                for o, i in zip(outer, inner, strict=True)
            ]
        )
    return _least(*axes)


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


def _vertices_of_centers(a: BoxRange, b: BoxRange, axis: int) -> list[_Vertex]:
    """Every combination of sides, with the centres as far apart as they can be."""
    apart = torch.maximum(
        b.high[..., axis] - a.low[..., axis], a.high[..., axis] - b.low[..., axis]
    )
    sides = [(r.low[..., axis + 2], r.high[..., axis + 2]) for r in (a, b)]
    return [
        _Vertex(
            torch.minimum(torch.minimum(x, y), (x + y) / 2 - apart).clamp_min(0),
            x,
            y,
        )
        for x, y in itertools.product(*sides)
    ]


def _vertices_of_corners(
    a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], axis: int
) -> list[_Vertex]:
    """Both ways of moving the two first corners apart, times both of the two second ones.

    A combination may have a corner beyond its opposite; its overlap is 0 then, as it is for a real
    box on the way there.
    """
    starts = [(x[..., axis], y[..., axis]) for x, y in ((a[0], b[1]), (a[1], b[0]))]
    ends = [(x[..., axis + 2], y[..., axis + 2]) for x, y in ((a[0], b[1]), (a[1], b[0]))]
    return [
        _Vertex(
            (torch.minimum(end_a, end_b) - torch.maximum(start_a, start_b)).clamp_min(0),
            end_a - start_a,
            end_b - start_b,
        )
        for (start_a, start_b), (end_a, end_b) in itertools.product(starts, ends)
    ]


def _reaches_border(boxes: BoxRange, size: float) -> Tensor:
    """Whether clipping to [0, size] can change a box, (..., 2): along x, along y."""
    low, high = corner_range(boxes)
    return (low[..., :2] < 0) | (high[..., 2:] > size)


def _least(along_x: list[_Vertex], along_y: list[_Vertex]) -> Tensor:
    """The lowest IoU over all combinations of a vertex of each axis."""
    found = [
        _ratio(x.overlap * y.overlap, x.side_a * y.side_a + x.side_b * y.side_b)
        for x, y in itertools.product(along_x, along_y)
    ]
    lowest = found[0]
    for iou in found[1:]:
        lowest = torch.minimum(lowest, iou)
    return lowest


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boxes (..., 4) xyxy, one by one."""
    ends = torch.minimum(a[..., 2:], b[..., 2:])
    overlap = (ends - torch.maximum(a[..., :2], b[..., :2])).clamp_min(0)
    areas = (a[..., 2:] - a[..., :2]).prod(dim=-1) + (b[..., 2:] - b[..., :2]).prod(dim=-1)
    return _ratio(overlap.prod(dim=-1), areas)


def _ratio(intersection: Tensor, areas: Tensor) -> Tensor:
    """Intersection over union of known areas, 0 where the union is empty."""
    return intersection / (areas - intersection).clamp_min(1e-300)
