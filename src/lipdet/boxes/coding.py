"""Boxes as offsets from default boxes, and back.

Notable choices:
- Boxes and default boxes are in pixels of the network's input; offsets have no unit.
- The centre coordinate depends on one offset only, and so does each side (theory §4 builds
  worst-case boxes on that).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# A side at most this many times the default box's: keeps exp finite, as in torchvision's BoxCoder.
MAX_LOG_RATIO = math.log(1000 / 16)


@dataclass(frozen=True)
class BoxCoding:
    """The SSD box encoding (Liu et al., 2016, eq. 2) with its two variances."""

    center_variance: float = 0.1
    size_variance: float = 0.2

    @classmethod
    def of_unit(cls, unit: float) -> BoxCoding:
        """Return the coding in which an offset of 1 is a shift by `unit` sides of the default box.

        Shifting a centre by d sides costs an IoU of about 2d, changing a side by a factor of exp(d)
        only d: for sides an offset counts twice as much, as in SSD.
        """
        return cls(unit, 2 * unit)

    def encode(self, boxes: Tensor, default_boxes: Tensor) -> Tensor:
        """Return offsets that decode to `boxes`.

        Args:
            boxes: (..., 4) xyxy pixels, positive sides.
            default_boxes: (..., 4) cx, cy, w, h in pixels; broadcasts against `boxes`.

        Returns:
            (..., 4) offsets t_x, t_y, t_w, t_h.
        """
        centers = (boxes[..., :2] + boxes[..., 2:]) / 2
        sizes = boxes[..., 2:] - boxes[..., :2]
        center_offsets = (centers - default_boxes[..., :2]) / default_boxes[..., 2:]
        size_offsets = torch.log(sizes / default_boxes[..., 2:])
        return torch.cat(
            [center_offsets / self.center_variance, size_offsets / self.size_variance], dim=-1
        )

    def decode(self, offsets: Tensor, default_boxes: Tensor) -> Tensor:
        """Return boxes (..., 4) xyxy pixels of `offsets` (..., 4); the inverse of `encode`."""
        centers = offsets[..., :2] * self.center_variance * default_boxes[..., 2:]
        centers = centers + default_boxes[..., :2]
        log_ratios = (offsets[..., 2:] * self.size_variance).clamp(max=MAX_LOG_RATIO)
        half_sizes = torch.exp(log_ratios) * default_boxes[..., 2:] / 2
        return torch.cat([centers - half_sizes, centers + half_sizes], dim=-1)


def corners(default_boxes: Tensor) -> Tensor:
    """Return boxes given as cx, cy, w, h (..., 4) as xyxy (..., 4)."""
    half_sizes = default_boxes[..., 2:] / 2
    return torch.cat([default_boxes[..., :2] - half_sizes, default_boxes[..., :2] + half_sizes], -1)


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the IoU (…, N, M) of boxes (…, N, 4) with boxes (…, M, 4), all xyxy.

    Of two boxes without area it is NaN, as in torchvision.
    """
    # One coordinate at a time: a last axis of two would be copied slowly.
    left, top, right, bottom = (one.unsqueeze(-1) for one in first.unbind(-1))
    x1, y1, x2, y2 = (one.unsqueeze(-2) for one in second.unbind(-1))
    width = torch.minimum(right, x2).sub_(torch.maximum(left, x1)).clamp_(min=0)
    height = torch.minimum(bottom, y2).sub_(torch.maximum(top, y1)).clamp_(min=0)
    intersection = width.mul_(height)
    union = (right - left) * (bottom - top) + (x2 - x1) * (y2 - y1) - intersection
    return intersection.div_(union)
