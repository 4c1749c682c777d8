"""All boxes that uncertain offsets can decode to, as intervals of centres, sides and corners.

Notable choices:
- Decoding is increasing in each offset on its own (theory §4), so the ends of an interval of
  offsets decode to the ends of an interval of centres and sides, and nothing is lost.
- The intervals are widened by what a decode in float32 can be off by, so that they hold for the
  boxes that the detector computes and not only for those of real arithmetic.
- Boxes of which a number may be too large for float32, or is none, can lie anywhere.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lipdet.boxes.coding import BoxCoding
from lipdet.types import Canvas

# A corner of a box that is decoded in float32 from given offsets lies within these many roundings
# u = 2⁻²⁴ of the real one: the centre t·v·d + c costs 3u|t·v·d| + u|centre|, half a side
# exp(t·v)·d/2 with exp within 2 ulp and |x|eˣ ≤ 4.2 eˣ + 0.4 costs 17u·side/2 + 16u·d, their sum
# u(|centre| + side/2). All of it is below 16u(|centre| + |c| + side + d).
_ROUNDING = 2.0**-20
# Nearer to 0 numbers lose more of their digits, at most 1e-45, and areas of sides as short are too
# small for float32: such boxes may have any IoU.
_LEAST = 1e-15
# Far below what overflows in float32 in a decode.
_MOST = 1e30


class BoxRange(NamedTuple):
    """Intervals of centre and sides, each coordinate free of the others.

    Attributes:
        low: (N, 4) float64 smallest cx, cy, w, h in pixels; w, h ≥ 0.
        high: (N, 4) float64 largest.
    """

    low: Tensor
    high: Tensor

    def at(self, index: Tensor) -> BoxRange:
        """Return the ranges at indices (P,); each coordinate of them in a row of its own."""
        return BoxRange(*(end.T.index_select(1, index).T for end in self))


def box_range(
    offsets: Tensor, radius: Tensor, default_boxes: Tensor, coding: BoxCoding
) -> BoxRange:
    """Return all boxes that offsets within `radius` of `offsets` decode to, before clipping.

    Args:
        offsets: (N, 4) t_x, t_y, t_w, t_h.
        radius: (N, 4) the largest change of each, ≥ 0; broadcasts against `offsets`.
        default_boxes: (N, 4) cx, cy, w, h in pixels.
        coding: how offsets become boxes.
    """
    default_boxes, offsets, radius = default_boxes.double(), offsets.double(), radius.double()
    first, last = offsets - radius, offsets + radius
    low = centers_and_sides(coding.decode(first, default_boxes))
    high = centers_and_sides(coding.decode(last, default_boxes))
    largest = torch.maximum(low.abs(), high.abs()) + default_boxes.abs()
    error = _ROUNDING * (largest[..., :2] + largest[..., 2:])
    error = error.clamp_min(_LEAST)
    error = torch.cat([error, 2 * error], dim=-1)
    low, high = low - error, high + error
    # Only offsets of centres count: those of sides are clamped above, and fall to sides of 0.
    reached = torch.maximum(first[..., :2].abs(), last[..., :2].abs()) * coding.center_variance
    known = (torch.cat([largest, reached], dim=-1) < _MOST).all(dim=-1, keepdim=True)
    low, high = _or_anywhere(known, low, high)
    return BoxRange(torch.cat([low[..., :2], low[..., 2:].clamp_min(0)], dim=-1), high)


def _or_anywhere(known: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(known, low, -torch.inf), torch.where(known, high, torch.inf)


def corner_range(boxes: BoxRange, canvas: Canvas | None = None) -> tuple[Tensor, Tensor]:
    """Return the intervals of x1, y1, x2, y2: two tensors (N, 4), smallest and largest.

    Args:
        boxes: intervals of centres and sides.
        canvas: if given, of the corners after clipping to it.
    """
    low, high = (end.T for end in boxes)
    smallest = torch.cat([low[:2] - high[2:] / 2, low[:2] + low[2:] / 2])
    largest = torch.cat([high[:2] - low[2:] / 2, high[:2] + high[2:] / 2])
    if canvas is not None:
        limits = smallest.new_tensor(canvas.limits)[:, None]
        smallest = torch.minimum(smallest.clamp_min_(0), limits)
        largest = torch.minimum(largest.clamp_min_(0), limits)
    return smallest.T, largest.T


def centers_and_sides(boxes: Tensor) -> Tensor:
    """Return boxes (..., 4) xyxy as cx, cy, w, h."""
    centers = (boxes[..., :2] + boxes[..., 2:]) / 2
    return torch.cat([centers, boxes[..., 2:] - boxes[..., :2]], dim=-1)
