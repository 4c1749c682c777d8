"""Upper bounds on how many detections there can be at each score, by covers of cliques (theory §6).

Boxes that NMS keeps in one class overlap pairwise by at most η, whatever their scores. So of
candidates that surely overlap each other by more ("clique") at most one is kept, and a cover of all
candidates by cliques bounds the detections.

Notable choices:
- First-fit in the order of falling highest score: the cover of what can reach τ is the beginning
  of the cover of what can reach less. One pass serves every τ.
- The n-th boxes of all groups find their cliques together, by a few operations on bit masks.
- Which boxes of an image overlap does not depend on the class: it is found once for all classes.
  A test in float32 on all pairs comes first; the exact bound is for those that it leaves.
- A group is covered in blocks of 64 candidates, as many as a mask has bits, each by cliques of its
  own; what follows them is not covered. A cover is cut off once it reaches what the detector puts
  out anyhow. So time and memory stay linear in the number of candidates.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipdet.certificate.conditions.candidates import Candidates
from lipdet.certificate.geometry.box_range import BoxRange
from lipdet.certificate.geometry.iou_bounds import min_iou_of_pairs
from lipdet.certificate.ragged import count_reaching, flatnonzero, ranges_of, take
from lipdet.types import Canvas

# NMS computes IoU in float32: overlap is sure only from this much above its threshold.
OVERLAP_SLACK = 1e-3
BITS = 64
# Candidates of a block, at most BITS, and blocks of a group.
BLOCK, BLOCKS = 64, 2
_PRICE_SLACK = 1e-9
# Sums of squares lose at most 2·width^1.5 roundings of 1.1e-16 of their size, for width ≤ 2,000.
_LOST_DIGITS = 1e-14


def surely_overlap(
    boxes: BoxRange,
    images: Sequence[Tensor],
    members: Sequence[Tensor],
    nms_iou: float,
    canvas: Canvas,
) -> list[NDArray[np.bool_]]:
    """Return which boxes of an image overlap by more than η under every perturbation.

    Args:
        boxes: (N, 4).
        images: of each image the indices (U,) of its boxes.
        members: of each image (U, C), 1 for the classes of which a box is a candidate, else 0; only
            boxes with a class in common are compared.
        nms_iou: η.
        canvas: of the images.

    Returns:
        For each image (U, U), symmetric, false on the diagonal and where nothing was compared.
    """
    if not images:
        return []
    needed = nms_iou + OVERLAP_SLACK
    boxes = in_float32(boxes, canvas)
    likely = [
        _may_overlap(boxes.at(index), of_class, steady, needed, canvas)
        for index, of_class, steady in zip(
            images, members, _steady(boxes, images, needed, canvas), strict=True
        )
    ]
    one, other = (
        torch.cat([take(index, pairs[end]) for index, pairs in zip(images, likely, strict=True)])
        for end in (0, 1)
    )
    sure = min_iou_of_pairs(boxes, one, other, canvas) > needed
    result = []
    parts = torch.split(sure, [len(a) for a, _ in likely])
    for index, (a, b), kept in zip(images, likely, parts, strict=True):
        matrix = np.zeros((len(index), len(index)), np.bool_)
        matrix[a.numpy(), b.numpy()] = kept.numpy()
        result.append(matrix | matrix.T)
    return result


def in_float32(boxes: BoxRange, canvas: Canvas) -> BoxRange:
    """Widen boxes so much in float32 that rounding cannot make an overlap too large.

    What is computed of a pair are sums and differences of at most five of their coordinates and a
    side of the image: off by less than 8 roundings of 2⁻²⁴ of the largest. Centres and sides are
    widened by more than that. Products that follow are off by less than OVERLAP_SLACK / 100.
    """
    largest = torch.maximum(boxes.low.abs(), boxes.high.abs()).amax(dim=1, keepdim=True)
    slack = (largest + max(canvas)) * 2.0**-19
    low, high = boxes.low - slack, boxes.high + slack
    low[:, 2:].clamp_min_(0)
    return BoxRange(*(end.T.float().contiguous().T for end in (low, high)))


def _steady(
    boxes: BoxRange, images: Sequence[Tensor], needed: float, canvas: Canvas
) -> Sequence[Tensor]:
    """Find the boxes of each image that would surely overlap a box that can move alike.

    At large ε others hardly ever overlap anything for sure, and are most of all boxes.
    """
    every = torch.cat(list(images))
    alike = min_iou_of_pairs(boxes, every, every, canvas) > needed
    of_images = torch.split(alike, [len(index) for index in images])
    return [flatnonzero(of_image) for of_image in of_images]


def _may_overlap(
    boxes: BoxRange, members: Tensor, steady: Tensor, needed: float, canvas: Canvas
) -> tuple[Tensor, Tensor]:
    """Find pairs of an image's boxes (U, 4) that a test in float32 does not rule out, in order.

    Only those at the indices `steady` are looked at. Tested are both boxes at their smallest and as
    far apart as can be: that can occur, and nearly always decides. Of the two sides that an overlap
    cannot exceed only one is looked at, which rules out less. A pair that is ruled out wrongly, by
    rounding or as not steady, adds cliques, which is safe.
    """
    boxes, members = boxes.at(steady), take(members, steady)
    (_, ends), (starts, _) = placed = _first_and_last(boxes, canvas)
    sides = torch.minimum(*(end - start for start, end in placed))
    x, y = (
        torch.minimum(ends[axis, :, None] - starts[axis], ends[axis] - starts[axis, :, None])
        .minimum(sides[axis, :, None])
        .clamp_(min=0)
        for axis in (0, 1)
    )
    # IoU > η is overlap > (sum of areas)·η / (1 + η).
    needed_of_each = sides[0] * sides[1] * (needed / (1 + needed))
    # numpy is several times as fast at comparing and finding.
    overlapping = x.mul_(y).sub_(needed_of_each[:, None]).numpy() > needed_of_each.numpy()
    in_common = torch.from_numpy((members @ members.T).numpy() > 0)
    likely = in_common.triu_(1).numpy() & overlapping
    one, other = torch.from_numpy(np.stack(np.divmod(np.flatnonzero(likely), len(likely))))
    return take(steady, one), take(steady, other)


def _first_and_last(boxes: BoxRange, canvas: Canvas) -> list[tuple[Tensor, Tensor]]:
    """Return boxes (U, 4) with their shortest sides, at their first and at their last centres.

    Returns:
        Starts and ends of both, (2, U).
    """
    half = boxes.low[:, 2:].T / 2
    limits = half.new_tensor(canvas.limits[:2])[:, None]

    def clipped(end: Tensor) -> Tensor:
        return torch.minimum(end.clamp_min(0), limits)

    return [
        (clipped(center - half), clipped(center + half))
        for center in (boxes.low[:, :2].T, boxes.high[:, :2].T)
    ]


class CliqueCover(NamedTuple):
    """M cliques that cover the candidates of all groups of a batch, of which NMS keeps one each.

    At a log-odds of τ or more, an image has at most as many detections of a class as its group has
    cliques with `log_odds` ≥ τ, whatever the perturbation.

    Attributes:
        group: (M,) image · C + class, ascending.
        log_odds: (M,) what the n-th clique of its group can reach if n of them do, falling within
            a group.
        highest: (M,) what it can reach, whatever others do.
        clique_of: (N,) the clique of each candidate, −1 for those whose clique is left out.
    """

    group: Tensor
    log_odds: Tensor
    highest: Tensor
    clique_of: Tensor

    def reaching(self, group: Tensor, log_odds: Tensor) -> Tensor:
        """Bound how many detections of `group` (P,) have at least `log_odds` (P,)."""
        return count_reaching(self.log_odds, *ranges_of(self.group, group), log_odds)

    def judged(self, judged: Tensor, high: Tensor, limit: int) -> CliqueCover:
        """Return bounds on the detections that are among some of the candidates (theory §6.8).

        They are for `pooled` and `pooled_highest` alone: other detections are counted no more.

        Args:
            judged: (N,) bool, which of the candidates.
            high: (N,) what each can reach.
            limit: as for `cover_by_cliques`.
        """
        members = flatnonzero(judged & (self.clique_of >= 0))
        highest = torch.full_like(self.highest, -torch.inf).scatter_reduce(
            0, self.clique_of[members], high[members], "amax"
        )
        # Below this there may be cliques that are not counted, with candidates that are judged.
        highest = torch.maximum(highest, self.uncounted(self.group, limit))
        falling = highest.argsort(descending=True)
        falling = falling[self.group[falling].argsort(stable=True)]
        log_odds = torch.minimum(self.log_odds, highest[falling])
        return self._replace(log_odds=log_odds, highest=highest)

    def uncounted(self, group: Tensor, limit: int) -> Tensor:
        """Return the score from which on downward there may be cliques that are left out.

        Args:
            group: (P,) of interest.
            limit: as for `cover_by_cliques`.

        Returns:
            (P,); −∞ for groups with fewer cliques.
        """
        starts, counts = ranges_of(self.group, group)
        end = (starts + limit - 1).clamp(max=max(len(self.group) - 1, 0))
        lowest = torch.nn.functional.pad(self.highest, (0, 1), value=-torch.inf)
        return torch.where(counts == limit, lowest[end], -torch.inf)

    def pooled(self, label: int, classes: int, most: int) -> Tensor:
        """Return `log_odds` of one class in all images, at most so many of each, in no order."""
        mine = self.group % classes == label
        return self.log_odds[mine & (_places(self.group) < most)]

    def pooled_highest(self, label: int, classes: int) -> Tensor:
        """Return `highest` of one class in all images, in no order."""
        return self.highest[self.group % classes == label]


def cover_by_cliques(
    candidates: Candidates, limit: int, budget: Tensor | None = None
) -> CliqueCover:
    """Bound the detections of each group at every score.

    Args:
        candidates: all that can exceed the floor.
        limit: cliques beyond so many per group are left out.
        budget: (B · C,) how far, in the L2 norm, all log-odds of a group can move together.
    """
    numbers, alone = _clique_numbers(candidates, limit)
    nearest = _or_infinite(candidates.log_odds + candidates.slack)
    read = _read(candidates.group, alone, nearest if budget is not None else None, limit)
    width = (BLOCKS + 1) * limit + len(numbers)
    rows = flatnonzero(read)
    key = take(candidates.group, rows) * width + take(numbers, rows)
    keys, clique = torch.unique(key, return_inverse=True)
    group = keys // width
    place = _places(group)
    lowest = torch.full((len(group),), -torch.inf, dtype=torch.float64)
    highest = lowest.scatter_reduce(0, clique, take(candidates.high, rows), "amax")
    log_odds = highest
    if budget is not None:
        nearest = lowest.scatter_reduce(0, clique, take(nearest, rows), "amax")
        log_odds = torch.minimum(highest, affordable_log_odds(group, place, nearest, budget, limit))
    inside = place < limit
    index = torch.where(inside, inside.cumsum(0) - 1, -1)
    clique_of = torch.full((len(numbers),), -1).index_copy(0, rows, take(index, clique))
    return CliqueCover(group[inside], log_odds[inside], highest[inside], clique_of)


def _places(group: Tensor) -> Tensor:
    """Number the members of each group of an ascending (M,) from 0."""
    counts = torch.unique_consecutive(group, return_counts=True)[1]
    starts: Tensor = counts.cumsum(0) - counts
    return torch.arange(len(group)) - starts.repeat_interleave(counts)


def _read(group: Tensor, alone: Tensor, nearest: Tensor | None, limit: int) -> Tensor:
    """Return which candidates decide about the first `limit` cliques of their group; (N,) bool.

    Of those that are cliques of their own, `alone` (N,) bool, these are the `limit` with the
    highest `high`, which come first, and the `limit` with the highest `nearest`.
    """
    alone = flatnonzero(alone)
    counts = torch.unique_consecutive(take(group, alone), return_counts=True)[1]
    starts = counts.cumsum(0) - counts
    first = torch.arange(len(alone)) - starts.repeat_interleave(counts) < limit
    read = torch.ones(len(group), dtype=torch.bool).index_put((alone,), first).numpy()
    if nearest is not None:
        falling = -take(nearest, alone).numpy()
        for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
            if count > limit:
                highest = falling[start : start + count].argpartition(limit)[:limit]
                read[alone[start + highest].numpy()] = True
    return torch.from_numpy(read)


def affordable_log_odds(
    group: Tensor, place: Tensor, nearest: Tensor, budget: Tensor, limit: int
) -> Tensor:
    """Return the highest τ that n cliques of a group can reach together, for its n-th clique.

    Of theory §6.1, where the last m of the n cheapest cliques, v₁ ≥ … ≥ v_n of `nearest`, pay: any
    m will do of which all lie below the largest τ. These are those i for which raising i, …, n to
    v_i costs no more than the budget, and the n-th alone, which makes τ ≤ v_n + budget. The sums
    lose digits, and a budget may be smaller than what they lose: their error is taken from the
    budget as m is chosen and added to it afterwards, and v_n + budget caps the result.

    Args:
        group: (M,) of each clique, ascending.
        place: (M,) 0, 1, … within each group.
        nearest: (M,) highest log-odds without perturbation in each clique.
        budget: (groups,) L2 norm of how far all log-odds of a group can move together.
        limit: places from here on are +∞.
    """
    present, row = torch.unique_consecutive(group, return_inverse=True)
    width = int(place.max()) + 1 if len(place) else 1
    values = torch.full((len(present), width), -torch.inf, dtype=torch.float64)
    values[row, place] = nearest
    values = torch.from_numpy(-np.sort(-values.numpy(), axis=1))[:, :limit]
    top, width = values[:, :1], min(width, limit)
    # Relative to the group's best, for the digits. Places without a clique repeat the last one, to
    # keep the order; they are not read.
    values = values - top
    values = values.clamp(min=values.nan_to_num(neginf=0.0).amin(dim=1, keepdim=True))
    reach = budget[present][:, None]
    sums = torch.nn.functional.pad(values.cumsum(1), (1, 0))
    squares = torch.nn.functional.pad(values.square().cumsum(1), (1, 0))
    error = _LOST_DIGITS * width * squares[:, -1:]

    def spread(first: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return number, mean and sum of squares around it of values `first` to n."""
        number = torch.arange(1, width + 1) - first
        mean = (sums[:, 1:] - sums.gather(1, first)) / number
        return number, mean, squares[:, 1:] - squares.gather(1, first) - number * mean.square()

    # Costs fall as i rises: bisection for the lowest i that pays.
    low = torch.zeros(len(values), width, dtype=torch.int64)
    high = torch.arange(width).expand_as(low)
    for _ in range(width.bit_length()):
        middle = (low + high) // 2
        number, mean, rest = spread(middle)
        cost = number * (values.gather(1, middle) - mean).square() + rest
        pays = cost + error <= reach.square()
        low, high = (
            torch.where(pays, low, (middle + 1).minimum(high)),
            torch.where(pays, middle, high),
        )
    number, mean, rest = spread(high)
    level = mean + ((reach.square() - rest + error).clamp(min=0) / number).sqrt()
    level = torch.minimum(level, values + reach)
    result = torch.full_like(nearest, torch.inf)
    inside = place < limit
    level = _or_infinite(level + top + _PRICE_SLACK * (1 + reach + values.abs()))
    result[inside] = level[row[inside], place[inside]]
    return result


