"""The loss of a segmenter: cross entropy of every labelled pixel, with a margin."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from lipdet.types import IGNORED

# Exponent of class weights: 0 weighs all pixels alike, 1 all classes. Between them rare classes are
# found, and borders still follow the frequent ones.
EVENING = 0.5


class PixelLoss(NamedTuple):
    """The mean over the labelled pixels of a batch, weighted by class."""

    total: Tensor

    @property
    def parts(self) -> dict[str, Tensor]:
        """Return what the log shows besides the total."""
        return {}

    def with_means(self, means: Tensor) -> PixelLoss:
        """Return the loss of a larger batch, whose mean (1,) is known."""
        return PixelLoss(means[0])


def class_weights(counts: Tensor) -> Tensor:
    """Return the weight of each class in the loss, of mean 1 over all pixels.

    Args:
        counts: (K,) labelled pixels of each class; one without any has weight 0.
    """
    shares = counts.double() / counts.sum()
    weights = shares.clamp_min(1e-300) ** -EVENING * (shares > 0)
    return (weights / (weights * shares).sum()).float()


def pixel_loss(
    logits: Tensor, masks: Tensor, weights: Tensor, temperature: float, margin: float = 0.0
) -> PixelLoss:
    """Return the weighted cross entropy of softmax(temperature · logits), in float32.

    Args:
        logits: (B, K, H, W).
        masks: (B, H, W) uint8 classes, or IGNORED.
        weights: (K,) of each class.
        temperature: what a logit is multiplied by.
        margin: ε whose worst case is counted: before the loss is taken, the logit of a pixel's own
            class is lowered by √2·ε, which is what two 1-Lipschitz logits of orthogonal filters can
            lose to each other.
    """
    labels = masks.long()
    own = functional.one_hot(labels.where(labels != IGNORED, 0), logits.shape[1])
    moved = temperature * (logits.float() - math.sqrt(2) * margin * own.permute(0, 3, 1, 2))
    sums = functional.cross_entropy(moved, labels, weights, ignore_index=IGNORED, reduction="sum")
    return PixelLoss(sums / labelled_weight(masks, weights).clamp_min(1))


def labelled_weight(masks: Tensor, weights: Tensor) -> Tensor:
    """Return the sum of the weights (K,) of the labelled pixels of masks (B, H, W)."""
    counts = torch.bincount(masks.flatten().long(), minlength=IGNORED + 1)
    return counts[: len(weights)].float() @ weights
