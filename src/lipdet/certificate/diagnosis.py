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
from lipdet.certificate.segments import expand, take
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
    boxes = take(candidates.clean_boxes.clamp(0, size), candidates.boxes.place[own])
    matched = iou_of_corners(boxes, truths.box[truth]) >= iou
    return Matches(truth[matched], own[matched])


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
    verifier: Verifier, candidates: Candidates, matches: Matches, count: int, entries: Entries
) -> Tensor:
    """The highest log-odds at which a detection of each object's class stays, wherever, (count,).

    By conditions 1 and 4 for an anchor that matches the object without perturbation: it is kept or
    suppressed by a higher one of its class, and neither can be cut off.
    """
    group, low = candidates.group[matches.candidate], candidates.low[matches.candidate]
    fit = not_truncated(candidates, group, low, verifier.selection.top_k, entries)
    none = torch.full((count,), -torch.inf, dtype=torch.float64)
    return none.scatter_reduce(0, matches.truth[fit], low[fit], "amax")


def box_stays(
    verifier: Verifier,
    candidates: Candidates,
    truths: Truths,
    epsilon: Tensor,
    iou: float,
    entries: Entries,
) -> Tensor:
    """The highest log-odds at which a detection of *some* class stays on each object, (G,).

    By conditions 1 to 4 for each class in turn.
    """
    count, classes = len(truths.image), candidates.classes
    every = free_truths(
        truths.image.repeat_interleave(classes),
        torch.arange(classes).repeat(count),
        truths.box.repeat_interleave(classes, dim=0),
    )
    found = verifier.certifiers(candidates, every, epsilon, iou, entries)
    return certified_up_to(found, count * classes, [iou]).reshape(count, classes).amax(dim=1)
