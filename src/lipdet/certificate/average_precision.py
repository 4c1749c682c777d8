"""Certified average precision from certified objects and bounds on detections (THEORY §6).

Notable choices:
- The thresholds looked at are the scores at which objects are certified: between two of them the
  certified objects are the same, and the higher one has fewer detections.
- COCO ranks displayed scores, float64 sigmoids. Above log-odds of SATURATION they differ too
  little to rank by, so what is certified beyond counts as certified there.
- The mean over the 101 recalls of COCO, not the area under the curve, which can be larger.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SATURATION = 20.0
# Sigmoids of log-odds that differ by more are different numbers, up to SATURATION.
RANKING_SLACK = 1e-6
# As COCO computes them: these differ from torch's in the last place.
RECALLS = torch.from_numpy(np.linspace(0.0, 1.0, 101))


def certified_average_precision(certified: Tensor, entries: Tensor, objects: int) -> float:
    """A lower bound of the AP of one class at one IoU threshold under every perturbation.

    At every τ at least TP⁻ of N objects are found, by at most D⁺ detections, and those of score ≥ τ
    are the first ones of COCO's ranking: recall TP⁻/N and precision TP⁻/D⁺ or more are on the
    curve. COCO's precision at recall r is the highest at any recall ≥ r.

    Args:
        certified: (n,) up to which log-odds each object is certified, −∞ if it is not.
        entries: (m,) log-odds from which on downward one more detection is possible, pooled over
            all images.
        objects: N > 0.
    """
    reached = certified[certified > -torch.inf].clamp(max=SATURATION)
    thresholds = torch.unique(reached)
    if len(thresholds) == 0:
        return 0.0
    found = at_least(reached, thresholds)
    precision = found / at_least(entries, thresholds - RANKING_SLACK)
    # Thresholds rise, so recall falls: the best precision at this recall or more is among the first
    # ones up to it.
    best = precision.cummax(0).values
    recall = found / objects
    index = torch.searchsorted(-recall, -RECALLS, right=True) - 1
    return float(torch.where(index >= 0, best[index.clamp(min=0)], 0.0).mean())


def at_least(values: Tensor, thresholds: Tensor) -> Tensor:
    """How many of `values` (m,) are ≥ each threshold (n,), (n,) float64."""
    rising = values.sort().values
    return (len(values) - torch.searchsorted(rising, thresholds)).double()
