"""Which objects of a batch are certified: the five conditions together (THEORY §5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lipdet.boxes.scores import logit
from lipdet.boxes.select import Selection
from lipdet.certificate.candidates import Candidates
from lipdet.certificate.conditions import (
    clears_floor,
    fits,
    kept_fit,
    outscores,
    stays_in,
    stays_on,
    strays_to,
    suppresses,
)
from lipdet.certificate.cover import Entries
from lipdet.certificate.iou_bounds import max_iou_fixed
from lipdet.certificate.rivals import Rivals
from lipdet.certificate.segments import expand, in_parts
from lipdet.certificate.tightenings import ALL, Tightenings
from lipdet.certificate.truths import Truths

# COCO counts so many detections of a class per image.
MAX_DETECTIONS = 100
RIVALS_AT_ONCE = 400_000


class Certifiers(NamedTuple):
    """Candidates that satisfy conditions 1 and 2 for an object, and what limits them; (P,) each.

    Attributes:
        truth: index of the object.
        low: lowest log-odds of the candidate: the object is certified up to it.
        box: IoU threshold up to which the candidate matches its object (condition 2).
        kept: the same for it and all that can suppress it (condition 3), so at most `box`.
        fits: whether no truncation can reach it (condition 4).
        alone: IoU threshold above which no other object can be matched instead (condition 5).
    """

    truth: Tensor
    low: Tensor
    box: Tensor
    kept: Tensor
    fits: Tensor
    alone: Tensor

    def certify(self, iou: float) -> Tensor:
        """Which certifiers vouch for their object at this IoU threshold, (P,) bool."""
        return (self.kept >= iou) & self.fits & (self.alone < iou)


def certifiers(
    candidates: Candidates,
    truths: Truths,
    selection: Selection,
    size: int,
    lowest_iou: float,
    entries: Entries | None = None,
    rivals: Rivals | None = None,
    tightenings: Tightenings = ALL,
) -> Certifiers:
    """Check all five conditions for each object and each candidate that may vouch for it.

    Args:
        candidates: all that can exceed the floor of `selection`.
        truths: objects; those without area or not inside the image get no certifier.
        selection: what the detector does with its candidates.
        size: of the image, in pixels.
        lowest_iou: the lowest IoU threshold of interest.
        entries: bounds on kept boxes, for the second form of condition 4.
        rivals: what is known of pairs of candidates, for condition 3.
        tightenings: which sharpenings are used.
    """
    ball = tightenings.ball
    truth, own, box = _matching_candidates(candidates, truths, selection, size, lowest_iou, ball)
    group, low = candidates.group[own], candidates.low[own]
    ahead = candidates.reaching(group, low)
    together = rivals if tightenings.pairwise else None
    certifier, rival = _suppressors(candidates, own, ahead, selection.nms_iou, size, together)
    rival_box = stays(candidates, truths, rival, truth[certifier], lowest_iou, ball)
    if rivals is not None and tightenings.overtaking:
        _look_again(rivals, certifier, own, rival, truths.box[truth], rival_box, lowest_iou)
    kept = box.scatter_reduce(0, certifier, rival_box, "amin")
    counted = entries if tightenings.counted_cliques else None
    fit = not_truncated(candidates, group, low, selection.top_k, counted)
    vouching = torch.cat([torch.arange(len(own)), certifier])
    boxes = torch.cat([own, rival])
    alone = strays(
        candidates, truths, truth, vouching, boxes, torch.cat([box, rival_box]), size,
        tightenings.relaxed_match,
    )  # fmt: skip
    return Certifiers(truth, low, box, kept, fit, alone)


def certified_up_to(found: Certifiers, truths: int, ious: Sequence[float]) -> Tensor:
    """The highest log-odds at which each object is certified, (truths, IoU thresholds); or −∞."""
    columns = [
        torch.full((truths,), -torch.inf, dtype=torch.float64).scatter_reduce(
            0, found.truth[vouch], found.low[vouch], "amax"
        )
        for iou in ious
        for vouch in [found.certify(iou)]
    ]
    return torch.stack(columns, dim=1)


def _matching_candidates(
    candidates: Candidates,
    truths: Truths,
    selection: Selection,
    size: int,
    lowest_iou: float,
    ball: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Objects and candidates of their class with conditions 1 and 2, and how far 2 holds, (P,)."""
    group = truths.image * candidates.classes + truths.label
    truth, own = expand(candidates.starts(group), candidates.members(group))
    valid = can_be_certified(truths.box, size)[truth]
    passed = valid & clears_floor(candidates.low[own], logit(selection.score_floor))
    truth, own = truth[passed], own[passed]
    box = stays(candidates, truths, own, truth, lowest_iou, ball)
    passed = box >= lowest_iou
    return truth[passed], own[passed], box[passed]


def stays(
    candidates: Candidates,
    truths: Truths,
    index: Tensor,
    truth: Tensor,
    lowest_iou: float,
    ball: bool,
) -> Tensor:
    """Condition 2 of pairs of a candidate and an object (P,): thresholds, each pair once.

    Boxes that cannot overlap their object enough even at best are not looked at closely.
    """
    size = len(candidates.group)
    pairs, place = torch.unique(truth * size + index, return_inverse=True)
    index, objects = pairs % size, truths.box[torch.div(pairs, size, rounding_mode="floor")]
    boxes, balls = candidates.boxes.at(index), candidates.balls.at(index)
    found = stays_on(boxes, objects)
    if ball:
        near = torch.nonzero(max_iou_fixed(boxes, objects, None) >= lowest_iou)[:, 0]
        found[near] = stays_on(boxes.at(near), objects[near], balls.at(near))
    return found[place]


