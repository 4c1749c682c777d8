"""All log-odds that uncertain logits can have, as intervals."""

from __future__ import annotations

import math

from torch import Tensor

from lipdet.boxes.scores import Scores, SigmoidScores, SoftmaxScores


def log_odds_interval(scores: Scores, logits: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lowest and highest log-odds of logits that each move by at most `moved`.

    One-vs-all log-odds rise with their own logit alone. A softmax's is z_c − logsumexp_{j≠c} z_j:
    lowest with z_c at its lowest and all others at their highest. The log-odds at the highest of
    *all* logits differs from that in z_c alone, by 2 · moved. Where a number is too large for the
    precision, ∞ − ∞ may come out, which says nothing: the ends are then −∞ and ∞.

    Args:
        scores: how logits become log-odds.
        logits: (..., K).
        moved: (..., K) ≥ 0.

    Returns:
        Two tensors (..., classes).
    """
    if isinstance(scores, SigmoidScores):
        low, high = scores.log_odds(logits - moved), scores.log_odds(logits + moved)
    else:
        assert isinstance(scores, SoftmaxScores)
        own = 2 * moved[..., 1:]
        low = scores.log_odds(logits + moved) - own
        high = scores.log_odds(logits - moved) + own
    return widest(low, high)


def widest(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Ends of intervals, −∞ and ∞ for those that are no numbers."""
    return low.masked_fill(low.isnan(), -math.inf), high.masked_fill(high.isnan(), math.inf)


def largest_factor(scores: Scores) -> float:
    """Return how much a log-odds can move if no logit moves by more than 1."""
    return scores.temperature if isinstance(scores, SigmoidScores) else 2.0
