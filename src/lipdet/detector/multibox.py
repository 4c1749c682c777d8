"""The multibox loss: classification with hard negatives, localisation on positives."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from lipdet.boxes.coding import BoxCoding, corners
from lipdet.detector.matching import PaddedTargets, match
from lipdet.types import RawOutput

NEGATIVES_PER_POSITIVE = 3
LOCALISATION_WEIGHT = 2.0


class MultiboxLoss(NamedTuple):
    """The two parts, each a mean over the positives of the batch; `total` is what is minimised."""

    classification: Tensor
    localisation: Tensor

    @property
    def total(self) -> Tensor:
        """Classification + α · localisation, α = 2 as in the reference experiment."""
        return self.classification + LOCALISATION_WEIGHT * self.localisation


def multibox_loss(
    raw: RawOutput, targets: PaddedTargets, default_boxes: Tensor, coding: BoxCoding
) -> MultiboxLoss:
    """SSD loss (Liu et al., 2016, §2.2), in float32 whatever the precision of `raw`.

    Per image the negatives with the highest loss are kept, three per positive; an image without
    objects keeps three, so that it teaches what background is.

    Args:
        raw: logits (B, A, classes + 1), background first; offsets (B, A, 4).
        targets: objects of the B images, in pixels.
        default_boxes: (A, 4) cx, cy, w, h in pixels.
        coding: how offsets relate to default boxes.
    """
    matches = match(corners(default_boxes), targets)
    positive = matches.positive
    wanted_labels = (targets.labels.gather(1, matches.objects) + 1).masked_fill(~positive, 0)
    logits = raw.logits.float()
    entropy = functional.cross_entropy(
        logits.flatten(0, 1), wanted_labels.flatten(), reduction="none"
    )
    entropy = entropy.view_as(wanted_labels)
    positives = positive.sum(dim=1, keepdim=True)
    negatives = NEGATIVES_PER_POSITIVE * positives.clamp(min=1)
    hardest = entropy.masked_fill(positive, 0.0).sort(dim=1, descending=True).values
    ranks = torch.arange(hardest.shape[1], device=hardest.device)
    total_positives = positives.sum().clamp(min=1)
    classification = (entropy[positive].sum() + hardest[ranks < negatives].sum()) / total_positives

    rows = torch.nonzero(positive, as_tuple=True)
    wanted_boxes = targets.boxes[rows[0], matches.objects[rows]]
    wanted_offsets = coding.encode(wanted_boxes, default_boxes[rows[1]])
    error = functional.smooth_l1_loss(raw.offsets[rows].float(), wanted_offsets, reduction="none")
    return MultiboxLoss(classification, error.mean(dim=1).sum() / total_positives)
