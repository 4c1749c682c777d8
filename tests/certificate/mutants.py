"""Wrong certificates, each wrong in one place: a test of soundness has to catch every one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipdet.boxes.select import Decoder
from lipdet.certificate import certified_ap, verifier
from lipdet.certificate.conditions import (
    candidates,
    certify,
    clique_cover,
    five_conditions,
    ground_truth,
    scores_and_votes,
    suppressors,
)
from lipdet.certificate.constants import joint_outputs
from lipdet.certificate.constants.outputs import OutputBounds
from lipdet.certificate.geometry import box_range, iou_bounds
from lipdet.certificate.geometry.box_range import BoxRange
from lipdet.certificate.geometry.iou_bounds import max_iou_fixed, max_iou_pair, min_iou_fixed
from lipdet.certificate.geometry.offset_ball import OffsetBalls, min_iou_in_ball
from lipdet.evaluate import certified
from lipdet.types import Canvas, RawOutput
from tests.certificate import directed, scenes
from tests.certificate.corners import (
    BEYOND_SCORES,
    NEXT_TO_NOTHING,
    broken_at_limits,
    broken_beside_areas,
    broken_in_crowd,
)


def _always(*columns: Tensor | int) -> Tensor:
    return torch.ones(len(columns[0]), dtype=torch.bool)  # type: ignore[arg-type]


def _standing_still(boxes: BoxRange, truth: Tensor, balls: object = None) -> Tensor:
    middle = (boxes.low + boxes.high) / 2
    return min_iou_fixed(BoxRange(middle, middle), truth) - five_conditions.MATCH_SLACK


def _no_suppressor(certifier: BoxRange, rival: BoxRange, nms_iou: float, canvas: Canvas) -> Tensor:
    return torch.zeros(len(certifier.low), dtype=torch.bool)


def _no_other(boxes: BoxRange, other: Tensor, own: Tensor, canvas: Canvas, relaxed: bool) -> Tensor:
    return torch.full((len(boxes.low),), -1.0, dtype=torch.float64)


def _strictly(
    high: Tensor, low: Tensor, difference: Tensor | None = None, reach: Tensor | None = None
) -> Tensor:
    return high > low


def _vertices(boxes: BoxRange) -> list[BoxRange]:
    found = []
    for ends in itertools.product((False, True), repeat=4):
        vertex = torch.where(torch.tensor(ends), boxes.high, boxes.low)
        found.append(BoxRange(vertex, vertex))
    return found


def _pair_at_vertices(a: BoxRange, b: BoxRange, canvas: Canvas | None) -> Tensor:
    pairs = itertools.product(_vertices(a), _vertices(b))
    return torch.stack([max_iou_pair(x, y, canvas) for x, y in pairs]).amax(dim=0)


def _pair_unclipped(a: BoxRange, b: BoxRange, canvas: Canvas | None) -> Tensor:
    return max_iou_pair(a, b, None)


def _fixed_unclipped(boxes: BoxRange, fixed: Tensor, canvas: Canvas | None) -> Tensor:
    return max_iou_fixed(boxes, fixed, None)


def _fixed_at_vertices(boxes: BoxRange, fixed: Tensor, canvas: Canvas | None) -> Tensor:
    found = [max_iou_fixed(vertex, fixed, canvas) for vertex in _vertices(boxes)]
    return torch.stack(found).amax(dim=0)


def _stars(
    overlaps: NDArray[np.uint64], inside: NDArray[np.bool_], limit: int
) -> NDArray[np.int64]:
    """Each box with all that it overlaps, as NMS removes them: a lower bound of what is kept."""
    numbers = np.full(overlaps.shape, -1)
    for group, masks in enumerate(overlaps.tolist()):
        count = 0
        for box, later in enumerate(masks):
            if inside[group, box] and numbers[group, box] < 0 and count < limit:
                taken = [other for other in range(box + 1, len(masks)) if later >> other & 1]
                alone = [other for other in taken if numbers[group, other] < 0]
                numbers[group, [box, *alone]] = count
                count += 1
    return numbers


def _continuous(
    objects: certified_ap.ClassObjects, possible: certified_ap.PossibleDetections
) -> float:
    """The area under the curve instead of the mean over 101 recalls."""
    reached = objects.certified[objects.certified > -torch.inf]
    thresholds = torch.unique(reached)
    found = certified_ap.count_at_least(reached, thresholds)
    wrong = certified_ap.false_positives(objects, possible, thresholds)
    precision = (found / (found + wrong)).cummax(0).values
    steps = -torch.diff(found / len(objects.certified), append=torch.zeros(1, dtype=torch.float64))
    return float((steps * precision).sum())


def _just_below(cover: clique_cover.CliqueCover, label: int, *rest: int) -> Tensor:
    """What counts cliques > τ does: each a little lower."""
    return _POOLED(cover, label, *rest) - 1e-12


def _cliques_just_below(cover: clique_cover.CliqueCover, label: int, classes: int) -> Tensor:
    return _POOLED_HIGHEST(cover, label, classes) - 1e-12


def _unsure_members(
    truth: Tensor, clique: Tensor, high: Tensor, heads: Tensor, sure: Tensor, uncounted: Tensor
) -> tuple[Tensor, Tensor]:
    """Claims to cliques of which only the highest member surely matches."""
    first, _ = _CLAIM(truth, clique, high, heads, sure, uncounted)
    return first, uncounted


def _of_any_object(candidates: object, truths: object, truth: Tensor, *rest: object) -> Tensor:
    """Claims to cliques that another object may be matched by."""
    return torch.full((len(truth),), -1.0, dtype=torch.float64)


def _all_that_is_counted(cover: clique_cover.CliqueCover, group: Tensor, limit: int) -> Tensor:
    return torch.full((len(group),), -torch.inf, dtype=torch.float64)


def _claimed_twice(
    objects: certified_ap.ClassObjects,
    possible: certified_ap.PossibleDetections,
    thresholds: Tensor,
) -> Tensor:
    """Objects that are certified and claim a clique count for two."""
    counted = certified_ap.count_at_least(possible.cliques, thresholds)
    for found in (
        (objects.above[:, None] < thresholds) & (thresholds <= objects.up_to[:, None]),
        objects.certified[:, None] >= thresholds,
    ):
        counted = counted - found.sum(dim=0)
    return counted.clamp(min=0)


def _half_of_outputs(
    raw: RawOutput,
    bounds: OutputBounds,
    decoder: Decoder,
    floor: float,
    epsilon: Tensor,
    *rest: float,
) -> candidates.Candidates:
    return candidates.find_candidates(raw, bounds, decoder, floor, epsilon / 2, *rest)


def _every_vote(
    self: scores_and_votes.ClassVotes, place: Tensor, label: Tensor, margin: float
) -> Tensor:
    return _always(place)


def _votes_as_they_are(
    self: scores_and_votes.ClassVotes, place: Tensor, label: Tensor, margin: float
) -> Tensor:
    """What has no vote without perturbation is left out."""
    still = torch.zeros_like(self.moved)
    return _MAY_VOTE(self._replace(moved=still), place, label, margin)


def _half_of_contrasts(
    self: scores_and_votes.ClassVotes, place: Tensor, label: Tensor, margin: float
) -> Tensor:
    contrasts = None if self.contrasts is None else self.contrasts / 2
    half = self._replace(moved=self.moved / 2, contrasts=contrasts)
    return _SURELY_VOTES(half, place, label, margin)


def _half_of_differences(
    self: scenes.PairwiseTable, a: Tensor, b: Tensor, labels: Tensor
) -> Tensor:
    return self.table[labels, a, b] / 2


def _without_push(
    self: scenes.PairwiseTable, a: Tensor, b: Tensor, labels: Tensor
) -> joint_outputs.Lift:
    found = _LIFTS(self, a, b, labels)
    return found._replace(push=torch.zeros_like(found.push))


def _all_spent(self: suppressors.JointMotion, own: Tensor, rival: Tensor) -> OffsetBalls:
    """The rival's ball as if what the lead costs were lost to it: r − t for √(r² − t²)."""
    found, whole = _RIVAL_BALLS(self, own, rival), self.candidates.balls.at(rival)
    left = (found.radius / whole.radius).clamp(max=1)
    spent = (1 - left.square()).sqrt()
    return found._replace(radius=whole.radius * (1 - spent))


