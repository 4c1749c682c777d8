"""Lowest and highest IoU of boxes that are only known to lie in a `BoxRange` (theory §4.1 to §4.3).

Boxes come in lists of P, one range for each of the other list.

Notable choices:
- One axis at a time: what the vertices of one axis contribute is computed once and combined with
  those of the other. Of vertices with the same sides only the one with the centres farthest apart
  is needed: 4 instead of 16 for two boxes. Clipping to the image takes 10.
- Lowest values come from vertices, highest ones never: the best box lies inside.
- A union of zero area counts as IoU 0. torchvision computes 0/0 = NaN there, which neither
  suppresses (NaN > η is false) nor matches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lipdet.certificate.geometry.box_range import BoxRange, centers_and_sides, corner_range
from lipdet.certificate.ragged import flatnonzero, take
from lipdet.types import Canvas

# Lengths below any of interest. Their products of reciprocals may overflow in float32: an IoU of 0.
_LEAST_OVERLAP = {torch.float64: 1e-100, torch.float32: 1e-18}


class SideRatios(NamedTuple):
    """Sides of two boxes along an axis in units of their overlap, at V vertices, (V, P) each.

    1 / IoU + 1 = (w_a·h_a + w_b·h_b) / (I_x·I_y) is the product of `a` of both axes plus that of
    `b`. Without overlap they are huge.
    """

    a: Tensor
    b: Tensor


def _unclipped_ratios(a: BoxRange, b: BoxRange, axis: int) -> SideRatios:
    """Return the ratios of all combinations of sides, with the centres as far apart as can be."""
    apart = torch.maximum(b.high[:, axis] - a.low[:, axis], a.high[:, axis] - b.low[:, axis])
    x, y = (torch.stack([end[:, axis + 2] for end in boxes]) for boxes in (a, b))
    x, y = x.unsqueeze(1), y.unsqueeze(0)
    return _side_ratios(torch.minimum(torch.minimum(x, y), (x + y) / 2 - apart), x, y)


def _clipped_ratios(a: BoxRange, b: BoxRange, axis: int, size: float) -> SideRatios:
    """Return the ten ratios that decide if boxes are clipped to [0, size]; exact (theory §4.2)."""
    first_a, last_a, short_a, long_a = _extremes(a, axis, size)
    first_b, last_b, short_b, long_b = _extremes(b, axis, size)
    inside = _side_ratios(
        torch.stack([short_b, short_a]),
        torch.stack([long_a, short_a]),
        torch.stack([short_b, long_b]),
    )
    every = _apart(first_a, last_b), _apart(last_a, first_b), inside
    return SideRatios(*(torch.cat(ratios) for ratios in zip(*every, strict=True)))


def _extremes(boxes: BoxRange, axis: int, size: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the boxes that lie first and those that lie last, and the shortest and longest side.

    The clipped side rises with the side, and with the centre up to size/2, from where on it falls:
    it is longest at the centre nearest to size/2, and shortest at either end.

    Returns:
        Starts and ends of two boxes each, (2, 2, P), and sides (P,).
    """
    (near, far), (short, long) = (
        (boxes.low[:, index], boxes.high[:, index]) for index in (axis, axis + 2)
    )

    def clipped(center: Tensor, sides: Tensor) -> Tensor:
        return torch.stack([center - sides / 2, center + sides / 2]).clamp_(0, size)

    def sides(to_border: Tensor) -> Tensor:
        return torch.stack([short, torch.minimum(torch.maximum(to_border, short), long)])

    first = clipped(near, sides(2 * near))
    last = clipped(far, sides(2 * (size - far)))
    shortest = torch.minimum(first[1, 0] - first[0, 0], last[1, 0] - last[0, 0])
    start, end = clipped(torch.minimum(near.clamp_min(size / 2), far), long)
    return first, last, shortest, end - start


def _apart(a: Tensor, b: Tensor) -> SideRatios:
    """Return the ratios of every pair of two boxes with these starts and ends (2, 2, P)."""
    (start_a, end_a), (start_b, end_b) = a.unsqueeze(2), b.unsqueeze(1)
    overlap = torch.minimum(end_a, end_b) - torch.maximum(start_a, start_b)
    return _side_ratios(overlap, end_a - start_a, end_b - start_b)


def _side_ratios(overlap: Tensor, side_a: Tensor, side_b: Tensor) -> SideRatios:
    """Divide sides by overlaps (..., P), to which they broadcast."""
    # The clamp keeps 0/0 out. An IoU of 0 becomes one below 1e-50, or below 1e-8 in float32.
    least = _LEAST_OVERLAP[overlap.dtype]
    scale = overlap.clamp_min(least).reciprocal_()
    ratios = [(side.clamp_min(least**0.5) * scale) for side in (side_a, side_b)]
    return SideRatios(*(ratio.flatten(end_dim=-2) for ratio in ratios))


def _lowest_iou(along_x: SideRatios, along_y: SideRatios) -> Tensor:
    """Return the lowest IoU over all pairs of a vertex of each axis, (P,); 0 if none is known."""
    if len(along_x.a) > len(along_y.a):
        along_x, along_y = along_y, along_x
    highest, sums = torch.zeros_like(along_y.a), torch.empty_like(along_y.a)
    for a, b in zip(*along_x, strict=True):
        torch.mul(a, along_y.a, out=sums).addcmul_(b, along_y.b)
        torch.maximum(highest, sums, out=highest)
    return known_or(1 / (highest.amax(dim=0) - 1), 0.0)


