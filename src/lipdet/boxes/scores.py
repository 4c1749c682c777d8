"""Class scores whose ranking does not saturate.

A float32 softmax or sigmoid is exactly 1.0 for log-odds of 18 and of 30 alike, so detections are
ranked on log-odds and probabilities are for display (theory §5).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
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


class Scores(ABC):
    """A way from class logits to scores; a score is `sigmoid(log_odds)`."""

    @abstractmethod
    def log_odds(self, logits: Tensor) -> Tensor:
        """Map logits (..., K) to log-odds (..., classes); differentiable, in their precision."""

    def votes(self, log_odds: Tensor) -> Tensor:
        """Return log-odds (..., classes) with −∞ where a default box does not vote for a class."""
        return log_odds

    def candidates(self, logits: Tensor, score_floor: float) -> Candidates:
        """Find every (anchor, class) with a vote whose score exceeds the floor.

        Args:
            logits: (A, K) of one image.
            score_floor: probability in (0, 1).
        """
        log_odds = self.votes(self.log_odds(logits.float()))
        anchors, labels = torch.nonzero(log_odds > logit(score_floor), as_tuple=True)
        return Candidates(anchors, labels, log_odds[anchors, labels])


@dataclass(frozen=True)
class SoftmaxScores(Scores):
    """Softmax over K = classes + 1 logits, background first."""

    def log_odds(self, logits: Tensor) -> Tensor:
        """Return the class's logit minus the log-sum-exp of all others, background included.

        The log-sum-exp is taken anew where the class is the largest; elsewhere the others hold the
        largest, and its own share is subtracted from the sum without cancellation.
        """
        largest, winners = logits.max(dim=-1, keepdim=True)
        shares = torch.exp(logits - largest)
        others = (shares.sum(dim=-1, keepdim=True) - shares).clamp(min=1.0).log() + largest
        without_winner = logits.scatter(-1, winners, -math.inf).logsumexp(dim=-1, keepdim=True)
        return (logits - others.scatter(-1, winners, without_winner))[..., 1:]


@dataclass(frozen=True)
class SigmoidScores(Scores):
    """One-vs-all: K = classes logits, each with a sigmoid of its own at a common temperature.

    Attributes:
        temperature: what logits are multiplied by. It changes what scores look like, not their
            order, and stands outside of every Lipschitz constant of logits.
        class_margin: a default box votes for no class whose logit lies further below that of its
            best class. Such a class mostly stands on an object of the best one, as a false
            positive. With 0 the smallest perturbation decides between two that are level.
    """

    temperature: float
    class_margin: float = math.inf

    def log_odds(self, logits: Tensor) -> Tensor:
        """Return temperature times logit."""
        return self.temperature * logits

    def votes(self, log_odds: Tensor) -> Tensor:
        """Put −∞ where a class lies more than `class_margin` below the best of its default box."""
        if math.isinf(self.class_margin):
            return log_odds
        least = log_odds.amax(dim=-1, keepdim=True) - self.temperature * self.class_margin
        return torch.where(log_odds < least, -math.inf, log_odds)


def logit(probability: float) -> float:
    """Return the log-odds of a probability in (0, 1)."""
    return math.log(probability) - math.log1p(-probability)