_MAY_VOTE = scores_and_votes.ClassVotes.may_vote
_SURELY_VOTES = scores_and_votes.ClassVotes.surely_votes
_AFFORDABLE = clique_cover.affordable_log_odds
_LIFTS = scenes.PairwiseTable.lifts
_RIVAL_BALLS = suppressors.JointMotion.rival_balls


def _half_of_all_together(
    group: Tensor, place: Tensor, nearest: Tensor, budget: Tensor, limit: int
) -> Tensor:
    return _AFFORDABLE(group, place, nearest, budget / 2, limit)


def _half_of_ball(balls: OffsetBalls, fixed: Tensor) -> Tensor:
    return min_iou_in_ball(balls._replace(radius=balls.radius / 2), fixed)


_POOLED = clique_cover.CliqueCover.pooled
_POOLED_HIGHEST = clique_cover.CliqueCover.pooled_highest
_CLAIM = certified_ap._claim
Patch = tuple[object, str, object]
Mutant = Sequence[Patch]
_EVERYTHING: Callable[[Tensor, float], Tensor] = lambda low, floor: low > -1e9  # noqa: E731


def apply(patch: pytest.MonkeyPatch, mutant: Mutant) -> None:
    """Put what is wrong into its places."""
    for place, name, wrong in mutant:
        patch.setattr(place, name, wrong)


