"""Lowest and highest IoU of boxes that are only known to lie in a `BoxRange`.

Everything broadcasts over the leading dimensions: ranges (N, 1) against (1, M) give (N, M).

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

import itertools

import torch
from torch import Tensor

from lipdet.certificate.box_range import BoxRange, corner_range
from lipdet.certificate.iou_vertices import least, vertices_after_clipping, vertices_of_centers


def min_iou_fixed(boxes: BoxRange, fixed: Tensor, size: float | None = None) -> Tensor:
    """The lowest IoU of an uncertain box with a known one; exact, up to float64.

    Args:
        boxes: (..., 4).
        fixed: (..., 4) xyxy pixels; inside the image if `size` is given.
        size: side of the image to which the uncertain box is clipped; None if it is not.

    Returns:
        (...) float64.
    """
    return min_iou_pair(boxes, _known(fixed), size)


def min_iou_pair(a: BoxRange, b: BoxRange, size: float | None) -> Tensor:
    """The lowest IoU of two uncertain boxes; exact, up to float64.

    Args:
        a: (..., 4).
        b: (..., 4).
        size: side of the image to which both are clipped; None for boxes that are not.

    Returns:
        (...) float64.
    """
    if size is None:
        return least(*(vertices_of_centers(a, b, axis) for axis in (0, 1)))
    touched = _reaches_border(a, size) | _reaches_border(b, size)
    a, b = (_in_a_row(each, touched.shape) for each in (a, b))
    x, y = touched.reshape(-1, 2).unbind(dim=1)
    lowest = torch.empty(len(x), dtype=torch.float64)
    for clipped in itertools.product((False, True), repeat=2):
        here = torch.nonzero((x == clipped[0]) & (y == clipped[1]))[:, 0]
        one, other = a.at(here), b.at(here)
        axes = [
            vertices_after_clipping(one, other, axis, size)
            if clipped[axis]
            else vertices_of_centers(one, other, axis)
            for axis in (0, 1)
        ]
        lowest[here] = least(*axes)
    return lowest.reshape(touched.shape[:-1])


def max_iou_fixed(boxes: BoxRange, fixed: Tensor, size: float | None) -> Tensor:
    """An upper bound of the IoU of an uncertain box with a known one.

    Args:
        boxes: (..., 4).
        fixed: (..., 4) xyxy pixels.
        size: side of the image to which the uncertain box is clipped; None if it is not.

    Returns:
        (...) float64.
    """
    return max_iou_of_corners(corner_range(boxes, size), (fixed.double(), fixed.double()))


def max_iou_pair(a: BoxRange, b: BoxRange, size: float | None) -> Tensor:
    """An upper bound of the IoU of two uncertain boxes.

    Args:
        a: (..., 4).
        b: (..., 4).
        size: side of the image to which both are clipped; None for boxes that are not.

    Returns:
        (...) float64.
    """
    return max_iou_of_corners(corner_range(a, size), corner_range(b, size))


def max_iou_of_corners(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
    """The highest IoU of two boxes whose corners lie in intervals: in common, or at their nearest.

    Where the intervals of a corner meet, both boxes take the common value that makes them largest;
    moving one common corner outward by Δ adds Δ·I_y to I and Δ·(h_a + h_b − I_y) to U, and
    U ≥ I_x·(h_a + h_b − I_y). For a known box both ends of its intervals are its corners.

    Args:
        a: smallest and largest x1, y1, x2, y2, (..., 4) each.
        b: the same.

    Returns:
        (...) float64.
    """
    start = torch.maximum(a[0][..., :2], b[0][..., :2])
    end = torch.minimum(a[1][..., 2:], b[1][..., 2:])
    best = [
        torch.cat([torch.minimum(start, high[..., :2]), torch.maximum(end, low[..., 2:])], dim=-1)
        for low, high in (a, b)
    ]
    return _iou(*best)


def _known(boxes: Tensor) -> BoxRange:
    """Boxes (..., 4) xyxy as ranges of one point."""
    boxes = boxes.double()
    centers, sides = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    return BoxRange(*[torch.cat([centers, sides], dim=-1)] * 2)


def _in_a_row(boxes: BoxRange, shape: torch.Size) -> BoxRange:
    """Ranges that broadcast to the leading dimensions of `shape` (..., 2), one by one, (N, 4)."""
    return BoxRange(*(end.expand(*shape[:-1], 4).reshape(-1, 4) for end in boxes))


def _reaches_border(boxes: BoxRange, size: float) -> Tensor:
    """Whether clipping to [0, size] can change a box along each axis, (..., 2)."""
    reach = boxes.high[..., 2:] / 2
    return (boxes.low[..., :2] < reach) | (boxes.high[..., :2] + reach > size)


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boxes (..., 4) xyxy, one by one; 0 where the union is empty."""
    ends = torch.minimum(a[..., 2:], b[..., 2:])
    overlap = (ends - torch.maximum(a[..., :2], b[..., :2])).clamp_min(0).prod(dim=-1)
    areas = (a[..., 2:] - a[..., :2]).prod(dim=-1) + (b[..., 2:] - b[..., :2]).prod(dim=-1)
    return overlap / (areas - overlap).clamp_min(1e-300)
