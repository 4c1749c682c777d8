"""Log-odds that uncertain logits can have, and classes that default boxes vote for (theory §10)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lipdet.boxes.scores import Scores, SigmoidScores, SoftmaxScores
from lipdet.certificate.ragged import pick, take


def log_odds_interval(scores: Scores, logits: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lowest and highest log-odds of logits that each move by at most `moved`.

    Those of a softmax are lowest with z_c at its lowest and all others at their highest (theory
    §10.1). The log-odds at the highest of *all* logits differs from that in z_c alone, by
    2 · moved. Where a number is too large for the precision, ∞ − ∞ may come out, which says
    nothing: the ends are then −∞ and ∞.

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
    """Replace ends of intervals that are no numbers by −∞ and ∞."""
    return low.masked_fill(low.isnan(), -math.inf), high.masked_fill(high.isnan(), math.inf)


def largest_factor(scores: Scores) -> float:
    """Return how much a log-odds can move if no logit moves by more than 1."""
    return scores.temperature if isinstance(scores, SigmoidScores) else 2.0


class ClassVotes(NamedTuple):
    """For which classes U default boxes vote: their logits, and how far they can move.

    Attributes:
        logits: (U, K) float64 without perturbation.
        moved: (U, K) how far each can move, rounding included.
        slack: (U,) what rounding alone can change of a difference.
        anchor: (U,) index of the default box.
        epsilon: (U,) of its image.
        contrasts: (A, K, K) constants of differences of two logits of a default box, if known.
    """

    logits: Tensor
    moved: Tensor
    slack: Tensor
    anchor: Tensor
    epsilon: Tensor
    contrasts: Tensor | None

    def may_vote(self, place: Tensor, label: Tensor, margin: float) -> Tensor:
        """Return whether boxes `place` (N,) can vote for classes `label` (N,). What is NaN can.

        Only the class that is the best one without perturbation is looked at: for another to rule
        out the vote, where it does not, is rare.
        """
        best, winner = self.logits.max(dim=1)
        winner = take(winner, place)
        ahead = take(best, place) - pick(self.logits, place, label)
        apart = pick(self.moved, place, label) + pick(self.moved, place, winner)
        if self.contrasts is not None:
            classes = self.logits.shape[1]
            row = (take(self.anchor, place) * classes + label) * classes + winner
            known = take(self.contrasts.flatten(), row) * take(self.epsilon, place)
            apart = torch.minimum(apart, known + take(self.slack, place))
        return ~(ahead - apart > margin)

    def surely_votes(self, place: Tensor, label: Tensor, margin: float) -> Tensor:
        """Return whether boxes `place` (N,) vote for `label` (N,) under every perturbation."""
        own = label[:, None]
        logits, moved = take(self.logits, place), take(self.moved, place)
        ahead, apart = logits - logits.gather(1, own), moved + moved.gather(1, own)
        if self.contrasts is not None:
            known = self.contrasts[take(self.anchor, place), label]
            known = known * take(self.epsilon, place)[:, None] + take(self.slack, place)[:, None]
            apart = torch.minimum(apart, known)
        # Its own logit is never ahead.
        return (ahead + apart < margin).scatter(1, own, value=True).all(dim=1)
