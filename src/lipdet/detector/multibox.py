"""The multibox loss: classification with hard negatives, localisation on positives."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from lipdet.boxes import Decoder, Scores, SigmoidScores, SoftmaxScores
from lipdet.boxes.coding import corners
from lipdet.detector.matching import PaddedTargets, match
from lipdet.types import RawOutput

NEGATIVES_PER_POSITIVE = 3
# As in the reference experiment.
LOCALISATION_WEIGHT = 2.0
BACKGROUND = -1
RAMP = 0.6


class MultiboxLoss(NamedTuple):
    """The two parts, each a mean over the positives of the batch; `total` is what is minimised."""

    classification: Tensor
    localisation: Tensor
    localisation_weight: float = LOCALISATION_WEIGHT

    @property
    def total(self) -> Tensor:
        """Classification + α · localisation."""
        return self.classification + self.localisation_weight * self.localisation


def multibox_loss(
    raw: RawOutput,
    targets: PaddedTargets,
    decoder: Decoder,
    margin: float = 0.0,
    localisation_weight: float = LOCALISATION_WEIGHT,
) -> MultiboxLoss:
    """SSD loss (Liu et al., 2016, §2.2), in float32 whatever the precision of `raw`.

    Per image the negatives with the highest loss are kept, three per positive; an image without
    objects keeps three, so that it teaches what background is.

    Args:
        raw: logits (B, A, K), offsets (B, A, 4).
        targets: objects of the B images, in pixels.
        decoder: of the detector that the raw output comes from.
        margin: how far every logit is moved against its label before the loss is taken. Where
            logits are 1-Lipschitz, this is the worst that a perturbation of that norm can do.
        localisation_weight: α.
    """
    default_boxes, coding = decoder.default_boxes, decoder.coding
    matches = match(corners(default_boxes), targets)
    positive = matches.positive
    wanted_labels = targets.labels.gather(1, matches.objects).masked_fill(~positive, BACKGROUND)
    entropy = classification_loss(raw.logits.float(), wanted_labels, decoder.scores, margin)
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
    localisation = error.mean(dim=1).sum() / total_positives
    return MultiboxLoss(classification, localisation, localisation_weight)


def classification_loss(
    logits: Tensor, wanted_labels: Tensor, scores: Scores, margin: float = 0.0
) -> Tensor:
    """Cross-entropy of each default box: of the softmax, or summed over one-vs-all sigmoids.

    Args:
        logits: (B, A, K).
        wanted_labels: (B, A) int64 classes, BACKGROUND where there is no object.
        scores: how logits become scores.
        margin: as in `multibox_loss`.

    Returns:
        (B, A).
    """
    # In softmax scores background has a logit of its own, the first.
    softmax = isinstance(scores, SoftmaxScores)
    columns = torch.arange(logits.shape[-1], device=logits.device)
    wanted = columns == (wanted_labels + softmax).unsqueeze(-1)
    worst = torch.where(wanted, logits - margin, logits + margin)
    if softmax:
        return functional.cross_entropy(worst.mT, wanted_labels + 1, reduction="none")
    log_odds = scores.log_odds(worst)
    return functional.softplus(torch.where(wanted, -log_odds, log_odds)).sum(dim=-1)


def training_scores(scores: Scores, start_temperature: float, progress: float) -> Scores:
    """The scores to take the loss of at a share of the training.

    The temperature of sigmoids rises to its final value within the first RAMP of the steps: at the
    final one, gradients of wrong logits would saturate from the start.
    """
    if not isinstance(scores, SigmoidScores):
        return scores
    rise = min(progress / RAMP, 1.0)
    return SigmoidScores(start_temperature + rise * (scores.temperature - start_temperature))
