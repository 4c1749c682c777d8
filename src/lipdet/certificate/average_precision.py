"""Certified average precision from certified objects and bounds on detections (theory §6).

Notable choices:
- The thresholds looked at are the scores at which objects are certified: between two of them the
  certified objects are the same, and the higher one has fewer detections.
- COCO ranks displayed scores, float64 sigmoids. Above log-odds of SATURATION they differ too
  little to rank by, so what is certified beyond counts as certified there.
- The mean over the 101 recalls of COCO, not the area under the curve, which can be larger.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

SATURATION = 20.0
# Sigmoids of log-odds that differ by more are different numbers, up to SATURATION.
RANKING_SLACK = 1e-6
# As COCO computes them: these differ from torch's in the last place.
RECALLS = torch.from_numpy(np.linspace(0.0, 1.0, 101))


class Objects(NamedTuple):
    """What is known of the objects of one class at one IoU threshold, (n,) log-odds each.

    Attributes:
        certified: up to which each is certified, −∞ if it is not.
        first: at τ ≤ first, and above `last`, it claims a clique (`lipdet.certificate.claims`).
        last: see `first`.
    """

    certified: Tensor
    first: Tensor
    last: Tensor


class Possible(NamedTuple):
    """Log-odds from which on downward one more detection of a class is possible, all images pooled.

    Attributes:
        detections: (m,) by all bounds.
        cliques: (l,) by cliques alone.
    """

    detections: Tensor
    cliques: Tensor


def certified_average_precision(objects: Objects, possible: Possible) -> float:
    """Return a lower bound of the AP of one class at one IoU threshold under every perturbation.

    At every τ at least TP⁻ of N objects are found, with at most FP⁺ false positives, and the
    detections of score ≥ τ are the first ones of COCO's ranking: recall TP⁻/N and precision
    TP⁻/(TP⁻ + FP⁺) or more are on the curve. COCO's precision at recall r is the highest at any
    recall ≥ r.

    Args:
        objects: N > 0 of them.
        possible: detections.
    """
    reached = objects.certified[objects.certified > -torch.inf].clamp(max=SATURATION)
    thresholds = torch.unique(reached)
    if len(thresholds) == 0:
        return 0.0
    found = at_least(reached, thresholds)
    precision = found / (found + false_positives(objects, possible, thresholds))
    # Thresholds rise, so recall falls: the best precision at this recall or more is among the first
    # ones up to it.
    best = precision.cummax(0).values
    recall = found / len(objects.certified)
    index = torch.searchsorted(-recall, -RECALLS, right=True) - 1
    return float(torch.where(index >= 0, best[index.clamp(min=0)], 0.0).mean())


def false_positives(objects: Objects, possible: Possible, thresholds: Tensor) -> Tensor:
    """FP⁺: at most how many detections of a score ≥ τ are matched with no object, (n,) float64.

    *Proof.* Of an image, let A be the objects that are certified at τ or claim a clique of which a
    detection of score ≥ τ is put out, and B the others that claim one. All of A are found, each by
    a detection of its own. The cliques that B claim are distinct (`lipdet.certificate.claims`), and
    hold no detection. If some object claims a clique, all cliques are counted, so there are at most
    (cliques − |B|) detections, of which |A| are matched: at most cliques − |A ∪ B| are not. If none
    does, B is empty, and where not all cliques are counted, more are than there are detections.
    Claims and cliques are looked at slightly below τ, where there are no fewer false positives.
    Another bound is D⁺ − TP⁻.
    """
    lowest = thresholds - RANKING_SLACK
    claimed = (objects.last[:, None] < lowest) & (lowest <= objects.first[:, None])
    certified = objects.certified.clamp(max=SATURATION)[:, None] >= thresholds
    by_claims = at_least(possible.cliques, lowest) - (claimed | certified).sum(dim=0)
    return torch.minimum(by_claims, at_least(possible.detections, lowest) - certified.sum(dim=0))


def at_least(values: Tensor, thresholds: Tensor) -> Tensor:
    """Return how many of `values` (m,) are ≥ each threshold (n,), (n,) float64."""
    rising = values.sort().values
    return (len(values) - torch.searchsorted(rising, thresholds)).double()
