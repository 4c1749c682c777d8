"""Upper bounds on how many detections there can be at each score (THEORY §6).

Boxes that NMS keeps in one class overlap pairwise by at most η, whatever their scores. So of
candidates that surely overlap each other by more ("clique") at most one is kept, and a cover of all
candidates by cliques bounds the detections.

Notable choices:
- First-fit in the order of falling highest score: the cover of what can reach τ is the beginning
  of the cover of what can reach less. One pass serves every τ.
- First-fit is the same as building the cliques one after the other, each greedily in that order,
  and that takes a few operations on bit masks for each candidate.
- Which boxes of an image overlap does not depend on the class: it is found once for all classes.
- A cover is cut off once it reaches what the detector puts out anyhow, and after MOST_COVERED
  candidates of a group: time and memory stay linear in their number.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipdet.certificate.box_range import BoxRange, corner_range
from lipdet.certificate.candidates import Candidates, expand
from lipdet.certificate.iou_bounds import min_iou_pair

MOST_COVERED = 64
ROWS_AT_ONCE = 512
PAIRS_AT_ONCE = 100_000
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

    Candidates for which no clique was sought, because their group has `limit` of them already or
    has MOST_COVERED higher candidates, are cliques of their own with numbers from `limit` on.
    """
    if not len(candidates.group):
        return torch.zeros(0, dtype=torch.int64)
    numbers = np.arange(limit, limit + len(candidates.group))
    place = torch.arange(len(candidates.group)) - candidates.starts(candidates.group)
    chosen = torch.nonzero(place < MOST_COVERED)[:, 0]
    group, anchor = candidates.group[chosen], candidates.anchor[chosen]
    runs = list(_runs(group // candidates.classes))
    # An anchor stands for all of its candidates in an image: the class does not move the box.
    places = [torch.unique(anchor[rows], return_inverse=True)[1] for rows in runs]
    shown = [
        torch.zeros(int(place.max()) + 1, dtype=torch.int64).index_put((place,), chosen[rows])
        for rows, place in zip(runs, places, strict=True)
    ]
    overlaps = surely_overlap(candidates.boxes, shown, nms_iou, size)
    for rows, place, sure in zip(runs, places, overlaps, strict=True):
        for members in _runs(group[rows]):
            index = place[members].numpy()
            found = np.array(first_fit(_masks(sure[index[:, None], index]), limit))
            mine = chosen[rows][members].numpy()[found >= 0]
            numbers[mine] = found[found >= 0]
    return torch.from_numpy(numbers)


def _runs(values: Tensor) -> Iterator[slice]:
    """Where equal values stand, in a tensor in which they stand together."""
    ends = torch.unique_consecutive(values, return_counts=True)[1].cumsum(0).tolist()
    for start, end in itertools.pairwise([0, *ends]):
        yield slice(start, end)


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


def _masks(overlaps: NDArray[np.bool_]) -> list[int]:
    """Rows of a square matrix as bit masks, of what stands right of its diagonal."""
    packed = np.packbits(np.triu(overlaps, 1), axis=1, bitorder="little")
    return [int.from_bytes(row.tobytes(), "little") for row in packed]


def surely_overlap(
    boxes: BoxRange, images: Sequence[Tensor], nms_iou: float, size: int
) -> list[NDArray[np.bool_]]:
    """Which boxes of an image overlap by more than η under every perturbation.

    Args:
        boxes: (N, 4).
        images: of each image the indices (U,) of its boxes.
        nms_iou: η.
        size: of the images.

    Returns:
        For each image (U, U), symmetric and false on the diagonal.
    """
    if not images:
        return []
    needed = nms_iou + OVERLAP_SLACK
    likely = [_may_overlap(boxes.at(index), needed, size) for index in images]
    one = torch.cat([index[a] for index, (a, _) in zip(images, likely, strict=True)])
    other = torch.cat([index[b] for index, (_, b) in zip(images, likely, strict=True)])
    sure = torch.cat(
        [
            min_iou_pair(boxes.at(a), boxes.at(b), size) > needed
            for a, b in zip(*(torch.split(x, PAIRS_AT_ONCE) for x in (one, other)), strict=True)
        ]
    )
    result = []
    parts = torch.split(sure, [len(a) for a, _ in likely])
    for index, (a, b), kept in zip(images, likely, parts, strict=True):
        matrix = np.zeros((len(index), len(index)), np.bool_)
        matrix[a[kept].numpy(), b[kept].numpy()] = True
        result.append(matrix | matrix.T)
    return result


def _may_overlap(boxes: BoxRange, needed: float, size: int) -> tuple[Tensor, Tensor]:
    """Pairs of an image's boxes (U, 4) that cheap tests do not rule out, the first before.

    The middles of both ranges are boxes that can occur, and IoU is at most the ratio of the areas.
    A pair that is ruled out wrongly adds cliques, which is safe.
    """
    corners = corner_range(BoxRange(*[(boxes.low + boxes.high) / 2] * 2), size)[0].float()
    starts, ends = corners[:, :2], corners[:, 2:]
    areas = (ends - starts).prod(dim=1)
    smallest, largest = boxes.low[:, 2:].prod(dim=1), boxes.high[:, 2:].prod(dim=1)
    parts = []
    for first in range(0, len(areas), ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        x, y = (
            torch.minimum(ends[rows, None, axis], ends[:, axis])
            - torch.maximum(starts[rows, None, axis], starts[:, axis])
            for axis in (0, 1)
        )
        shared = x.clamp_(min=0) * y.clamp_(min=0)
        likely = shared * (1 + needed) > needed * (areas[rows, None] + areas)
        likely &= smallest[rows, None] > needed * largest
        parts.append(torch.nonzero(likely.triu_(1 + first)) + torch.tensor([first, 0]))
    one, other = torch.cat(parts).unbind(dim=1)
    return one, other