_VOTES, _TABLE = scores_and_votes.ClassVotes, scenes.PairwiseTable
_COVER = clique_cover.CliqueCover
# The first random scene in which each is caught; others follow where a scene has changed.
IN_RANDOM_SCENES: dict[str, tuple[int, Patch]] = {
    "condition 1 removed": (30, (certify, "clears_floor", _EVERYTHING)),
    "condition 2 removed": (13, (ground_truth, "matches_up_to", _standing_still)),
    "condition 3 removed": (0, (suppressors, "can_suppress", _no_suppressor)),
    "condition 4 removed": (5, (certify, "few_ahead", _always)),
    "condition 4 by cliques removed": (5, (certify, "few_kept", _always)),
    "unclipped highest IoU of pairs": (17, (five_conditions, "max_iou_pair", _pair_unclipped)),
    "half the constants of outputs": (1, (verifier, "find_candidates", _half_of_outputs)),
    "votes that may be lost": (0, (_VOTES, "surely_votes", _every_vote)),
    "votes that may be won left out": (0, (_VOTES, "may_vote", _votes_as_they_are)),
    "half the constants between classes": (0, (_VOTES, "surely_votes", _half_of_contrasts)),
    "half the ball of offsets": (13, (five_conditions, "min_iou_in_ball", _half_of_ball)),
    "claims of unsure members": (177, (certified_ap, "_claim", _unsure_members)),
    "claims of what others may match": (328, (certified_ap, "other_matches", _of_any_object)),
    "claims and certificates added": (3, (certified_ap, "false_positives", _claimed_twice)),
}


# Without a guard against numbers that are none or too large.
def _exceeds(high: Tensor, floor: float) -> Tensor:
    return high > floor


def _as_they_are(*ends: Tensor) -> Any:
    return ends if len(ends) > 1 else ends[0]


def _rival_can_outscore(
    high: Tensor, low: Tensor, difference: Tensor | None = None, reach: Tensor | None = None
) -> Tensor:
    can = high >= low
    return can if difference is None or reach is None else can & (difference + reach >= 0)


def _may_vote(self: _VOTES, place: Tensor, label: Tensor, margin: float) -> Tensor:
    """The vote of what is not a number is lost."""
    numbers = ~(self.moved.isnan().any(dim=1) | self.moved.isinf().any(dim=1))
    return _MAY_VOTE(self, place, label, margin) & numbers[place]


def _overlaps(certifier: Any, rival: Any, nms_iou: float, canvas: Canvas) -> Tensor:
    return max_iou_pair(certifier, rival, canvas) > nms_iou - five_conditions.SUPPRESS_SLACK


