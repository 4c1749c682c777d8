"""How much a class is preferred: offsets of its logits, chosen on held-out pictures.

A training weighs rare classes up, so that they are found, and then shows too much of them. An
offset is a bias: it costs no Lipschitz constant.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lipdet.segmenter.network import Segmenter

# Offsets that are tried for a class, and how often each class has its turn.
TRIED, ROUNDS = 65, 2


def choose_offsets(logits: Tensor, labels: Tensor) -> Tensor:
    """Return offsets (K,) of classes with a high mean IoU; that of the first class is 0.

    One class after the other takes the best of TRIED offsets, among them the one it has.

    Args:
        logits: (N, K) of labelled pixels.
        labels: (N,) int64 of the same.
    """
    offsets = torch.zeros(logits.shape[1], dtype=logits.dtype)
    for label in [*range(1, logits.shape[1])] * ROUNDS:
        others = (logits + offsets).index_fill(1, torch.tensor([label]), -torch.inf)
        # What the logit of the class lacks at each pixel.
        lacking = others.amax(dim=1) - logits[:, label]
        levels = np.quantile(lacking.numpy(), np.linspace(0, 1, TRIED))
        tried = [float(offsets[label]), *levels.tolist()]
        offsets[label] = max(tried, key=lambda one: _mean_iou(others, lacking < one, label, labels))
    return offsets


def add_offsets(segmenter: Segmenter, offsets: Tensor) -> None:
    """Add offsets (K,) to the logits of the classes, in place."""
    bias = segmenter.head.bias
    assert isinstance(bias, Tensor)
    with torch.no_grad():
        bias.view(len(offsets), -1).add_(offsets[:, None].to(bias))


def _mean_iou(others: Tensor, becomes: Tensor, label: int, labels: Tensor) -> float:
    """Return the mean IoU if some pixels (N,) have a class, and the rest the best other one."""
    shown, classes = others.argmax(dim=1).masked_fill(becomes, label), others.shape[1]
    counts = torch.bincount(labels * classes + shown, minlength=classes**2)
    counts = counts.reshape(classes, classes).double()
    right = counts.diagonal()
    union = counts.sum(dim=0) + counts.sum(dim=1) - right
    return float((right[union > 0] / union[union > 0]).mean())
