"""Boxes whose four offsets lie in a ball: their lowest IoU with a known box (theory §4.4).

Four offsets whose map from the features has norm ‖W₄‖ move in a ball of radius ε·L·‖W₄‖, of which
the intervals of `BoxRange` see the corners, where all four are at their worst together.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lipdet.boxes.coding import MAX_LOG_RATIO, BoxCoding
from lipdet.certificate.geometry.box_range import box_range
from lipdet.certificate.geometry.iou_bounds import known_or
from lipdet.certificate.ragged import take

# More of either is tighter and slower.
SHELLS = 12
TANGENTS = 6
# Each takes 10 KB while it is computed.
_AT_ONCE = 4096


class OffsetBalls(NamedTuple):
    """Balls in which the four offsets of N boxes move.

    Attributes:
        offsets: (N, 4) without perturbation.
        radius: (N,) of each ball, ≥ 0.
        default_boxes: (N, 4) cx, cy, w, h in pixels.
        coding: how offsets become boxes.
    """

    offsets: Tensor
    radius: Tensor
    default_boxes: Tensor
    coding: BoxCoding

    def at(self, index: Tensor) -> OffsetBalls:
        """Return the balls of boxes at indices (P,)."""
        return OffsetBalls(
            take(self.offsets, index),
            take(self.radius, index),
            take(self.default_boxes, index),
            self.coding,
        )


def min_iou_in_ball(balls: OffsetBalls, fixed: Tensor) -> Tensor:
    """Return a lower bound of the IoU of boxes, not clipped, with known ones.

    The ball is covered by products of two discs, one for each axis, and each disc by a polygon, in
    the vertices of which IoU is least (theory §4.4). Of two vertices that mirror each other in the
    centre, only the one farther from the known box is needed. Take the larger of this and of
    `min_iou_fixed`: both hold.

    Args:
        balls: of P boxes.
        fixed: (P, 4) xyxy pixels.

    Returns:
        (P,) float64.
    """
    columns = (balls.offsets, balls.radius, balls.default_boxes, fixed)
    parts = zip(*(torch.split(column.double(), _AT_ONCE) for column in columns), strict=True)
    return torch.cat([_lowest(balls.coding, *rows) for rows in parts])


def _lowest(
    coding: BoxCoding, offsets: Tensor, radius: Tensor, default_boxes: Tensor, fixed: Tensor
) -> Tensor:
    radius = _grown_by_rounding(offsets, radius, default_boxes, coding)
    convex = coding.size_variance * radius <= 1.5 * math.sqrt(3)
    free = (coding.size_variance * offsets[:, 2:] <= MAX_LOG_RATIO).all(dim=1)
    radius = torch.where(convex & free, radius, 0)
    shares = torch.arange(1, SHELLS + 1).to(radius) / SHELLS
    polygons = _polygons(radius[:, None] * shares.sqrt(), coding.size_variance)
    # The discs of the other axis are the same, largest first.
    mirrored = tuple(vertices.flip(1) for vertices in polygons)
    boxes = coding.decode(offsets, default_boxes)
    centers, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    fixed_centers, fixed_sides = (fixed[:, :2] + fixed[:, 2:]) / 2, fixed[:, 2:] - fixed[:, :2]
    axes = []
    for axis, (shifts, ratios) in enumerate((polygons, mirrored)):
        apart = (fixed_centers - centers)[:, axis].abs()[:, None, None]
        apart = apart + shifts * (coding.center_variance * default_boxes[:, axis + 2, None, None])
        side, known = ratios * sides[:, axis, None, None], fixed_sides[:, axis, None, None]
        overlap = torch.minimum(torch.minimum(side, known), (side + known) / 2 - apart)
        # The factors of this axis in (w·h + |g|) / (I_x·I_y) = 1 / IoU + 1.
        both = torch.stack([side, known.expand_as(side)], dim=-1)
        axes.append(both / overlap.clamp_min(1e-100).unsqueeze(-1))
    highest = (axes[0] @ axes[1].mT).flatten(1).amax(dim=1)
    return known_or(torch.where(convex & free, 1 / (highest - 1), 0), 0.0)


def _polygons(radii: Tensor, variance: float) -> tuple[Tensor, Tensor]:
    """Return polygons around discs of offsets of one axis, in terms of decoded centres and sides.

    Args:
        radii: (P, shells).
        variance: by which offsets of sides are multiplied.

    Returns:
        Vertices of the half with centres moved forwards, (P, shells, TANGENTS) each: shifts of the
        centre as offsets, and ratios of the side to that of the disc's middle.
    """
    angles = torch.linspace(-math.pi / 2, math.pi / 2, TANGENTS + 1).to(radii)
    radii = radii.unsqueeze(-1)
    shifts, ratios = radii * angles.cos(), torch.exp(variance * radii * angles.sin())
    # The tangent at (c, s) is {(c', s') : a·c' + b·s' = a·c + b·s}.
    a, b = variance * angles.cos() * ratios, angles.sin().expand_as(ratios)
    level = a * shifts + b * ratios
    first, second = slice(None, -1), slice(1, None)
    scale = a[..., first] * b[..., second] - a[..., second] * b[..., first]
    shift = level[..., first] * b[..., second] - level[..., second] * b[..., first]
    ratio = a[..., first] * level[..., second] - a[..., second] * level[..., first]
    return shift / scale, ratio / scale


def _grown_by_rounding(
    offsets: Tensor, radius: Tensor, default_boxes: Tensor, coding: BoxCoding
) -> Tensor:
    """Return a radius with which a real decode reaches what a decode in float32 can.

    `box_range` says how far sides can be off, and centres half as far; here both become offsets.
    """
    around = box_range(offsets, radius.unsqueeze(-1), default_boxes, coding)
    exact = coding.decode(offsets + radius.unsqueeze(-1), default_boxes)
    error = around.high[:, 2:] - (exact[:, 2:] - exact[:, :2])
    centers = error / 2 / (coding.center_variance * default_boxes[:, 2:])
    sides = error / around.low[:, 2:].clamp_min(1e-300) / coding.size_variance
    return radius + torch.cat([centers, sides], dim=1).square().sum(dim=1).sqrt()
