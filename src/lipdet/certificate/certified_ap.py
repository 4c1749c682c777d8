"""Certified average precision, from certified objects and bounds on detections (theory §6).

An object *claims* a clique at τ if every member that can reach τ matches it, and no other object of
its class, wherever the boxes move (theory §6.7): if NMS keeps one of them, the object is found; if
none, the clique holds no detection. So of the detections that cliques allow, those that objects
claim are no false positives. This asks less than a certificate: the score of the clique may fall as
low as it likes.

Notable choices:
- The thresholds looked at are the scores at which objects are certified: between two of them the
  certified objects are the same, and the higher one has fewer detections.
- COCO ranks displayed scores, float64 sigmoids. Above log-odds of SATURATION they differ too
  little to rank by, so what is certified beyond counts as certified there.
- The mean over the 101 recalls of COCO, not the area under the curve, which can be larger.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lipdet.certificate.conditions.candidates import Candidates
from lipdet.certificate.conditions.certify import ALL, Tightenings, other_matches
from lipdet.certificate.conditions.clique_cover import BLOCK, CliqueCover
from lipdet.certificate.conditions.five_conditions import MATCH_SLACK
from lipdet.certificate.conditions.ground_truth import GroundTruth, SureMatches
from lipdet.certificate.geometry.box_range import corner_range
from lipdet.certificate.geometry.iou_bounds import max_iou_fixed
from lipdet.certificate.ragged import expand_ranges, flatnonzero, ranges_of, take

# In pixels: smaller boxes may have no area as the matcher computes it.
LEAST_SIDE = 1e-3


class CliqueClaims(NamedTuple):
    """Log-odds τ at which objects claim a clique: above < τ ≤ up_to; (G, IoU thresholds) each.

    Attributes:
        up_to: −∞ if it claims none.
        above: what the first member that may not match it can reach; −∞ if all do.
    """

    up_to: Tensor
    above: Tensor


def claim_cliques(
    candidates: Candidates,
    truths: GroundTruth,
    matches: SureMatches,
    cover: CliqueCover,
    limit: int,
    ious: Sequence[float],
    tightenings: Tightenings = ALL,
) -> CliqueClaims:
    """Let each object claim the clique of its class whose highest member surely matches it.

    Of several, that which reaches highest. Below the score of the `limit`-th clique of its group
    an object claims nothing: there may be more cliques than are counted.

    Args:
        candidates: all.
        truths: objects; those without matches claim nothing.
        matches: condition 2 from the lowest of `ious` or less on.
        cover: the cliques.
        limit: as for `cover`.
        ious: IoU thresholds of a match, rising.
        tightenings: which sharpenings are used.
    """
    if not tightenings.claims:
        nothing = torch.full((len(truths.image), len(ious)), -torch.inf, dtype=torch.float64)
        return CliqueClaims(nothing, nothing)
    group = truths.group(candidates.classes)
    # Cliques of the first block: they have all of their members there.
    place = matches.candidate - take(candidates.members(group)[0], matches.truth)
    truth, own, match = (x[place < BLOCK] for x in (matches.truth, matches.candidate, matches.iou))
    sure = flatnonzero(match >= ious[0])
    other = torch.full_like(match, -1.0)
    other[sure] = other_matches(
        candidates, truths, truth[sure], torch.arange(len(sure)), own[sure], match[sure],
        tightenings.relaxed_match,
    )  # fmt: skip
    clique, high = cover.clique_of[own], candidates.high[own]
    heads = (clique >= 0) & (high == cover.highest[clique])
    uncounted = cover.uncounted(group, limit)
    columns = [
        _claim(truth, clique, high, heads, (match >= iou) & (other < iou), uncounted)
        for iou in ious
    ]
    return CliqueClaims(*(torch.stack(ends, dim=1) for ends in zip(*columns, strict=True)))


def _claim(
    truth: Tensor, clique: Tensor, high: Tensor, heads: Tensor, sure: Tensor, uncounted: Tensor
) -> tuple[Tensor, Tensor]:
    """Find claims at one IoU threshold, from pairs (P,) of an object and a candidate; (G,)."""
    nothing = torch.full((len(uncounted),), -torch.inf, dtype=torch.float64)
    found = flatnonzero(sure & heads)
    up_to = nothing.scatter_reduce(0, truth[found], high[found], "amax")
    best = found[high[found] == up_to[truth[found]]]
    claimed = torch.full_like(uncounted, -1, dtype=torch.int64)
    claimed.scatter_reduce_(0, truth[best], clique[best], "amax")
    unsure = flatnonzero((clique == claimed[truth]) & ~sure)
    above = nothing.scatter_reduce(0, truth[unsure], high[unsure], "amax")
    return up_to, torch.maximum(above, uncounted)


class Judged(NamedTuple):
    """Judged detections and objects beside areas in which detections count neither way.

    Attributes:
        candidates: (N,) bool, all but the ignored: those of which a share above the highest
            threshold of a match lies in an area of their class wherever they move.
        objects: (G,) bool, all but those that an ignored candidate may match.
    """

    candidates: Tensor
    objects: Tensor


def judged_beside(
    candidates: Candidates, truths: GroundTruth, areas: GroundTruth, ious: Sequence[float]
) -> Judged:
    """Tell false positives from detections that are not judged (theory §6.8).

    Args:
        candidates: N.
        truths: G objects.
        areas: that are not judged.
        ious: thresholds of a match, rising.
    """
    canvas = candidates.canvas
    area, own = expand_ranges(*candidates.members(areas.group(candidates.classes)))
    low, high = corner_range(candidates.boxes.at(own), canvas)
    around = take(areas.box, area)
    beyond = (around[:, :2] - low[:, :2]).clamp(min=0) + (high[:, 2:] - around[:, 2:]).clamp(min=0)
    sides = low[:, 2:] - high[:, :2]
    inside = (1 - beyond / sides).clamp(min=0).prod(dim=1) > ious[-1] + MATCH_SLACK
    judged = torch.ones_like(candidates.group, dtype=torch.bool)
    judged[own[inside & (sides > LEAST_SIDE).all(dim=1)]] = False
    ignored = flatnonzero(~judged)
    starts, counts = ranges_of(take(candidates.group, ignored), truths.group(candidates.classes))
    truth, place = expand_ranges(starts, counts)
    boxes = candidates.boxes.at(take(ignored, place))
    highest = max_iou_fixed(boxes, take(truths.box, truth), canvas)
    objects = torch.ones_like(truths.image, dtype=torch.bool)
    objects[truth[~(highest < ious[0] - MATCH_SLACK)]] = False
    return Judged(judged, objects)


SATURATION = 20.0
# Sigmoids of log-odds that differ by more are different numbers, up to SATURATION.
RANKING_SLACK = 1e-6
# Computed by numpy, as COCO does: torch's differ in the last place.
RECALLS = torch.from_numpy(np.linspace(0.0, 1.0, 101))


class ClassObjects(NamedTuple):
    """Log-odds up to which the objects of one class are certified and claim cliques, (n,) each.

    Attributes:
        certified: up to which each is certified, −∞ if it is not.
        up_to: it claims a clique at log-odds τ with above < τ ≤ up_to.
        above: see `up_to`.
        judged: bool, whether only detections that are judged can be matched with it.
    """

    certified: Tensor
    up_to: Tensor
    above: Tensor
    judged: Tensor


class PossibleDetections(NamedTuple):
    """Log-odds from which on downward one more judged detection of a class is possible, pooled.

    Attributes:
        detections: (m,) by all bounds.
        cliques: (l,) by cliques alone.
    """

    detections: Tensor
    cliques: Tensor


def certified_average_precision(objects: ClassObjects, possible: PossibleDetections) -> float:
    """Return a lower bound of the AP of one class at one IoU threshold under every perturbation.

    Args:
        objects: N > 0 of them.
        possible: detections.
    """
    reached = objects.certified[objects.certified > -torch.inf].clamp(max=SATURATION)
    thresholds = torch.unique(reached)
    if len(thresholds) == 0:
        return 0.0
    found = count_at_least(reached, thresholds)
    precision = found / (found + false_positives(objects, possible, thresholds))
    # Thresholds rise, so recall falls: the best precision at this recall or more is among the first
    # ones up to it.
    best = precision.cummax(0).values
    recall = found / len(objects.certified)
    index = torch.searchsorted(-recall, -RECALLS, right=True) - 1
    return float(torch.where(index >= 0, best[index.clamp(min=0)], 0.0).mean())


def false_positives(
    objects: ClassObjects, possible: PossibleDetections, thresholds: Tensor
) -> Tensor:
    """Bound how many judged detections of a score ≥ τ match no object: FP⁺, (n,) float64.

    By claims (theory §6.7) and by D⁺ − TP⁻. Claims and cliques are looked at slightly below τ,
    where there are no fewer false positives.
    """
    lowest = thresholds - RANKING_SLACK
    judged = objects.judged[:, None]
    claimed = judged & (objects.above[:, None] < lowest) & (lowest <= objects.up_to[:, None])
    certified = judged & (objects.certified.clamp(max=SATURATION)[:, None] >= thresholds)
    by_claims = count_at_least(possible.cliques, lowest) - (claimed | certified).sum(dim=0)
    return torch.minimum(
        by_claims, count_at_least(possible.detections, lowest) - certified.sum(dim=0)
    )


def count_at_least(values: Tensor, thresholds: Tensor) -> Tensor:
    """Return how many of `values` (m,) are ≥ each threshold (n,), (n,) float64."""
    rising = values.sort().values
    return (len(values) - torch.searchsorted(rising, thresholds)).double()
