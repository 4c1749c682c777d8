"""Certify the objects of a batch: the five conditions together (theory §5.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lipdet.boxes.scores import logit
from lipdet.boxes.select import Selection
from lipdet.certificate.conditions.candidates import Candidates
from lipdet.certificate.conditions.clique_cover import CliqueCover
from lipdet.certificate.conditions.five_conditions import (
    clears_floor,
    few_ahead,
    few_kept,
    other_match_up_to,
)
from lipdet.certificate.conditions.ground_truth import GroundTruth, SureMatches, sure_matches
from lipdet.certificate.conditions.suppressors import (
    JointMotion,
    raise_by_overtaking,
    spoiling_suppressors,
)
from lipdet.certificate.ragged import expand_ranges, flatnonzero, take


@dataclass(frozen=True)
class Tightenings:
    """Switches of what sharpens a certificate without being needed for its soundness (theory §6).

    All are on; scripts and tests take single ones away to see what each is worth.

    Attributes:
        collective: bound detections by what it costs to raise many logits at once.
        pairwise: a rival must be able to pass the certifier itself, not only its interval.
        overtaking: a rival that must rise to pass the certifier has less left to move its box with.
        ball: the four offsets of a box move in a ball.
        relaxed_match: another object may be reached where the own one is matched better.
        counted_cliques: count what can be kept, instead of all candidates, against top-k.
        claims: a detection that must match an object is no false positive, certified or not.
    """

    collective: bool = True
    pairwise: bool = True
    overtaking: bool = True
    ball: bool = True
    relaxed_match: bool = True
    counted_cliques: bool = True
    claims: bool = True


ALL = Tightenings()
# COCO counts so many detections of a class per image.
MAX_DETECTIONS = 100


class Certifiers(NamedTuple):
    """Candidates that satisfy conditions 1 and 2 for an object, (P,), and what limits them.

    Attributes:
        truth: index of the object.
        candidate: index of the candidate.
        low: lowest log-odds of the candidate: the object is certified up to it.
        matched_iou: IoU threshold up to which the candidate matches its object (condition 2).
        kept_iou: the same for it and all that can suppress it (condition 3), at most `matched_iou`.
        untruncated: whether no truncation can reach it (condition 4).
        other_iou: IoU threshold above which no other object can be matched (condition 5).
        matches: condition 2 of these and others.
    """

    truth: Tensor
    candidate: Tensor
    low: Tensor
    matched_iou: Tensor
    kept_iou: Tensor
    untruncated: Tensor
    other_iou: Tensor
    matches: SureMatches

    def certify(self, iou: float) -> Tensor:
        """Return which certifiers vouch for their object at this IoU threshold, (P,) bool."""
        return (self.kept_iou >= iou) & self.untruncated & (self.other_iou < iou)

    def of_first(self, truths: int) -> Certifiers:
        """Return the certifiers of the first `truths` objects."""
        own = flatnonzero(self.truth < truths)
        *columns, matches = self
        return Certifiers._make([*(column[own] for column in columns), matches.of_first(truths)])


def certifiers(
    candidates: Candidates,
    truths: GroundTruth,
    selection: Selection,
    lowest_iou: float,
    cover: CliqueCover | None = None,
    joint_motion: JointMotion | None = None,
    tightenings: Tightenings = ALL,
) -> Certifiers:
    """Check all five conditions for each object and each candidate that may vouch for it.

    Args:
        candidates: all that can exceed the floor of `selection`.
        truths: objects; those without area or not inside the image get no certifier.
        selection: what the detector does with its candidates.
        lowest_iou: the lowest IoU threshold of interest.
        cover: bounds on kept boxes, for the second form of condition 4.
        joint_motion: of pairs of candidates, for condition 3.
        tightenings: which sharpenings are used.
    """
    cleared = clears_floor(candidates.low, logit(selection.score_floor))
    matches = sure_matches(candidates, cleared, truths, lowest_iou, tightenings.ball)
    vouches = take(cleared, matches.candidate) & (matches.iou >= lowest_iou)
    passed = flatnonzero(vouches)
    truth, own, iou = (take(x, passed) for x in (matches.truth, matches.candidate, matches.iou))
    group, low = candidates.group[own], candidates.low[own]
    contested = truths.other_counts[truth] > 0
    certifier, rival, rival_iou = spoiling_suppressors(
        candidates, matches, truth, own, iou, contested,
        joint_motion if tightenings.pairwise else None,
    )  # fmt: skip
    if joint_motion is not None and tightenings.overtaking:
        objects = truths.box[truth]
        raise_by_overtaking(joint_motion, certifier, own, rival, objects, rival_iou, lowest_iou)
    kept_iou = iou.scatter_reduce(0, certifier, rival_iou, "amin")
    counted = cover if tightenings.counted_cliques else None
    untruncated = not_truncated(candidates, group, low, selection.top_k, counted)
    vouching = torch.cat([torch.arange(len(own)), certifier])
    boxes = torch.cat([own, rival])
    other_iou = other_matches(
        candidates, truths, truth, vouching, boxes, torch.cat([iou, rival_iou]),
        tightenings.relaxed_match,
    )  # fmt: skip
    return Certifiers(truth, own, low, iou, kept_iou, untruncated, other_iou, matches)


def certified_up_to(found: Certifiers, truths: int, ious: Sequence[float]) -> Tensor:
    """Return the highest log-odds at which objects are certified, (truths, thresholds); or −∞."""
    none, columns = torch.full((truths,), -torch.inf, dtype=torch.float64), []
    for iou in ious:
        vouch = found.certify(iou)
        columns.append(none.scatter_reduce(0, found.truth[vouch], found.low[vouch], "amax"))
    return torch.stack(columns, dim=1)


def not_truncated(
    candidates: Candidates, group: Tensor, low: Tensor, top_k: int, cover: CliqueCover | None
) -> Tensor:
    """Check condition 4 of certifiers, by all candidates or, given `cover`, by what NMS can keep.

    Args:
        candidates: all.
        group: (P,) of each certifier.
        low: (P,) lowest log-odds of each.
        top_k: detections per image.
        cover: bounds on the detections of each group.
    """
    classes = candidates.classes
    image = group // classes
    # The certifier itself is among those that reach its lowest score.
    others = candidates.reaching_in_image(image, low) - 1
    in_class = candidates.reaching(group, low) - 1
    passed = few_ahead(others, in_class, top_k, MAX_DETECTIONS)
    if cover is None:
        return passed
    groups = (image * classes)[:, None] + torch.arange(classes)
    kept = cover.reaching(groups.flatten(), low.repeat_interleave(classes))
    kept_in_class = cover.reaching(group, low)
    kept = kept.reshape(-1, classes).sum(dim=1)
    return passed | few_kept(kept, kept_in_class, top_k, MAX_DETECTIONS)


def other_matches(
    candidates: Candidates,
    truths: GroundTruth,
    truth: Tensor,
    vouching: Tensor,
    boxes: Tensor,
    own: Tensor,
    relaxed: bool,
) -> Tensor:
    """Check condition 5 of boxes that may vouch and all other objects: thresholds (certifiers,).

    Args:
        candidates: all.
        truths: all objects.
        truth: (P,) the object of each certifier.
        vouching: (Q,) index of a certifier.
        boxes: (Q,) index of the certifier's candidate, or of one of its suppressors.
        own: (Q,) up to which threshold it matches the certifier's object.
        relaxed: whether the relaxation is used.
    """
    objects = truth[vouching]
    pair, other = expand_ranges(truths.other_starts[objects], truths.other_counts[objects])
    placed, canvas = candidates.boxes.at(boxes[pair]), candidates.canvas
    reached = other_match_up_to(placed, truths.others[other], own[pair], canvas, relaxed)
    none = torch.full((len(truth),), -1.0, dtype=torch.float64)
    return none.scatter_reduce(0, vouching[pair], reached, "amax")