def _or_infinite(values: Tensor) -> Tensor:
    """Replace upper bounds that are no numbers by +∞."""
    return values.masked_fill(values.isnan(), torch.inf)


def _clique_numbers(candidates: Candidates, limit: int) -> tuple[Tensor, Tensor]:
    """Number the cliques of each group in the order of their highest candidate.

    Returns:
        (N,) the number of each candidate's clique; and (N,) bool, for which candidates no clique
        was sought, because their block has `limit` of them already or comes after all blocks: they
        are cliques of their own.
    """
    place = _places(candidates.group)
    block = (place // BLOCK).clamp(max=BLOCKS)
    numbers = block * limit + limit + place
    alone = torch.ones(len(place), dtype=torch.bool)
    chosen = flatnonzero(block < BLOCKS)
    if not len(chosen):
        return numbers, alone
    # Each block as a group of its own.
    classes = candidates.classes * BLOCKS
    group = candidates.group[chosen] * BLOCKS + block[chosen]
    # A default box stands for all of its candidates in an image: the class does not move the box.
    # Boxes are numbered image by image.
    boxes, places = torch.unique(candidates.boxes.place[chosen], return_inverse=True)
    runs = list(_runs(group // classes))
    first = [int(places[rows].min()) for rows in runs]
    images = list(torch.split(boxes, np.diff([*first, len(boxes)]).tolist()))
    of_group = torch.zeros(len(boxes), classes)
    of_group[places, group % classes] = 1
    of_images = torch.split(of_group, [len(index) for index in images])
    nms_iou, canvas = candidates.nms_iou, candidates.canvas
    overlaps = surely_overlap(candidates.boxes.boxes, images, of_images, nms_iou, canvas)
    members, masks = [], []
    for rows, start, sure in zip(runs, first, overlaps, strict=True):
        sizes = torch.unique_consecutive(group[rows], return_counts=True)[1].numpy()
        inside = np.arange(BITS) < sizes[:, None]
        # Any index will do where a group has no more boxes.
        own = np.zeros(inside.shape, np.int64)
        own[inside] = places[rows].numpy() - start
        members.append(inside)
        # One list of indices is read at twice the speed of two.
        masks.append(_masks(sure.ravel().take(own[:, :, None] * len(sure) + own[:, None, :])))
    inside = np.concatenate(members)
    found = torch.from_numpy(first_fit(np.concatenate(masks), inside, limit)[inside])
    covered = chosen[found >= 0]
    alone[covered] = False
    # Before the numbers of those of its block that are alone, and after those of earlier blocks.
    numbers[covered] = block[covered] * (limit + BLOCK) + found[found >= 0]
    return numbers, alone


def _runs(values: Tensor) -> Iterator[slice]:
    """Yield where equal values stand, in a tensor in which they stand together."""
    ends = torch.unique_consecutive(values, return_counts=True)[1].cumsum(0).tolist()
    for start, end in itertools.pairwise([0, *ends]):
        yield slice(start, end)


def first_fit(
    overlaps: NDArray[np.uint64], inside: NDArray[np.bool_], limit: int
) -> NDArray[np.int64]:
    """Cover boxes by cliques, each box going to the first one all of whose members it overlaps.

    Args:
        overlaps: (groups, n ≤ 64) for each box of each group a bit mask of the boxes of the group
            that it surely overlaps; not itself, and of those before it any.
        inside: (groups, n) whether there is such a box.
        limit: of cliques in each group.

    Returns:
        (groups, n) the number of each box's clique, −1 if there is no box or no clique left.
    """
    groups, width = overlaps.shape
    numbers = np.full((groups, width), -1)
    # The boxes that overlap all members of each clique: at first every box.
    fits = np.full((groups, min(limit, width)), ~np.uint64(0))
    opened = 1
    for box in range(width):
        admits = (fits[:, :opened] >> np.uint64(box) & np.uint64(1)).astype(np.bool_)
        clique = admits.argmax(axis=1)
        [rows] = np.nonzero(inside[:, box] & admits.any(axis=1))
        joined = clique[rows]
        numbers[rows, box] = joined
        fits[rows, joined] &= overlaps[rows, box]
        # The next box may need one more than are in use.
        opened = max(opened, joined.max(initial=-1) + 2)
    return numbers


def _masks(overlaps: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Return the last axis of (..., BITS) as bit masks."""
    masks: NDArray[np.uint64] = np.packbits(overlaps, axis=-1, bitorder="little").view("<u8")
    return masks[..., 0]
