"""Shift the class logits of a one-vs-all detector so that its scores mean what they say.

A loss with a margin moves every logit against its label; as most default boxes hold nothing, the
logits of objects end up far below zero and, with them, below any floor on scores. One shift of all
of them undoes that. It changes no ranking, no difference of logits and no Lipschitz constant.

The shift is the maximum-likelihood one of Platt scaling (Platt, 1999) with its slope kept: the
scores then add up to the number of objects' default boxes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor

from lipdet.boxes import SigmoidScores
from lipdet.boxes.coding import corners
from lipdet.detector.matching import POSITIVE_IOU, PaddedTargets, match, no_negatives
from lipdet.detector.ssd import SSD, Head

LARGEST_SHIFT = 16.0
BISECTIONS = 40


@torch.no_grad()
def calibrated(
    detector: SSD,
    batches: Iterable[tuple[Tensor, PaddedTargets]],
    near_iou: float = POSITIVE_IOU,
) -> SSD:
    """Return a copy of a detector with shifted class biases; a softmax detector is copied as it is.

    Args:
        detector: in eval mode.
        batches: images (B, 3, H, W) and their objects, held out from training.
        near_iou: as in training; a box near an object, or in an ignored area, does not count for
            that class.
    """
    shifted = copy.deepcopy(detector)
    if isinstance(detector.scores, SigmoidScores):
        logits, positives = [], 0
        for images, targets in batches:
            found = detector(images).logits.double()
            boxes = corners(detector.default_boxes)
            matches = match(boxes, targets, near_iou)
            open_ = no_negatives(boxes, targets, matches, found.shape[-1])
            logits.append(found[~open_ | matches.positive.unsqueeze(-1)])
            positives += int(matches.positive.sum())
        shift = calibration_shift(torch.cat(logits), positives, detector.scores.temperature)
        for head in shifted.heads:
            assert isinstance(head, Head)
            bias = head.classification.bias
            assert isinstance(bias, Tensor)
            bias += shift
    return shifted


def calibration_shift(logits: Tensor, positives: int, temperature: float) -> float:
    """Return the shift b for which σ(T·(z + b)) adds up to the number of positives.

    That is where the derivative of the log-likelihood in b vanishes.

    Args:
        logits: (N,) of all default boxes and classes.
        positives: how many of these N are right.
        temperature: T.
    """
    low, high = -LARGEST_SHIFT, LARGEST_SHIFT
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        expected = float(torch.sigmoid(temperature * (logits + middle)).sum())
        low, high = (middle, high) if expected < positives else (low, middle)
    return (low + high) / 2
