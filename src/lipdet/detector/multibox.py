"""The multibox loss: classification with hard negatives, localisation on positives."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from lipdet.boxes import Decoder, Scores, SigmoidScores, SoftmaxScores
from lipdet.boxes.coding import corners
from lipdet.detector.matching import POSITIVE_IOU, Matches, PaddedTargets, match, no_negatives
from lipdet.types import RawOutput

NEGATIVES_PER_POSITIVE = 3
# As in the reference experiment.
LOCALISATION_WEIGHT = 2.0
BACKGROUND = -1
# What the offsets of a near default box count, beside those of a positive one.
NEAR_WEIGHT = 0.5
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

    @property
    def parts(self) -> dict[str, Tensor]:
        """Return what the log shows besides the total."""
        return {"classification": self.classification, "localisation": self.localisation}

    def with_means(self, means: Tensor) -> MultiboxLoss:
        """Return the loss of a larger batch, whose means (2,) of the parts are known."""
        return self._replace(classification=means[0], localisation=means[1])


def multibox_loss(
    raw: RawOutput,
    targets: PaddedTargets,
    decoder: Decoder,
    margin: float = 0.0,
    localisation_weight: float = LOCALISATION_WEIGHT,
    near_iou: float = POSITIVE_IOU,
) -> MultiboxLoss:
    """Compute the SSD loss (Liu et al., 2016, §2.2), in float32 whatever the precision of `raw`.

    Per image the negatives with the highest loss are kept, three per positive; an image without
    objects keeps three, so that it teaches what background is. A default box of which half or more
    lies in an ignored area is no negative of the area's class. A default box near an object is no
    negative of the object's class, and learns to find its box: a logit that cannot change steeply
    from one default box to the next would spend its margin there, and a near box that does score
    high must not take a good one's place in NMS.

    Args:
        raw: logits (B, A, K), offsets (B, A, 4).
        targets: objects of the B images, in pixels.
        decoder: of the detector that the raw output comes from.
        margin: how far every logit is moved against its label before the loss is taken. Where
            logits are 1-Lipschitz, this is the worst that a perturbation of that norm can do.
        localisation_weight: α.
        near_iou: see `match`; by default no box is near.
    """
    default_boxes = decoder.default_boxes
    matches = match(corners(default_boxes), targets, near_iou)
    positive = matches.positive
    labels = targets.labels.gather(1, matches.objects)
    entropy = classification_loss(
        raw.logits.float(),
        labels.masked_fill(~positive, BACKGROUND),
        decoder.scores,
        margin,
        no_negatives(corners(default_boxes), targets, matches, raw.logits.shape[-1]),
    )
    positives = positive.sum(dim=1, keepdim=True)
    negatives = NEGATIVES_PER_POSITIVE * positives.clamp(min=1)
    hardest = entropy.masked_fill(positive, 0.0).sort(dim=1, descending=True).values
    ranks = torch.arange(hardest.shape[1], device=hardest.device)
    total_positives = positives.sum().clamp(min=1)
    classification = (entropy[positive].sum() + hardest[ranks < negatives].sum()) / total_positives

    error = _offset_errors(raw, matches, targets, decoder)
    weight = positive + NEAR_WEIGHT * matches.near
    localisation = (weight * error).sum() / total_positives
    return MultiboxLoss(classification, localisation, localisation_weight)


def _offset_errors(
    raw: RawOutput, matches: Matches, targets: PaddedTargets, decoder: Decoder
) -> Tensor:
    """Return smooth L1 of the offsets of positive and near default boxes, (B, A); 0 for others."""
    rows = torch.nonzero(matches.positive | matches.near, as_tuple=True)
    wanted_boxes = targets.boxes[rows[0], matches.objects[rows]]
    wanted = decoder.coding.encode(wanted_boxes, decoder.default_boxes[rows[1]])
    error = functional.smooth_l1_loss(raw.offsets[rows].float(), wanted, reduction="none")
    return torch.zeros_like(matches.near, dtype=error.dtype).index_put(rows, error.mean(dim=1))


def classification_loss(
    logits: Tensor,
    wanted_labels: Tensor,
    scores: Scores,
    margin: float = 0.0,
    ignored: Tensor | None = None,
) -> Tensor:
    """Return cross-entropy of each default box: of the softmax, or the sum of one-vs-all sigmoids.

    Args:
        logits: (B, A, K).
        wanted_labels: (B, A) int64 classes, BACKGROUND where there is no object.
        scores: how logits become scores.
        margin: as in `multibox_loss`.
        ignored: (B, A, K) bool, classes from 0 of which a default box may be one or not, unless
            it is wanted there. Of a softmax, such a box does not count at all.

    Returns:
        (B, A).
    """
    # In softmax scores background has a logit of its own, the first.
    softmax = isinstance(scores, SoftmaxScores)
    columns = torch.arange(logits.shape[-1], device=logits.device)
    wanted = columns == (wanted_labels + softmax).unsqueeze(-1)
    worst = torch.where(wanted, logits - margin, logits + margin)
    if softmax:
        entropy = functional.cross_entropy(worst.mT, wanted_labels + 1, reduction="none")
        if ignored is None:
            return entropy
        return entropy * ~(ignored.any(dim=-1) & (wanted_labels == BACKGROUND))
    log_odds = scores.log_odds(worst)
    entropy = functional.softplus(torch.where(wanted, -log_odds, log_odds))
    if ignored is not None:
        entropy = entropy * ~(ignored & ~wanted)
    return entropy.sum(dim=-1)


def training_scores(scores: Scores, start_temperature: float, progress: float) -> Scores:
    """Return the scores to take the loss of at a share of the training.

    The temperature of sigmoids rises to its final value within the first RAMP of the steps: at the
    final one, gradients of wrong logits would saturate from the start.
    """
    if not isinstance(scores, SigmoidScores):
        return scores
    rise = min(progress / RAMP, 1.0)
    temperature = start_temperature + rise * (scores.temperature - start_temperature)
    return replace(scores, temperature=temperature)
