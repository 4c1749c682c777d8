"""Why an object is not certified, and what weaker promises hold for it.

Notable choices:
- Anchors are judged one after the other condition, so an object fails at the condition that the
  anchor which gets furthest fails at.
- An object that is not detected without perturbation either is "missed": no certificate lost it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lipdet.certificate.candidates import Candidates
from lipdet.certificate.certify import Certifiers, certified_up_to, not_truncated
from lipdet.certificate.cover import Entries
from lipdet.certificate.iou_bounds import iou_of_corners
from lipdet.certificate.segments import expand, take, true_at
from lipdet.certificate.truths import Truths, free_truths
from lipdet.certificate.verifier import Verifier

# In the order in which they are checked; the last five are conditions 1 to 5 of THEORY §5.
REASONS = ("missed", "score", "box", "suppressor", "truncation", "matching")


class Matches(NamedTuple):
    """Pairs of an object and a candidate of its class that match without perturbation, (P,)."""

    truth: Tensor
    candidate: Tensor


def clean_matches(
    candidates: Candidates, truths: Truths, size: int, iou: float, tau: float = -math.inf
) -> Matches:
    """Find the candidates whose box, without perturbation, has at least this IoU with an object.

    Args:
        candidates: all.
        truths: G objects.
        size: of the image.
        iou: threshold of a match.
        tau: only candidates whose lowest log-odds are at least this are looked at.
    """
    group = truths.image * candidates.classes + truths.label
    truth, own = expand(candidates.starts(group), candidates.members(group))
    steady = true_at(take(candidates.low, own) >= tau)
    truth, own = take(truth, steady), take(own, steady)
    boxes = take(candidates.clean_boxes.clamp(0, size), take(candidates.boxes.place, own))
    matched = true_at(iou_of_corners(boxes, take(truths.box, truth)) >= iou)
    return Matches(take(truth, matched), take(own, matched))


def reasons(
    candidates: Candidates, found: Certifiers, matches: Matches, count: int, iou: float, tau: float
) -> Tensor:
    """The index in REASONS at which each of `count` objects fails, −1 where it is certified.

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
    enough = (found.low >= tau) & (found.box >= iou)
    passed = [
        (matches.truth, clean),
        (matches.truth, clean & steady),
        (found.truth, enough),
        (found.truth, enough & (found.kept >= iou)),
        (found.truth, enough & (found.kept >= iou) & found.fits),
        (found.truth, enough & found.certify(iou)),
    ]
    reached = torch.zeros(count, dtype=torch.int64)
    for stage, (truth, mask) in enumerate(passed, start=1):
        reached[truth[mask]] = stage
    return torch.where(reached == len(passed), -1, reached)


def class_stays(
    verifier: Verifier,
    candidates: Candidates,
    matches: Matches,
    kept: Tensor,
    tau: float,
    entries: Entries,
) -> Tensor:
    """Whether a detection of each object's class stays at log-odds of τ, wherever, (G,) bool.

    By conditions 1 and 4 for an anchor that matches the object without perturbation: it is kept or
    suppressed by a higher one of its class, and neither can be cut off.

    Args:
        verifier: of the detector.
        candidates: all.
        matches: of the G objects.
        kept: (G,) for which that is known, as those certified at τ; the others are looked at.
        tau: above the floor.
        entries: bounds on the detections.
    """
    steady = take(candidates.low, matches.candidate) >= tau
    open_ = true_at(steady & ~take(kept, matches.truth))
    truth, own = take(matches.truth, open_), take(matches.candidate, open_)
    group, low = take(candidates.group, own), take(candidates.low, own)
    fit = not_truncated(candidates, group, low, verifier.selection.top_k, entries)
    return kept.index_fill(0, truth[fit], True)


def box_stays(
    verifier: Verifier,
    candidates: Candidates,
    truths: Truths,
    epsilon: Tensor,
    iou: float,
    kept: Tensor,
    tau: float,
    entries: Entries,
) -> Tensor:
    """Whether a detection of *some* class stays on each object at log-odds of τ, (G,) bool.

    By conditions 1 to 4 for each class in turn. What stays on an object matches it without
    perturbation, too, so that classes without such a candidate are left out.

    Args:
        verifier: of the detector.
        candidates: all.
        truths: the G objects.
        epsilon: (B,).
        iou: threshold of a match.
        kept: see `class_stays`.
        tau: above the floor.
        entries: bounds on the detections.
    """
    open_, classes = true_at(~kept), candidates.classes
    every = free_truths(
        truths.image[open_].repeat_interleave(classes),
        torch.arange(classes).repeat(len(open_)),
        truths.box[open_].repeat_interleave(classes, dim=0),
    )
    matches = clean_matches(candidates, every, verifier.decoder.image_size, iou, tau)
    hopeful = torch.unique(matches.truth)
    found = verifier.certifiers(candidates, every.at(hopeful), epsilon, iou, entries)
    stays = certified_up_to(found, len(hopeful), [iou]).squeeze(1) >= tau
    return kept.index_fill(0, open_[hopeful[stays] // classes], True)
