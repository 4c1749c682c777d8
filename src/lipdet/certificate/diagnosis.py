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

from lipdet.boxes.scores import logit
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
    candidates: Candidates, truths: Truths, size: int, iou: float, above: Tensor | None = None
) -> Matches:
    """Find the candidates whose box, without perturbation, has at least this IoU with an object.

    Args:
        candidates: all.
        truths: G objects.
        size: of the image.
        iou: threshold of a match.
        above: (G,) only candidates whose lowest log-odds are more are looked at.
    """
    group = truths.image * candidates.classes + truths.label
    truth, own = expand(candidates.starts(group), candidates.members(group))
    if above is not None:
        better = true_at(take(candidates.low, own) > take(above, truth))
        truth, own = take(truth, better), take(own, better)
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
    verifier: Verifier, candidates: Candidates, matches: Matches, known: Tensor, entries: Entries
) -> Tensor:
    """The highest log-odds at which a detection of each object's class stays, wherever, (G,).

    By conditions 1 and 4 for an anchor that matches the object without perturbation: it is kept or
    suppressed by a higher one of its class, and neither can be cut off.

    Args:
        verifier: of the detector.
        candidates: all.
        matches: of the G objects.
        known: (G,) a lower bound of the result, such as what is certified; only more is sought.
        entries: bounds on the detections.
    """
    low = take(candidates.low, matches.candidate)
    better = true_at(low > take(_at_least_the_floor(verifier, known), matches.truth))
    truth, own, low = (take(x, better) for x in (*matches, low))
    group = take(candidates.group, own)
    fit = not_truncated(candidates, group, low, verifier.selection.top_k, entries)
    return known.scatter_reduce(0, truth[fit], low[fit], "amax")


def box_stays(
    verifier: Verifier,
    candidates: Candidates,
    truths: Truths,
    epsilon: Tensor,
    iou: float,
    known: Tensor,
    entries: Entries,
) -> Tensor:
    """The highest log-odds at which a detection of *some* class stays on each object, (G,).

    By conditions 1 to 4 for each class in turn. What stays matches without perturbation, too, so
    only such candidates are looked at.

    Args:
        verifier: of the detector.
        candidates: all.
        truths: the G objects.
        epsilon: (B,).
        iou: threshold of a match.
        known: see `class_stays`.
        entries: bounds on the detections.
    """
    count, classes = len(truths.image), candidates.classes
    every = free_truths(
        truths.image.repeat_interleave(classes),
        torch.arange(classes).repeat(count),
        truths.box.repeat_interleave(classes, dim=0),
    )
    above = _at_least_the_floor(verifier, known).repeat_interleave(classes)
    size = verifier.decoder.image_size
    open_ = torch.unique(clean_matches(candidates, every, size, iou, above).truth)
    found = verifier.certifiers(candidates, every.at(open_), epsilon, iou, entries)
    reached = certified_up_to(found, len(open_), [iou]).squeeze(1)
    return known.scatter_reduce(0, open_ // classes, reached, "amax")


def _at_least_the_floor(verifier: Verifier, known: Tensor) -> Tensor:
    """What the lowest log-odds must exceed, by condition 1 and to improve on what is known."""
    return known.clamp(min=logit(verifier.selection.score_floor))
