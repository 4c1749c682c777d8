"""Class scores whose ranking does not saturate.

A float32 softmax or sigmoid is exactly 1.0 for log-odds of 18 and of 30 alike, so detections are
ranked on log-odds and probabilities are for display (THEORY §5).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Candidates(NamedTuple):
    """Pairs (default box, class) of one image above the score floor.

    Attributes:
        anchors: (N,) int64 indices of default boxes.
        labels: (N,) int64 class indices, background not counted.
        log_odds: (N,) float32; the score is `sigmoid(log_odds)`.
    """

    anchors: Tensor
    labels: Tensor
    log_odds: Tensor


def softmax_candidates(logits: Tensor, score_floor: float) -> Candidates:
    """Every (anchor, class) whose softmax probability exceeds the floor (multi-label decoding).

    Args:
        logits: (A, classes + 1) of one image, background first.
        score_floor: probability in (0, 1).
    """
    logits = logits.float()
    log_probabilities = logits.log_softmax(dim=-1)[:, 1:]
    anchors, labels = torch.nonzero(log_probabilities > math.log(score_floor), as_tuple=True)
    rows = logits[anchors]
    own = labels.unsqueeze(1) + 1
    rivals = rows.scatter(1, own, -math.inf).logsumexp(dim=1)
    return Candidates(anchors, labels, rows.gather(1, own).squeeze(1) - rivals)
