"""Which objects of a batch are certified: the five conditions together (theory §5)."""

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
    strays_to,
    suppresses,
)
from lipdet.certificate.cover import Entries
from lipdet.certificate.iou_bounds import max_iou_fixed
from lipdet.certificate.rivals import Rivals
from lipdet.certificate.segments import expand, in_parts, take, true_at
from lipdet.certificate.staying import Staying, staying
from lipdet.certificate.tightenings import ALL, Tightenings
from lipdet.certificate.truths import Truths

# COCO counts so many detections of a class per image.
MAX_DETECTIONS = 100
RIVALS_AT_ONCE = 400_000


class Certifiers(NamedTuple):
    """Candidates that satisfy conditions 1 and 2 for an object, (P,), and what limits them.

    Attributes:
        truth: index of the object.
        candidate: index of the candidate.
        low: lowest log-odds of the candidate: the object is certified up to it.
        box: IoU threshold up to which the candidate matches its object (condition 2).
        kept: the same for it and all that can suppress it (condition 3), so at most `box`.
        fits: whether no truncation can reach it (condition 4).
        alone: IoU threshold above which no other object can be matched instead (condition 5).
        pairs: condition 2 of these and others.
    """

    truth: Tensor
    candidate: Tensor
    low: Tensor
    box: Tensor
    kept: Tensor
    fits: Tensor
    alone: Tensor
    pairs: Staying

    def certify(self, iou: float) -> Tensor:
        """Return which certifiers vouch for their object at this IoU threshold, (P,) bool."""
        return (self.kept >= iou) & self.fits & (self.alone < iou)

    def of_first(self, truths: int) -> Certifiers:
        """Return those of the first so many objects."""
        own = true_at(self.truth < truths)
        return Certifiers(
            truth=self.truth[own],
            candidate=self.candidate[own],
            low=self.low[own],
            box=self.box[own],
            kept=self.kept[own],
            fits=self.fits[own],
            alone=self.alone[own],
            pairs=self.pairs.of_first(truths),
        )


def certifiers(
    candidates: Candidates,
    truths: Truths,
    selection: Selection,
    nms_iou: float,
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
        nms_iou: η.
        size: of the image, in pixels.
        lowest_iou: the lowest IoU threshold of interest.
        entries: bounds on kept boxes, for the second form of condition 4.
        rivals: what is known of pairs of candidates, for condition 3.
        tightenings: which sharpenings are used.
    """
    cleared = clears_floor(candidates.low, logit(selection.score_floor))
    pairs = staying(candidates, cleared, truths, size, lowest_iou, tightenings.ball)
    vouches = take(cleared, pairs.candidate) & (pairs.iou >= lowest_iou)
    passed = true_at(vouches)
    truth, own, box = (take(x, passed) for x in (pairs.truth, pairs.candidate, pairs.iou))
    group, low = candidates.group[own], candidates.low[own]
    together = rivals if tightenings.pairwise else None
    contested = truths.rival_counts[truth] > 0
    certifier, rival, rival_box = _suppressors(
        candidates, pairs, truth, own, box, contested, nms_iou, size, together
    )
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
    return Certifiers(truth, own, low, box, kept, fit, alone, pairs)


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
    suppressor about which no more is known are left out. Condition 5 may use what is raised: the
    rival vouches only if it has suppressed the certifier, so only under these perturbations, and
    under each of them it overlaps its own object by at least this, and another one by no more than
    it can under any.

    Args:
        rivals: what is known of pairs.
        certifier: (Q,) index into `own`.
        own: (P,) certifiers among all candidates.
        rival: (Q,) among all candidates.
        objects: (P, 4) of the certifiers.
        rival_box: up to which IoU threshold the rivals match the objects.
        lowest_iou: the lowest threshold of interest.
    """
    open_ = true_at(rival_box < lowest_iou)
    boxes = rivals.candidates.boxes.at(rival[open_])
    hope = max_iou_fixed(boxes, objects[certifier[open_]], None) >= lowest_iou
    hope &= rivals.lag(own[certifier[open_]], rival[open_]) > 0
    lost = torch.zeros(len(own), dtype=torch.bool)
    lost[certifier[open_[~hope]]] = True
    open_ = open_[~lost[certifier[open_]]]
    first = certifier[open_]
    balls = rivals.balls(own[first], rival[open_])
    rival_box[open_] = torch.maximum(rival_box[open_], stays_in(balls, objects[first]))


def _suppressors(
    candidates: Candidates,
    pairs: Staying,
    truth: Tensor,
    own: Tensor,
    box: Tensor,
    contested: Tensor,
    nms_iou: float,
    size: int,
    rivals: Rivals | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of a certifier and a candidate that can suppress it, and spoil it by that.

    What matches the object at least as surely as the certifier does spoils nothing, unless another
    object may be matched instead.

    Args:
        candidates: all.
        pairs: condition 2.
        truth: (P,) the certifiers' objects.
        own: (P,) the certifiers among all candidates.
        box: (P,) condition 2 of the certifiers.
        contested: (P,) whether there are other objects of the class.
        nms_iou: η.
        size: of the image.
        rivals: what is known of pairs of candidates.

    Returns:
        Indices into `own` and of all candidates, and condition 2 of the latter, (Q,) each.
    """
    group = take(candidates.group, own)
    starts, ahead = candidates.starts(group), candidates.reaching(group, take(candidates.low, own))
    parts = []
    # As many certifiers at once as have RIVALS_AT_ONCE rivals, for bounded memory.
    for rows in in_parts(ahead, RIVALS_AT_ONCE):
        row, rival = expand(starts[rows], ahead[rows])
        row = take(rows, row)
        rival_box = pairs.at(take(truth, row), rival)
        spoils = ~(rival_box >= take(box, row)) | take(contested, row)
        passed = true_at(spoils & (rival != take(own, row)))
        row, rival, rival_box = (take(x, passed) for x in (row, rival, rival_box))
        mine = take(own, row)
        passed = suppresses(candidates.boxes.at(mine), candidates.boxes.at(rival), nms_iou, size)
        passed = true_at(passed)
        row, rival, rival_box, mine = (take(x, passed) for x in (row, rival, rival_box, mine))
        passed = true_at(_outscores(candidates, rival, mine, rivals))
        parts.append(tuple(take(x, passed) for x in (row, rival, rival_box)))
    row, rival, rival_box = (torch.cat(column) for column in zip(*parts, strict=True))
    return row, rival, rival_box


def _outscores(candidates: Candidates, rival: Tensor, own: Tensor, rivals: Rivals | None) -> Tensor:
    high, low = take(candidates.high, rival), take(candidates.low, own)
    if rivals is None:
        return outscores(high, low)
    difference = take(candidates.log_odds, rival) - take(candidates.log_odds, own)
    slack = take(candidates.slack, rival) + take(candidates.slack, own)
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
