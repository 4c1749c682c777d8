"""Lowest and highest IoU of boxes that are only known to lie in a `BoxRange`.

Boxes come in lists of P, one range for each of the other list.

Notable choices:
- Lowest values come from vertices (`iou_vertices`), highest ones never: the best box lies inside.
- IoU never falls when a corner moves towards that of the other box. Moving x1 outward by Δ to meet
  it adds Δ·I_y to the intersection I and Δ·(h − I_y) to the union U, and I_y·U ≥ (h − I_y)·I since
  U ≥ I_x·(h − I_y); moving it inward removes union alone. So where corners are independent, the
  least IoU has them as far apart as their intervals allow, and the highest as near.
- A union of zero area counts as IoU 0. torchvision computes 0/0 = NaN there, which neither
  suppresses (NaN > η is false) nor matches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipdet.certificate.box_range import BoxRange, corner_range
from lipdet.certificate.iou_vertices import (
    known_or,
    least,
    vertices_after_clipping,
    vertices_of_centers,
)
from lipdet.certificate.segments import take, true_at

# For bounded memory; more is not faster.
PAIRS_AT_ONCE = 32_768


def min_iou_fixed(boxes: BoxRange, fixed: Tensor, size: float | None = None) -> Tensor:
    """Return the lowest IoU of an uncertain box with a known one; exact, up to float64.

    Args:
        boxes: (P, 4).
        fixed: (P, 4) xyxy pixels; inside the image if `size` is given.
        size: side of the image to which the uncertain box is clipped; None if it is not.

    Returns:
        (P,) float64.
    """
    return min_iou_pair(boxes, _known(fixed), size)


def min_iou_pair(a: BoxRange, b: BoxRange, size: float | None) -> Tensor:
    """Return the lowest IoU of two uncertain boxes; exact, up to float64.

    Args:
        a: (P, 4).
        b: (P, 4).
        size: side of the image to which both are clipped; None for boxes that are not.

    Returns:
        (P,) float64.
    """
    if size is None:
        return least(*(vertices_of_centers(a, b, axis) for axis in (0, 1)))
    boxes = BoxRange(*(torch.cat(ends) for ends in zip(a, b, strict=True)))
    first = torch.arange(len(a.low))
    return min_iou_of_pairs(boxes, first, first + len(first), size)


def min_iou_of_pairs(boxes: BoxRange, a: Tensor, b: Tensor, size: float) -> Tensor:
    """Return the lowest IoU of pairs of uncertain boxes, clipped to an image.

    Args:
        boxes: (N, 4), float64 or float32.
        a: (P,) indices of boxes.
        b: (P,) indices of boxes.
        size: side of the image.

    Returns:
        (P,), as exact as the boxes.
    """
    reaches = [_reaches_border(boxes, axis, size) for axis in (0, 1)]
    x, y = (take(border, a) | take(border, b) for border in reaches)
    kinds = x + 2 * y.byte()
    lowest = boxes.low.new_empty(len(a))
    for kind in range(4):
        clipped = kind & 1, kind & 2
        for here in torch.split(true_at(kinds == kind), PAIRS_AT_ONCE):
            one, other = (boxes.at(take(index, here)) for index in (a, b))
            axes = [
                vertices_after_clipping(one, other, axis, size)
                if clipped[axis]
                else vertices_of_centers(one, other, axis)
                for axis in (0, 1)
            ]
            lowest[here] = least(*axes)
    return lowest


def max_iou_fixed(boxes: BoxRange, fixed: Tensor, size: float | None) -> Tensor:
    """Return an upper bound of the IoU of an uncertain box with a known one.

    Args:
        boxes: (P, 4).
        fixed: (P, 4) xyxy pixels.
        size: side of the image to which the uncertain box is clipped; None if it is not.

    Returns:
        (P,) float64.
    """
    return max_iou_of_corners(corner_range(boxes, size), (fixed.double(), fixed.double()))


def max_iou_pair(a: BoxRange, b: BoxRange, size: float | None) -> Tensor:
    """Return an upper bound of the IoU of two uncertain boxes.

    Args:
        a: (P, 4).
        b: (P, 4).
        size: side of the image to which both are clipped; None for boxes that are not.

    Returns:
        (P,) float64.
    """
    return max_iou_of_corners(corner_range(a, size), corner_range(b, size))


def max_iou_of_corners(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
    """The highest IoU of two boxes whose corners lie in intervals: in common, or at their nearest.

    Where the intervals of a corner meet, both boxes take the common value that makes them largest;
    moving one common corner outward by Δ adds Δ·I_y to I and Δ·(h_a + h_b − I_y) to U, and
    U ≥ I_x·(h_a + h_b − I_y). For a known box both ends of its intervals are its corners. It is 1
    where corners have no limits.

    Args:
        a: smallest and largest x1, y1, x2, y2, (P, 4) each.
        b: the same.

    Returns:
        (P,) float64.
    """
    columns = [[end.T for end in corners] for corners in (a, b)]
    (low_a, high_a), (low_b, high_b) = columns
    start, end = torch.maximum(low_a[:2], low_b[:2]), torch.minimum(high_a[2:], high_b[2:])
    best = [
        torch.cat([torch.minimum(start, high[:2]), torch.maximum(end, low[2:])])
        for low, high in columns
    ]
    return known_or(iou_of_corners(best[0].T, best[1].T), 1.0)


def _known(boxes: Tensor) -> BoxRange:
    """Return boxes (P, 4) xyxy as ranges of one point."""
    boxes = boxes.double()
    centers, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    return BoxRange(*[torch.cat([centers, sides], dim=1)] * 2)


def _reaches_border(boxes: BoxRange, axis: int, size: float) -> Tensor:
    """Return whether clipping to [0, size] can change a box along an axis, (P,)."""
    low, high = (end[:, axis] for end in boxes)
    reach = boxes.high[:, axis + 2] / 2
    return (low < reach) | (high + reach > size)


def iou_of_corners(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boxes (P, 4) xyxy, one by one; 0 where the union is empty."""
    a, b = a.T, b.T
    sides = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp_min_(0)
    overlap = sides[0] * sides[1]
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return overlap / (areas[0] + areas[1] - overlap).clamp_min_(1e-300)