def _look_again(
    rivals: Rivals,
    certifier: Tensor,
    own: Tensor,
    rival: Tensor,
    objects: Tensor,
    rival_box: Tensor,
    lowest_iou: float,
) -> None:
    """Raise `rival_box` (Q,), in place, where it alone spoils a certifier and more is known.

    Of the perturbations that let the rival pass the certifier, that is. Certifiers with another
    suppressor about which no more is known are left out.

    Args:
        rivals: what is known of pairs.
        certifier: (Q,) index into `own`.
        own: (P,) certifiers among all candidates.
        rival: (Q,) among all candidates.
        objects: (P, 4) of the certifiers.
        rival_box: up to which IoU threshold the rivals match the objects.
        lowest_iou: the lowest threshold of interest.
    """
    [open_] = torch.nonzero(rival_box < lowest_iou, as_tuple=True)
    boxes = rivals.candidates.boxes.at(rival[open_])
    hope = max_iou_fixed(boxes, objects[certifier[open_]], None) >= lowest_iou
    hope &= rivals.lag(own[certifier[open_]], rival[open_]) > 0
    lost = torch.zeros(len(own), dtype=torch.bool)
    lost[certifier[open_[~hope]]] = True
    open_ = open_[~lost[certifier[open_]]]
    first = certifier[open_]
    balls = rivals.balls(own[first], rival[open_])
    rival_box[open_] = torch.maximum(rival_box[open_], stays_in(balls, objects[first]))


def can_be_certified(boxes: Tensor, size: int) -> Tensor:
    """Whether objects (G, 4) have an area and lie inside the image."""
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    return has_area & (boxes >= 0).all(dim=1) & (boxes <= size).all(dim=1)


def _suppressors(
    candidates: Candidates,
    own: Tensor,
    ahead: Tensor,
    nms_iou: float,
    size: int,
    rivals: Rivals | None,
) -> tuple[Tensor, Tensor]:
    """Pairs of a certifier and a candidate that can suppress it: indices into `own` and of all.

    Args:
        candidates: all.
        own: (P,) the certifiers among them.
        ahead: (P,) how many of the group, from its start, can reach the certifier's lowest score.
        nms_iou: η.
        size: of the image.
        rivals: what is known of pairs of candidates.
    """
    starts = candidates.starts(candidates.group[own])
    parts = []
    # As many certifiers at once as have RIVALS_AT_ONCE rivals, for bounded memory.
    for rows in in_parts(ahead, RIVALS_AT_ONCE):
        row, rival = expand(starts[rows], ahead[rows])
        row, mine = rows[row], own[rows[row]]
        passed = rival != mine
        row, rival, mine = row[passed], rival[passed], mine[passed]
        passed = suppresses(candidates.boxes.at(mine), candidates.boxes.at(rival), nms_iou, size)
        row, rival, mine = row[passed], rival[passed], mine[passed]
        passed = _outscores(candidates, rival, mine, rivals)
        parts.append((row[passed], rival[passed]))
    return torch.cat([row for row, _ in parts]), torch.cat([rival for _, rival in parts])


def _outscores(candidates: Candidates, rival: Tensor, own: Tensor, rivals: Rivals | None) -> Tensor:
    high, low = candidates.high[rival], candidates.low[own]
    if rivals is None:
        return outscores(high, low)
    difference = candidates.log_odds[rival] - candidates.log_odds[own]
    slack = candidates.slack[rival] + candidates.slack[own]
    return outscores(high, low, difference, rivals.reach(own, rival) + slack)


def not_truncated(
    candidates: Candidates, group: Tensor, low: Tensor, top_k: int, entries: Entries | None
) -> Tensor:
    """Condition 4 of certifiers, by all candidates or, given `entries`, by what NMS can keep.

    Args:
        candidates: all.
        group: (P,) of each certifier.
        low: (P,) lowest log-odds of each.
        top_k: detections per image.
        entries: bounds on the detections of each group.
    """
    classes = candidates.classes
    image = group // classes
    # The certifier itself is among those that reach its lowest score.
    others = candidates.reaching_in_image(image, low) - 1
    in_class = candidates.reaching(group, low) - 1
    fit = fits(others, in_class, top_k, MAX_DETECTIONS)
    if entries is None:
        return fit
    groups = (image * classes)[:, None] + torch.arange(classes)
    kept = entries.reaching(groups.flatten(), low.repeat_interleave(classes))
    kept_in_class = entries.reaching(group, low)
    return fit | kept_fit(
        kept.reshape(-1, classes).sum(dim=1), kept_in_class, top_k, MAX_DETECTIONS
    )


def strays(
    candidates: Candidates,
    truths: Truths,
    truth: Tensor,
    vouching: Tensor,
    boxes: Tensor,
    own: Tensor,
    size: int,
    relaxed: bool,
) -> Tensor:
    """Condition 5 for all boxes that may vouch and all other objects: thresholds (certifiers,).

    Args:
        candidates: all.
        truths: all objects.
        truth: (P,) the object of each certifier.
        vouching: (Q,) index of a certifier.
        boxes: (Q,) index of the certifier's candidate, or of one of its suppressors.
        own: (Q,) up to which threshold it matches the certifier's object.
        size: of the image.
        relaxed: whether the relaxation is used.
    """
    objects = truth[vouching]
    pair, rival = expand(truths.rival_starts[objects], truths.rival_counts[objects])
    reached = strays_to(
        candidates.boxes.at(boxes[pair]), truths.rivals[rival], own[pair], size, relaxed
    )
    none = torch.full((len(truth),), -1.0, dtype=torch.float64)
    return none.scatter_reduce(0, vouching[pair], reached, "amax")
