"""Certificates without a guard against what is no number or too large; corner scenes catch each."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lipdet.certificate import certified_ap
from lipdet.certificate.conditions import (
    candidates,
    certify,
    clique_cover,
    scores_and_votes,
    suppressors,
)
from lipdet.certificate.conditions.five_conditions import SUPPRESS_SLACK
from lipdet.certificate.geometry import box_range, iou_bounds
from lipdet.certificate.geometry.box_range import BoxRange
from lipdet.certificate.geometry.iou_bounds import max_iou_fixed, max_iou_pair
from lipdet.types import Canvas
from tests.certificate.mutants import Mutant, Patch


def _exceeds(high: Tensor, floor: float) -> Tensor:
    return high > floor


def _as_they_are(*ends: Tensor) -> Any:
    return ends if len(ends) > 1 else ends[0]


def _rival_can_outscore(
    high: Tensor, low: Tensor, difference: Tensor | None = None, reach: Tensor | None = None
) -> Tensor:
    can = high >= low
    return can if difference is None or reach is None else can & (difference + reach >= 0)


def _may_vote(
    self: scores_and_votes.ClassVotes, place: Tensor, label: Tensor, margin: float
) -> Tensor:
    """The vote of what is not a number is lost."""
    numbers = ~(self.moved.isnan().any(dim=1) | self.moved.isinf().any(dim=1))
    return _MAY_VOTE(self, place, label, margin) & numbers[place]


def _overlaps(certifier: Any, rival: Any, nms_iou: float, canvas: Canvas) -> Tensor:
    return max_iou_pair(certifier, rival, canvas) > nms_iou - SUPPRESS_SLACK


def _limits(known: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    return low, high


def _no_number(bound: Tensor, trivial: float) -> Tensor:
    return bound


_CLAIM = certified_ap._claim
_MAY_VOTE = scores_and_votes.ClassVotes.may_vote
_WIDEST: Patch = (scores_and_votes, "widest", _as_they_are)
# The first scene in which each is caught.
IN_CORNER_SCENES: dict[str, tuple[int, Mutant]] = {
    "what is no number is no candidate": (9, [(candidates, "may_exceed", _exceeds), _WIDEST]),
    "ends of intervals that are no numbers": (9, [_WIDEST]),
    "what is no number cannot outscore": (66, [(suppressors, "can_outscore", _rival_can_outscore)]),
    "what is no number has no vote": (26, [(scores_and_votes.ClassVotes, "may_vote", _may_vote)]),
    "budgets that are no numbers": (1, [(clique_cover, "_or_infinite", _as_they_are)]),
    "boxes that are no numbers cannot suppress": (
        80,
        [
            (box_range, "_or_anywhere", _limits),
            (iou_bounds, "known_or", _no_number),
            (suppressors, "can_suppress", _overlaps),
        ],
    ),
}
IN_DIRECTED_CORNERS: dict[str, Mutant] = {
    "scores beyond float32": [(candidates, "_LARGEST", math.inf)],
    "boxes next to nothing": [(box_range, "_LEAST", 0.0)],
}


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


IN_CROWDED_SCENES: dict[str, tuple[int, Mutant]] = {
    "ties of heads": (257, [(certified_ap, "_claim", _tied_members)]),
    "twins told apart": (8, [(certify, "other_match_up_to", _any_match)]),
}