def _limits(known: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    return low, high


def _no_number(bound: Tensor, trivial: float) -> Tensor:
    return bound


_WIDEST: Patch = (scores_and_votes, "widest", _as_they_are)


def _tied_members(
    truth: Tensor, clique: Tensor, high: Tensor, heads: Tensor, sure: Tensor, uncounted: Tensor
) -> tuple[Tensor, Tensor]:
    """Claims to cliques of which a member that may not match reaches as high as one that does."""
    pair = truth * (int(clique.max()) + 2) + clique if len(clique) else truth
    tied = heads & torch.isin(pair, pair[sure & heads])
    return _CLAIM(truth, clique, high, heads, sure | tied, uncounted)


def _any_match(
    boxes: BoxRange, other: Tensor, own: Tensor, canvas: Canvas, relaxed: bool
) -> Tensor:
    """The relaxation of condition 5 where the own object is matched no less, instead of more."""
    reached = max_iou_fixed(boxes, other, canvas)
    return torch.where(reached <= own + 2e-4, -1.0, reached)


def _standing_corners(boxes: BoxRange, canvas: Canvas) -> tuple[Tensor, Tensor]:
    middle = (boxes.low + boxes.high) / 2
    return box_range.corner_range(BoxRange(middle, middle), canvas)


def _no_match(boxes: BoxRange, fixed: Tensor, canvas: Canvas) -> Tensor:
    return torch.zeros(len(fixed), dtype=torch.float64)


def _all_are_counted(
    self: clique_cover.CliqueCover, judged: Tensor, high: Tensor, limit: int
) -> clique_cover.CliqueCover:
    """Where cliques are left out, those that are judged are none the more."""
    return _JUDGED(self, judged, high, limit + 1)


def _of_all_candidates(
    self: clique_cover.CliqueCover, judged: Tensor, high: Tensor, limit: int
) -> clique_cover.CliqueCover:
    """Cliques count only if all of their members are judged."""
    some = torch.zeros(len(self.group), dtype=torch.bool)
    some[self.clique_of[~judged & (self.clique_of >= 0)]] = True
    return _JUDGED(self, judged & ~some[self.clique_of], high, limit)


_JUDGED = clique_cover.CliqueCover.judged
# Each needs a scene made for it.
IN_DIRECTED_SCENES: dict[str, tuple[directed.Attacked, Mutant]] = {
    "condition 5 removed": (directed.STRAYS, [(certify, "other_match_up_to", _no_other)]),
    "> for ≥ between rivals": (directed.TIED_RIVALS, [(suppressors, "can_outscore", _strictly)]),
    "> for ≥ in D⁺": (
        directed.TIED_DETECTIONS,
        [(_COVER, "pooled", _just_below), (_COVER, "pooled_highest", _cliques_just_below)],
    ),
    "highest IoU of pairs from vertices": (
        directed.INNER_OVERLAP,
        [(five_conditions, "max_iou_pair", _pair_at_vertices)],
    ),
    "highest IoU with an object from vertices": (
        directed.INNER_MATCH,
        [(five_conditions, "max_iou_fixed", _fixed_at_vertices)],
    ),
    "unclipped highest IoU with an object": (
        directed.AT_THE_BORDER,
        [(five_conditions, "max_iou_fixed", _fixed_unclipped)],
    ),
    "stars for cliques": (directed.HUB, [(clique_cover, "first_fit", _stars)]),
    "half the constants of differences": (
        directed.PASSED_TOGETHER,
        [(_TABLE, "constants", _half_of_differences)],
    ),
    "half the constant of all logits": (
        directed.RAISED_TOGETHER,
        [(clique_cover, "affordable_log_odds", _half_of_all_together)],
    ),
    "a rival's box where it was": (directed.PUSHED_OFF, [(_TABLE, "lifts", _without_push)]),
    "a rival's ball too small": (
        directed.LIFTED_AND_MOVED,
        [(suppressors.JointMotion, "rival_balls", _all_spent)],
    ),
    "claims beyond what is counted": (
        directed.PUSHED_OUT,
        [(_COVER, "uncounted", _all_that_is_counted)],
    ),
    "continuous area": (
        directed.TWO_OF_THREE,
        [(certified, "certified_average_precision", _continuous)],
    ),
    "scores beyond float32": (BEYOND_SCORES, [(candidates, "_LARGEST", math.inf)]),
    "boxes next to nothing": (NEXT_TO_NOTHING, [(box_range, "_LEAST", 0.0)]),
    "areas that a box may leave": (
        directed.LEAVES_ITS_AREA,
        [(certified_ap, "corner_range", _standing_corners)],
    ),
    "cliques that are left out": (
        directed.BEYOND_ITS_AREAS,
        [(_COVER, "judged", _all_are_counted)],
    ),
}
# What is broken in a scene of a kind, and the number of the first in which each is caught.
IN_UNUSUAL_SCENES: dict[str, tuple[Callable[[int], list[str]], int, Mutant]] = {
    "what is no number is no candidate": (
        broken_at_limits,
        9,
        [(candidates, "may_exceed", _exceeds), _WIDEST],
    ),
    "ends of intervals that are no numbers": (broken_at_limits, 9, [_WIDEST]),
    "what is no number cannot outscore": (
        broken_at_limits,
        66,
        [(suppressors, "can_outscore", _rival_can_outscore)],
    ),
    "what is no number has no vote": (broken_at_limits, 26, [(_VOTES, "may_vote", _may_vote)]),
    "budgets that are no numbers": (
        broken_at_limits,
        1,
        [(clique_cover, "_or_infinite", _as_they_are)],
    ),
    "boxes that are no numbers cannot suppress": (
        broken_at_limits,
        80,
        [
            (box_range, "_or_anywhere", _limits),
            (iou_bounds, "known_or", _no_number),
            (suppressors, "can_suppress", _overlaps),
        ],
    ),
    "ties of heads": (broken_in_crowd, 257, [(certified_ap, "_claim", _tied_members)]),
    "twins told apart": (broken_in_crowd, 8, [(certify, "other_match_up_to", _any_match)]),
    "objects that what is ignored may find": (
        broken_beside_areas,
        3,
        [(certified_ap, "max_iou_fixed", _no_match)],
    ),
    "cliques with an ignored member": (
        broken_beside_areas,
        40,
        [(_COVER, "judged", _of_all_candidates)],
    ),
}