def known_or(bound: Tensor, trivial: float) -> Tensor:
    """Replace bounds of IoU that are no numbers, of boxes without limits, by the trivial one."""
    return bound.masked_fill_(bound.isnan(), trivial)


# For bounded memory; more is not faster.
PAIRS_AT_ONCE = 32_768


def min_iou_fixed(boxes: BoxRange, fixed: Tensor) -> Tensor:
    """Return the lowest IoU of uncertain boxes, not clipped, with known ones; exact, up to float64.

    Args:
        boxes: (P, 4).
        fixed: (P, 4) xyxy pixels.

    Returns:
        (P,) float64.
    """
    known = BoxRange(*[centers_and_sides(fixed.double())] * 2)
    return _lowest_iou(*(_unclipped_ratios(boxes, known, axis) for axis in (0, 1)))


def min_iou_of_pairs(boxes: BoxRange, a: Tensor, b: Tensor, canvas: Canvas) -> Tensor:
    """Return the lowest IoU of pairs of uncertain boxes, clipped to an image.

    Args:
        boxes: (N, 4), float64 or float32.
        a: (P,) indices of boxes.
        b: (P,) indices of boxes.
        canvas: the image.

    Returns:
        (P,), as exact as the boxes.
    """
    lowest = boxes.low.new_empty(len(a))
    for here, along_x, along_y in _ratios_of_pairs(boxes, a, b, canvas):
        lowest[here] = _lowest_iou(along_x, along_y)
    return lowest


def min_covered_of_pairs(boxes: BoxRange, a: Tensor, b: Tensor, canvas: Canvas) -> Tensor:
    """Return a lower bound of the share of the smaller box that the larger covers (theory §11.4).

    Args:
        boxes: (N, 4).
        a: (P,) indices of boxes.
        b: (P,) indices of boxes, each another one.
        canvas: the image, to which both are clipped.

    Returns:
        (P,), as exact as the boxes; 0 for boxes that may be lines.
    """
    lowest = boxes.low.new_empty(len(a))
    for here, along_x, along_y in _ratios_of_pairs(boxes, a, b, canvas):
        sides = zip(along_x, along_y, strict=True)
        shares = [1 / (x.amax(dim=0) * y.amax(dim=0)) for x, y in sides]
        lowest[here] = known_or(torch.maximum(*shares), 0.0)
    return lowest


def least_area(boxes: BoxRange, canvas: Canvas) -> Tensor:
    """Return the smallest area of boxes (P, 4), clipped to an image, (P,)."""
    x, y = (_extremes(boxes, axis, canvas.limits[axis])[2] for axis in (0, 1))
    return known_or(x * y, 0.0)


def _ratios_of_pairs(
    boxes: BoxRange, a: Tensor, b: Tensor, canvas: Canvas
) -> Iterator[tuple[Tensor, SideRatios, SideRatios]]:
    """Yield indices of pairs, and along x and y their side ratios at the vertices that decide."""
    reaches = [_reaches_border(boxes, axis, canvas.limits[axis]) for axis in (0, 1)]
    x, y = (take(border, a) | take(border, b) for border in reaches)
    kinds = x + 2 * y.byte()
    for kind in range(4):
        clipped = kind & 1, kind & 2
        for here in torch.split(flatnonzero(kinds == kind), PAIRS_AT_ONCE):
            one, other = (boxes.at(take(index, here)) for index in (a, b))
            along_x, along_y = (
                _clipped_ratios(one, other, axis, canvas.limits[axis])
                if clipped[axis]
                else _unclipped_ratios(one, other, axis)
                for axis in (0, 1)
            )
            yield here, along_x, along_y


def max_iou_fixed(boxes: BoxRange, fixed: Tensor, canvas: Canvas | None) -> Tensor:
    """Return an upper bound of the IoU of an uncertain box with a known one.

    Args:
        boxes: (P, 4).
        fixed: (P, 4) xyxy pixels.
        canvas: the image to which the uncertain box is clipped; None if it is not.

    Returns:
        (P,) float64.
    """
    return _max_iou_of_corners(corner_range(boxes, canvas), (fixed.double(), fixed.double()))


def max_iou_pair(a: BoxRange, b: BoxRange, canvas: Canvas | None) -> Tensor:
    """Return an upper bound of the IoU of two uncertain boxes.

    Args:
        a: (P, 4).
        b: (P, 4).
        canvas: the image to which both are clipped; None for boxes that are not.

    Returns:
        (P,) float64.
    """
    return _max_iou_of_corners(corner_range(a, canvas), corner_range(b, canvas))


def _max_iou_of_corners(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
    """Return the highest IoU of boxes whose corners lie in intervals (theory §4.3).

    Each corner is as near to the other's as it can be; where their intervals meet, both take the
    common value that makes the boxes largest. It is 1 where corners have no limits.

    Args:
        a: smallest and largest x1, y1, x2, y2, (P, 4) each, the same for a known box.
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


def _reaches_border(boxes: BoxRange, axis: int, size: float) -> Tensor:
    """Return whether clipping to [0, size] can change a box along an axis, (P,)."""
    low, high = (end[:, axis] for end in boxes)
    reach = boxes.high[:, axis + 2] / 2
    return (low < reach) | (high + reach > size)


def iou_of_corners(a: Tensor, b: Tensor) -> Tensor:
    """Return the IoU of boxes (P, 4) xyxy, one by one; 0 where the union is empty."""
    a, b = a.T, b.T
    sides = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp_min_(0)
    overlap = sides[0] * sides[1]
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return overlap / (areas[0] + areas[1] - overlap).clamp_min_(1e-300)
