"""Why an object is not certified, and what weaker promises hold for it.

Notable choices:
- Anchors are judged one after the other condition, so an object fails at the condition that the
  anchor which gets furthest fails at.
- An object that is not detected without perturbation either is "missed": no certificate lost it.
"""

from __future__ import annotations

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


def clean_matches(candidates: Candidates, truths: Truths, size: int, iou: float) -> Matches:
    """Find the candidates whose box, without perturbation, has at least this IoU with an object."""
    group = truths.image * candidates.classes + truths.label
    truth, own = expand(candidates.starts(group), candidates.members(group))
    matched = true_at(_clean_iou(candidates, truths, truth, own, size) >= iou)
    return Matches(take(truth, matched), take(own, matched))


def _clean_iou(
    candidates: Candidates, truths: Truths, truth: Tensor, own: Tensor, size: int
) -> Tensor:
    """IoU of pairs (P,) of an object and a candidate without perturbation."""
    boxes = take(candidates.clean_boxes.clamp(0, size), take(candidates.boxes.place, own))
    return iou_of_corners(boxes, take(truths.box, truth))


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
    open_ = true_at(~kept)
    size = verifier.decoder.image_size
    truth, label = _hopeful_classes(candidates, truths.at(open_), size, iou, tau)
    of_classes = free_truths(truths.image[open_[truth]], label, truths.box[open_[truth]])
    found = verifier.certifiers(candidates, of_classes, epsilon, iou, entries)
    stays = certified_up_to(found, len(truth), [iou]).squeeze(1) >= tau
    return kept.index_fill(0, open_[truth[stays]], True)


def _hopeful_classes(
    candidates: Candidates, truths: Truths, size: int, iou: float, tau: float
) -> tuple[Tensor, Tensor]:
    """Objects and classes of which a candidate with at least τ at its lowest matches the object."""
    steady = true_at(candidates.low >= tau)
    group = take(candidates.group, steady)
    image, label = group // candidates.classes, group % candidates.classes
    starts = torch.searchsorted(truths.image, image)
    pair, truth = expand(starts, torch.searchsorted(truths.image, image, right=True) - starts)
    matched = _clean_iou(candidates, truths, truth, take(steady, pair), size) >= iou
    found = torch.unique(truth[matched] * candidates.classes + label[pair[matched]])
    return found // candidates.classes, found % candidates.classes
