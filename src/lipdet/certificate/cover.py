"""Upper bounds on how many detections there can be at each score (THEORY §6).

Boxes that NMS keeps in one class overlap pairwise by at most η, whatever their scores. So of
candidates that surely overlap each other by more ("clique") at most one is kept, and a cover of all
candidates by cliques bounds the detections.

Notable choices:
- First-fit in the order of falling highest score: the cover of what can reach τ is the beginning
  of the cover of what can reach less. One pass serves every τ.
- First-fit is the same as building the cliques one after the other, each greedily in that order,
  and that takes a few operations on bit masks for each candidate.
- Groups are covered in blocks of BLOCK candidates, which keeps time and memory linear in the number
  of candidates: cliques that end with their block are more cliques, so the bound stays one.
- A cover is cut off once it reaches what the detector puts out anyhow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lipdet.certificate.candidates import Candidates, expand, in_parts
from lipdet.certificate.iou_bounds import min_iou_pair

BLOCK = 256
PAIRS_AT_ONCE = 400_000
# NMS computes IoU in float32: overlap is sure only from this much above its threshold.
OVERLAP_SLACK = 1e-3
_PRICE_SLACK = 1e-9
_BISECTIONS = 30


class Entries(NamedTuple):
    """Scores at which one more detection becomes possible, of all groups of a batch.

    At a log-odds of τ or more, an image has at most as many detections of a class as its group has
    entries ≥ τ, whatever the perturbation.

    Attributes:
        group: (M,) image · C + class, ascending.
        log_odds: (M,) falling within a group.
    """

    group: Tensor
    log_odds: Tensor

    def reaching(self, group: Tensor, log_odds: Tensor) -> Tensor:
        """At most how many detections of `group` (P,) have at least `log_odds` (P,)."""
        owner, entry = expand(
            torch.searchsorted(self.group, group),
            torch.searchsorted(self.group, group, right=True)
            - torch.searchsorted(self.group, group),
        )
        passed = self.log_odds[entry] >= log_odds[owner]
        return torch.zeros_like(group).index_add(0, owner, passed.long())

    def pooled(self, label: int, classes: int, most: int) -> Tensor:
        """The entries of one class in all images, at most so many of each, in no order."""
        mine = self.group % classes == label
        place = torch.arange(len(self.group)) - torch.searchsorted(self.group, self.group)
        return self.log_odds[mine & (place < most)]


def detection_entries(
    candidates: Candidates,
    nms_iou: float,
    size: int,
    limit: int,
    budget: Tensor | None = None,
) -> Entries:
    """Bound the detections of each group at every score.

    Args:
        candidates: all that can exceed the floor.
        nms_iou: a kept box suppresses others that overlap it by more (η).
        size: side of the image, to which boxes are clipped.
        limit: entries beyond so many per group are left out.
        budget: (B · C,) how far, in the L2 norm, all log-odds of a group can move together.
    """
    numbers = clique_numbers(candidates, nms_iou, size, limit)
    width = len(numbers) + limit
    keys, clique = torch.unique(candidates.group * width + numbers, return_inverse=True)
    group = keys // width
    place = torch.arange(len(group)) - torch.searchsorted(group, group)
    lowest = torch.full((len(group),), -torch.inf, dtype=torch.float64)
    highest = lowest.scatter_reduce(0, clique, candidates.high, "amax")
    if budget is not None:
        nearest = lowest.scatter_reduce(0, clique, candidates.log_odds + candidates.slack, "amax")
        highest = torch.minimum(highest, affordable(group, place, nearest, budget, limit))
    inside = place < limit
    return Entries(group[inside], highest[inside])


def affordable(group: Tensor, place: Tensor, nearest: Tensor, budget: Tensor, limit: int) -> Tensor:
    """The n-th value of a group: the highest τ that n of its cliques can reach together.

    For a clique to hold a detection at τ, some member must rise to it, by (τ − nearest)₊ at least.
    The members of different cliques are different candidates, so the squares of these add up to no
    more than the budget's (THEORY §6, collective D⁺). The n cheapest cliques are those with the
    highest `nearest`, for every τ; what they cost rises with τ, and at the n-th `nearest` plus the
    budget the n-th alone costs all of it. The upper end of a bisection is returned.

    Args:
        group: (M,) of each clique, ascending.
        place: (M,) 0, 1, … within each group.
        nearest: (M,) highest log-odds without perturbation in each clique.
        budget: (groups,) L2 norm of how far all log-odds of a group can move together.
        limit: places from here on are +∞.
    """
    falling = nearest.argsort(descending=True)
    nearest = nearest[falling[group[falling].argsort(stable=True)]]
    inside = place < limit
    present, row = torch.unique_consecutive(group, return_inverse=True)
    row, column = row[inside], place[inside]
    width = int(column.max()) + 1 if len(column) else 1
    values = torch.full((len(present), width), -torch.inf, dtype=torch.float64)
    values[row, column] = nearest[inside]
    top = values[:, :1]
    # Relative to the group's best, so that sums of squares lose no digits. Places without a clique
    # repeat the last one, to keep the order; they are not read.
    values = values - top
    values = values.clamp(min=values.nan_to_num(neginf=0.0).amin(dim=1, keepdim=True))
    reach = budget[present][:, None]
    low, high = values.clone(), values + reach
    sums = torch.nn.functional.pad(values.cumsum(1), (1, 0))
    squares = torch.nn.functional.pad(values.square().cumsum(1), (1, 0))
    count = torch.arange(1, width + 1)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        free = torch.minimum(torch.searchsorted(-values, -middle, right=True), count)
        paid = count - free
        cost = paid * middle.square() - 2 * middle * (sums[:, 1:] - sums.gather(1, free))
        cost = cost + squares[:, 1:] - squares.gather(1, free)
        within = cost <= reach.square()
        low, high = torch.where(within, middle, low), torch.where(within, high, middle)
    result = torch.full_like(nearest, torch.inf)
    result[inside] = (high + top + _PRICE_SLACK * (1 + reach + values.abs()))[row, column]
    return result


def clique_numbers(candidates: Candidates, nms_iou: float, size: int, limit: int) -> Tensor:
    """Number the cliques of each group in the order of their highest candidate, (N,).

    Candidates for which no clique was sought any more, because their group has `limit` of them,
    are cliques of their own with numbers from `limit` on.
    """
    numbers = np.arange(limit, limit + len(candidates.group))
    _, counts = torch.unique_consecutive(candidates.group, return_counts=True)
    starts, found = counts.cumsum(0) - counts, torch.zeros_like(counts)
    while len(counts):
        sizes = counts.clamp(max=BLOCK)
        masks = _overlap_masks(candidates, starts, sizes, nms_iou, size)
        ends = sizes.cumsum(0)
        blocks = zip(starts.tolist(), sizes.tolist(), ends.tolist(), found.tolist(), strict=True)
        for index, (start, length, end, before) in enumerate(blocks):
            fitted = first_fit(masks[end - length : end], limit - before)
            numbers[start : start + length] = [
                own if clique < 0 else before + clique
                for clique, own in zip(fitted, numbers[start : start + length], strict=True)
            ]
            found[index] = before + max(fitted) + 1
        more = (counts > sizes) & (found < limit)
        starts, counts, found = (starts + sizes)[more], (counts - sizes)[more], found[more]
    return torch.from_numpy(numbers)


def first_fit(overlaps: Sequence[int], limit: int) -> list[int]:
    """Cover boxes by cliques, each box going to the first one all of whose members it overlaps.

    Args:
        overlaps: for each box a bit mask of the *later* boxes that it surely overlaps.
        limit: stop when there are so many cliques.

    Returns:
        For each box the number of its clique, or −1 if it was not reached.
    """
    numbers = [-1] * len(overlaps)
    left = (1 << len(overlaps)) - 1
    for clique in range(limit):
        # A box joins only if every earlier member has it among its overlaps.
        fits = left
        while fits:
            lowest = fits & -fits
            box = lowest.bit_length() - 1
            numbers[box] = clique
            left ^= lowest
            fits &= overlaps[box]
        if not left:
            break
    return numbers


def _overlap_masks(
    candidates: Candidates, starts: Tensor, sizes: Tensor, nms_iou: float, size: int
) -> list[int]:
    """For each member of each block, a bit mask of the later ones that it surely overlaps."""
    block, member = expand(starts, sizes)
    place = member - starts[block]
    later = sizes[block] - place - 1
    bits = np.zeros((len(member), BLOCK), np.bool_)
    # As many members at once as have PAIRS_AT_ONCE pairs.
    for rows in in_parts(later, PAIRS_AT_ONCE):
        row, other = expand(member[rows] + 1, later[rows])
        row = rows[row]
        sure = surely_overlap(candidates, member[row], other, nms_iou, size)
        row, other = row[sure], other[sure]
        bits[row.numpy(), (other - starts[block[row]]).numpy()] = True
    packed = np.packbits(bits, axis=1, bitorder="little")
    return [int.from_bytes(mask.tobytes(), "little") for mask in packed]


def surely_overlap(
    candidates: Candidates, one: Tensor, other: Tensor, nms_iou: float, size: int
) -> Tensor:
    """Which pairs of candidates overlap by more than η under every perturbation, (P,) bool.

    The middle of a range is one of the boxes that it holds: pairs whose middles overlap by less
    are sorted out first, at a fraction of the cost.
    """
    middles = (candidates.boxes.low + candidates.boxes.high) / 2
    sides = middles[:, 2:]
    middles = torch.cat([middles[:, :2] - sides / 2, middles[:, :2] + sides / 2], 1).clamp(0, size)
    areas = (middles[:, 2:] - middles[:, :2]).prod(dim=1)
    a, b = middles[one], middles[other]
    shared = torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])
    shared = shared.clamp(min=0).prod(dim=1)
    needed = nms_iou + OVERLAP_SLACK
    sure = shared > needed * (areas[one] + areas[other] - shared)
    likely = torch.nonzero(sure)[:, 0]
    lowest = min_iou_pair(
        candidates.boxes.at(one[likely]), candidates.boxes.at(other[likely]), size
    )
    sure[likely] = lowest > needed
    return sure
