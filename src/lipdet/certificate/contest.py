"""For which classes default boxes vote, whatever the perturbation, and for which they may.

A box votes for c if no z_j − z_c exceeds the margin between classes. So it surely does if none can,
and surely does not if one must.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lipdet.certificate.segments import take


class Contest(NamedTuple):
    """Logits of U default boxes, and how far they can move.

    Attributes:
        logits: (U, K) float64 without perturbation.
        moved: (U, K) how far each can move, numerics included.
        slack: (U,) what numerics alone can change of a difference.
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
        """Whether boxes `place` (N,) can vote for classes `label` (N,); bool. What is NaN can.

        Only the class that is the best one without perturbation is looked at: for another to rule
        out the vote, where it does not, is rare.
        """
        best, winner = self.logits.max(dim=1)
        winner = take(winner, place)
        ahead = take(best, place) - self._at(self.logits, place, label)
        apart = self._at(self.moved, place, label) + self._at(self.moved, place, winner)
        if self.contrasts is not None:
            classes = self.logits.shape[1]
            row = (take(self.anchor, place) * classes + label) * classes + winner
            known = take(self.contrasts.flatten(), row) * take(self.epsilon, place)
            apart = torch.minimum(apart, known + take(self.slack, place))
        return ~(ahead - apart > margin)

    def surely_votes(self, place: Tensor, label: Tensor, margin: float) -> Tensor:
        """Whether boxes `place` (N,) vote for classes `label` (N,) under every perturbation."""
        own = label[:, None]
        logits, moved = take(self.logits, place), take(self.moved, place)
        ahead, apart = logits - logits.gather(1, own), moved + moved.gather(1, own)
        if self.contrasts is not None:
            known = self.contrasts[take(self.anchor, place), label]
            known = known * take(self.epsilon, place)[:, None] + take(self.slack, place)[:, None]
            apart = torch.minimum(apart, known)
        # Its own logit is never ahead.
        return (ahead + apart < margin).scatter(1, own, value=True).all(dim=1)

    @staticmethod
    def _at(values: Tensor, place: Tensor, label: Tensor) -> Tensor:
        return take(values.flatten(), place * values.shape[1] + label)
