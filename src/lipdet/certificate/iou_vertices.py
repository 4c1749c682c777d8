"""What decides the lowest IoU of uncertain boxes along one axis, and how two axes combine.

Notable choices:
- One axis at a time. With the sides across it fixed, IoU ≥ s > 0 reads
  (1+s)·I_y·I_x − s·(areas) ≥ 0, where the overlap I_x is concave in centres and sides and the areas
  are linear: superlevel sets are convex, and the least IoU is at a vertex (theory §4). What the
  vertices of one axis contribute is computed once and combined with those of the other.
- For given sides, IoU falls with the overlap, and the overlap with the distance of the centres. So
  of the vertices with the same sides only the one with the centres farthest apart is needed:
  4 instead of 16 for two boxes. Clipping to the image takes 10 (`vertices_after_clipping`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lipdet.certificate.box_range import BoxRange

# Lengths below any of interest. Their products of reciprocals may overflow in float32: an IoU of 0.
_LEAST_OVERLAP = {torch.float64: 1e-100, torch.float32: 1e-18}


class Vertices(NamedTuple):
    """What one axis contributes: the sides of both boxes in units of their overlap, (V, P) each.

    1 / IoU + 1 = (w_a·h_a + w_b·h_b) / (I_x·I_y) is the product of `a` of both axes plus that of
    `b`. Without overlap they are huge.
    """

    a: Tensor
    b: Tensor


def vertices_of_centers(a: BoxRange, b: BoxRange, axis: int) -> Vertices:
    """Return every combination of sides, with the centres as far apart as they can be."""
    apart = torch.maximum(b.high[:, axis] - a.low[:, axis], a.high[:, axis] - b.low[:, axis])
    x, y = (torch.stack([end[:, axis + 2] for end in boxes]) for boxes in (a, b))
    x, y = x.unsqueeze(1), y.unsqueeze(0)
    return _ratios(torch.minimum(torch.minimum(x, y), (x + y) / 2 - apart), x, y)


def vertices_after_clipping(a: BoxRange, b: BoxRange, axis: int, size: float) -> Vertices:
    """Return what decides if both boxes are clipped to [0, size] along this axis; exact.

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
    inside = _ratios(
        torch.stack([short_b, short_a]),
        torch.stack([long_a, short_a]),
        torch.stack([short_b, long_b]),
    )
    every = _apart(first_a, last_b), _apart(last_a, first_b), inside
    return Vertices(*(torch.cat(ratios) for ratios in zip(*every, strict=True)))


def _extremes(boxes: BoxRange, axis: int, size: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the boxes that lie first and those that lie last, and the shortest and longest side.

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


def _apart(a: Tensor, b: Tensor) -> Vertices:
    """Return what every pair of two boxes with these starts and ends (2, 2, P) contributes."""
    (start_a, end_a), (start_b, end_b) = a.unsqueeze(2), b.unsqueeze(1)
    overlap = torch.minimum(end_a, end_b) - torch.maximum(start_a, start_b)
    return _ratios(overlap, end_a - start_a, end_b - start_b)


def _ratios(overlap: Tensor, side_a: Tensor, side_b: Tensor) -> Vertices:
    """Ratios of vertices (..., P), where sides broadcast to overlaps."""
    # That keeps 0/0 out. An IoU of 0 becomes one below 1e-50, or below 1e-8 in float32.
    least = _LEAST_OVERLAP[overlap.dtype]
    scale = overlap.clamp_min(least).reciprocal_()
    ratios = [(side.clamp_min(least**0.5) * scale) for side in (side_a, side_b)]
    return Vertices(*(ratio.flatten(end_dim=-2) for ratio in ratios))


def least(along_x: Vertices, along_y: Vertices) -> Tensor:
    """The lowest IoU over all pairs of a vertex of each axis, (P,); 0 where none is known."""
    if len(along_x.a) > len(along_y.a):
        along_x, along_y = along_y, along_x
    highest, sums = torch.zeros_like(along_y.a), torch.empty_like(along_y.a)
    for a, b in zip(*along_x, strict=True):
        torch.mul(a, along_y.a, out=sums).addcmul_(b, along_y.b)
        torch.maximum(highest, sums, out=highest)
    return known_or(1 / (highest.amax(dim=0) - 1), 0.0)


def known_or(bound: Tensor, trivial: float) -> Tensor:
    """Bounds of IoU, and the trivial one for those that are no numbers: of boxes without limits."""
    return bound.masked_fill_(bound.isnan(), trivial)
