"""What decides the lowest IoU of uncertain boxes along one axis, and how two axes combine.

Notable choices:
- One axis at a time. With the sides across it fixed, IoU ≥ s > 0 reads
  (1+s)·I_y·I_x − s·(areas) ≥ 0, where the overlap I_x is concave in centres and sides and the areas
  are linear: superlevel sets are convex, and the least IoU is at a vertex (THEORY §4). What the
  vertices of one axis contribute is computed once and combined with those of the other.
- For given sides, IoU falls with the overlap, and the overlap with the distance of the centres. So
  of the vertices with the same sides only the one with the centres farthest apart is needed:
  4 instead of 16 for two boxes. Clipping to the image takes 10 (`vertices_after_clipping`).
"""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from lipdet.certificate.box_range import BoxRange

_Ends = tuple[Tensor, Tensor]


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


def vertices_after_clipping(a: BoxRange, b: BoxRange, axis: int, size: float) -> list[Vertex]:
    """What decides if both boxes are clipped to [0, size] along this axis; exact.

    *Proof.* Let a reach over [p_a, q_a] after clipping, b over [p_b, q_b]. With x = (side of a) /
    overlap and y = (side of b) / overlap, the largest x·u + y·v is wanted, for any u, v > 0 that
    the other axis contributes. There are four orders.

    a first (p_a ≤ p_b and q_a ≤ q_b), overlap q_a − p_b: lowering q_a or p_a and raising p_b or q_b
    keeps the order and raises both ratios or leaves them. A box with centre c and side s reaches
    over [max(0, c − s/2), min(size, c + s/2)], both ends rising with c: so a has the lowest centre,
    b the highest. As a's side grows from its shortest, q_a rises and p_a falls until one of them
    meets the border. Up to there both are linear, (u·side_a + v·side_b) / overlap is quasi-convex
    as in the first note above, and only the ends of that stretch are left.
    - If p_a meets 0, at s = 2c, any longer side only raises q_a.
    - If q_a meets `size`, p_a falls alone, which raises the ratios for as long as it does: for b
      inside a too, and q_a = size ≥ q_b leaves no other order. That ends where p_a meets 0 as well.
    So the shortest side and the one that is nearest to 2c are enough; of b, by mirroring, the
    shortest and the one nearest to 2(size − c). That makes 4 pairs, with real boxes each.

    b first: the same with a and b exchanged.

    b inside a: x = (side of a) / (side of b) and y = 1, most with a's side at its longest and b's
    at its shortest. Where those two boxes lie otherwise, they overlap by less, and their ratios are
    only larger: taking this pair of ratios in loses nothing. The clipped side rises with s, and
    with c up to size/2, from where on it falls: it is longest at the centre nearest to size/2, and
    shortest at either end. a inside b: exchanged.
    """
    first_a, last_a, short_a, long_a = _extremes(a, axis, size)
    first_b, last_b, short_b, long_b = _extremes(b, axis, size)
    apart = [*itertools.product(first_a, last_b), *itertools.product(last_a, first_b)]
    return [
        *(_vertex(*one, *other) for one, other in apart),
        _ratios(short_b, long_a, short_b),
        _ratios(short_a, short_a, long_b),
    ]


def _extremes(
    boxes: BoxRange, axis: int, size: float
) -> tuple[list[_Ends], list[_Ends], Tensor, Tensor]:
    """The intervals that lie first, those that lie last, and the shortest and longest side."""
    (near, far), (short, long) = (
        (boxes.low[..., index], boxes.high[..., index]) for index in (axis, axis + 2)
    )

    def clipped(center: Tensor, side: Tensor) -> _Ends:
        return (center - side / 2).clamp(0, size), (center + side / 2).clamp(0, size)

    def sides(to_border: Tensor) -> tuple[Tensor, Tensor]:
        return short, torch.minimum(torch.maximum(to_border, short), long)

    first = [clipped(near, side) for side in sides(2 * near)]
    last = [clipped(far, side) for side in sides(2 * (size - far))]
    shortest = torch.minimum(first[0][1] - first[0][0], last[0][1] - last[0][0])
    middle = torch.minimum(torch.full_like(near, size / 2).maximum(near), far)
    start, end = clipped(middle, long)
    return first, last, shortest, end - start


def _vertex(start_a: Tensor, end_a: Tensor, start_b: Tensor, end_b: Tensor) -> Vertex:
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
