"""Why an object is not certified, and what weaker promises hold for it.

Notable choices:
- Candidates are judged one condition after the other, so an object fails at the condition that the
  candidate which gets furthest fails at.
- An object that is not detected without perturbation either is "missed": no certificate lost it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lipdet.boxes.scores import logit
from lipdet.certificate.conditions.candidates import Candidates
from lipdet.certificate.conditions.certify import Certifiers, not_truncated
from lipdet.certificate.conditions.clique_cover import CliqueCover
from lipdet.certificate.conditions.five_conditions import clears_floor
from lipdet.certificate.conditions.ground_truth import GroundTruth, independent_objects
from lipdet.certificate.geometry.iou_bounds import iou_of_corners
from lipdet.certificate.ragged import expand_ranges, flatnonzero, ranges_of, take
from lipdet.certificate.verifier import Verifier

# In the order in which they are checked; the last five are conditions 1 to 5 of theory §5.
REASONS = ("missed", "score", "box", "suppressor", "truncation", "matching")


class CleanMatches(NamedTuple):
    """Pairs of an object and a candidate of its class that match without perturbation, (P,)."""

    truth: Tensor
    candidate: Tensor


def clean_matches(candidates: Candidates, truths: GroundTruth, iou: float) -> CleanMatches:
    """Find the candidates whose box, without perturbation, has at least this IoU with an object."""
    truth, own = expand_ranges(*candidates.members(truths.group(candidates.classes)))
    matched = flatnonzero(_clean_iou(candidates, truths, truth, own) >= iou)
    return CleanMatches(take(truth, matched), take(own, matched))


def _clean_iou(candidates: Candidates, truths: GroundTruth, truth: Tensor, own: Tensor) -> Tensor:
    """Return the IoU of pairs (P,) of an object and a candidate without perturbation."""
    limits = candidates.clean_boxes.new_tensor(candidates.canvas.limits)
    clipped = candidates.clean_boxes.clamp(min=0).minimum(limits)
    boxes = take(clipped, take(candidates.boxes.place, own))
    return iou_of_corners(boxes, take(truths.box, truth))


def reasons(
    candidates: Candidates,
    found: Certifiers,
    matches: CleanMatches,
    count: int,
    iou: float,
    tau: float,
) -> Tensor:
    """Return the index in REASONS at which each of `count` objects fails, −1 where it is certified.

    Args:
        candidates: all.
        found: all certifiers at a threshold of at most `iou`.
        matches: at `iou`.
        count: number of objects.
        iou: threshold of a match.
        tau: log-odds that the detection shall keep.
    """
    clean = candidates.log_odds[matches.candidate] > tau
    steady = candidates.low[matches.candidate] >= tau
    enough = (found.low >= tau) & (found.matched_iou >= iou)
    kept = enough & (found.kept_iou >= iou)
    passed = [
        (matches.truth, clean),
        (matches.truth, clean & steady),
        (found.truth, enough),
        (found.truth, kept),
        (found.truth, kept & found.untruncated),
        (found.truth, enough & found.certify(iou)),
    ]
    reached = torch.zeros(count, dtype=torch.int64)
    for stage, (truth, mask) in enumerate(passed, start=1):
        reached[truth[mask]] = stage
    return torch.where(reached == len(passed), -1, reached)


def class_stays(
    verifier: Verifier,
    candidates: Candidates,
    matches: CleanMatches,
    kept: Tensor,
    tau: float,
    cover: CliqueCover,
) -> Tensor:
    """Return whether a detection of each object's class stays at log-odds of τ, wherever, (G,).

    By conditions 1 and 4 for a candidate that matches without perturbation (theory §12).

    Args:
        verifier: of the detector.
        candidates: all.
        matches: of the G objects.
        kept: (G,) for which that is known, as those certified at τ; the others are looked at.
        tau: log-odds that the detection shall keep.
        cover: bounds on the detections.
    """
    lowest = take(candidates.low, matches.candidate)
    # A detector may show scores below the floor of what is put out here.
    steady = (lowest >= tau) & clears_floor(lowest, logit(verifier.selection.score_floor))
    open_ = flatnonzero(steady & ~take(kept, matches.truth))
    truth, own = take(matches.truth, open_), take(matches.candidate, open_)
    group, low = take(candidates.group, own), take(candidates.low, own)
    fit = not_truncated(candidates, group, low, verifier.selection.top_k, cover)
    return kept.index_fill(0, truth[fit], True)


def with_other_classes(
    candidates: Candidates, truths: GroundTruth, iou: float, tau: float
) -> tuple[GroundTruth, Tensor]:
    """Return the objects, and after them once more those on which a box of another class may stay.

    What stays on an object matches it without perturbation, too: only classes with such a
    candidate, of at least τ at its lowest, are added. What is added competes with no other object.

    Args:
        candidates: all.
        truths: G objects.
        iou: threshold of a match.
        tau: log-odds that the detection shall keep.

    Returns:
        The objects, (G + H), and for each which of the G it is.
    """
    count = len(truths.image)
    steady = flatnonzero(candidates.low >= tau)
    group = take(candidates.group, steady)
    image, label = group // candidates.classes, group % candidates.classes

    pair, truth = expand_ranges(*ranges_of(truths.image, image))
    other = flatnonzero(take(label, pair) != take(truths.label, truth))
    pair, truth = take(pair, other), take(truth, other)
    matched = _clean_iou(candidates, truths, truth, take(steady, pair)) >= iou
    found = torch.unique(truth[matched] * candidates.classes + label[pair[matched]])
    truth, label = found // candidates.classes, found % candidates.classes
    added = independent_objects(truths.image[truth], label, truths.box[truth])
    return truths.and_independent(added), torch.cat([torch.arange(count), truth])


def box_stays(found: Certifiers, objects: Tensor, count: int, iou: float, tau: float) -> Tensor:
    """Return whether a detection of *some* class stays on each object at log-odds of τ, (count,).

    By conditions 1 to 4 for each class in turn (theory §12).

    Args:
        found: certifiers of `with_other_classes`, at a threshold of at most `iou`.
        objects: its second result.
        count: G.
        iou: threshold of a match.
        tau: log-odds that the detection shall keep.
    """
    stays = (found.low >= tau) & (found.kept_iou >= iou) & found.untruncated
    result = torch.zeros(count, dtype=torch.bool)
    return result.index_fill(0, objects[found.truth[stays]], True)
