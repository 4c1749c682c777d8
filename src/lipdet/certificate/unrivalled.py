"""Which certifiers no box beats at its place, where boxes of all classes compete for one.

What is shown of a picture has one reading for each place: of two boxes, one of which covers more
than a share of the other, the one with the higher score (`lipdet.reading`). Certificates of a
detection in a picture have to survive that, too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipdet.boxes.scores import SigmoidScores
from lipdet.certificate.box_range import BoxRange, corner_range
from lipdet.certificate.candidates import Candidates
from lipdet.certificate.certify import Certifiers
from lipdet.certificate.conditions import outscores
from lipdet.certificate.segments import true_at
from lipdet.certificate.verifier import Verifier

# Of a share: it is computed in float32 from boxes that are off by 1e-4 pixels.
COVER_SLACK = 1e-3


def unrivalled(
    verifier: Verifier,
    candidates: Candidates,
    found: Certifiers,
    epsilon: Tensor,
    iou: float,
    most_covered: float,
) -> Tensor:
    """Whether the detection that a certifier vouches for stays the one that is shown, (P,) bool.

    Let M be the candidates of the object's class that surely match it. A certifier passes if no
    candidate outside of M, of any class, can both outscore it and cover a box of M, or be covered
    by one, by more than `most_covered`.

    *Proof.* By conditions 1 to 4 some d of M is put out, with at least the certifier's score. If it
    is not shown, a box b that is shown beats it: b scores at least as much as d, hence as the
    certifier, and one of b and d covers the other. So b is in M: it is of the class and matches.

    Args:
        verifier: of the detector, without `overtaking`, by which what does not surely match may
            stand in for a certifier.
        candidates: of images with one object each.
        found: their certifiers.
        epsilon: (B,) of each image.
        iou: threshold of a match.
        most_covered: the share.
    """
    passed = torch.zeros(len(found.truth), dtype=torch.bool)
    size = verifier.decoder.image_size
    matching = found.pairs.iou >= iou
    vouches = found.certify(iou)
    for image in torch.unique(found.truth[vouches]).tolist():
        vouching = true_at(vouches & (found.truth == image))
        own = found.candidate[vouching]
        mates = found.pairs.candidate[matching & (found.pairs.truth == image)]
        others = true_at(candidates.group // candidates.classes == image)
        others = others[candidates.high[others] >= candidates.low[own].min()]
        others = others[~torch.isin(others, mates)]
        shares = most_covering(candidates.boxes.at(others), candidates.boxes.at(mates), size)
        others = others[~(shares <= most_covered - COVER_SLACK).all(dim=1)]
        beaten = _can_outscore(verifier, candidates, others, own, float(epsilon[image]))
        passed[vouching] = ~beaten.any(dim=0)
    return passed


def most_covering(a: BoxRange, b: BoxRange, size: int) -> Tensor:
    """Return the largest share of one box that another can cover, of all pairs of uncertain boxes.

    The box that covers is taken at its largest. Of the one that is covered, each side lies as near
    to the other's as it can: beyond it, what moves inward loses only what is not covered; within
    it, what moves outward gains only what is.

    Args:
        a: (N, 4), clipped to the image.
        b: (M, 4), clipped to the image.
        size: side of the image.

    Returns:
        (N, M) float64, the larger of the shares of both.
    """
    one = [end[:, None] for end in corner_range(a, size)]
    other = [end[None] for end in corner_range(b, size)]
    return torch.maximum(_covered(one, other), _covered(other, one))


def _covered(box: list[Tensor], cover: list[Tensor]) -> Tensor:
    (low, high), (first, last) = box, (cover[0][..., :2], cover[1][..., 2:])
    start = torch.minimum(torch.maximum(first, low[..., :2]), high[..., :2])
    end = torch.minimum(torch.maximum(last, low[..., 2:]), high[..., 2:])
    shared = (torch.minimum(end, last) - torch.maximum(start, first)).clamp(min=0)
    # A box without area is covered by whatever it touches.
    touches = (low[..., :2] <= last) & (high[..., 2:] >= first)
    side = end - start
    return torch.where(side > 0, shared / side.clamp(min=1e-12), touches.double()).prod(dim=-1)


def _can_outscore(
    verifier: Verifier, candidates: Candidates, others: Tensor, own: Tensor, epsilon: float
) -> Tensor:
    """Return whether each of `others` (R,) can rank before each of `own` (P,), (R, P) bool.

    Two classes of one default box are linear in the same features: their difference has a constant.
    """
    high, low = candidates.high[others][:, None], candidates.low[own]
    scores, contrasts = verifier.decoder.scores, verifier.contrasts
    if contrasts is None or not isinstance(scores, SigmoidScores):
        return outscores(high, low)
    anchor, classes = candidates.anchor, candidates.classes
    known = contrasts[
        anchor[own], (candidates.group[others] % classes)[:, None], candidates.group[own] % classes
    ]
    slack = candidates.slack[others][:, None] + candidates.slack[own]
    reach = scores.temperature * epsilon * known + slack
    reach = reach.masked_fill(anchor[others][:, None] != anchor[own], torch.inf)
    difference = candidates.log_odds[others][:, None] - candidates.log_odds[own]
    return outscores(high, low, difference, reach)
