"""What an attack raises: one value per image, a function of the raw output and the objects.

Notable choices:
- Every value is a sum over one image, never a mean over a batch: hard negatives are mined per
  image, and no image changes another's gradient.
- Log-odds, not scores: a score of 1.0 in float32 has no gradient left.
- Which boxes lie on an object is read off the decoded boxes of the moment, without a gradient, as
  the evaluation will do.
- Vanish and mislabel stop counting an object that is gone, so that the rest of the perturbation
  goes to the others, and an image with nothing left to win leaves the batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from lipdet.attack.scene import Scene
from lipdet.boxes import AP_SELECTION, Decoder
from lipdet.boxes.scores import logit
from lipdet.detector.multibox import (
    BACKGROUND,
    LOCALISATION_WEIGHT,
    NEGATIVES_PER_POSITIVE,
    classification_loss,
)
from lipdet.types import RawOutput

# Raw output of B images, their objects, and how raw output becomes boxes, to values (B,).
RawObjective = Callable[[RawOutput, Scene, Decoder], Tensor]

# A box with this IoU may be a true positive after a small move; one below EMPTY is none.
ON_OBJECT = 0.45
EMPTY = 0.3
# Log-odds at which an object no longer counts in any AP, with a margin.
GONE = logit(AP_SELECTION.score_floor) - 1
# A wrong class this far ahead of the right one, in log-odds, is as wrong as it can be.
MISLABELLED = 10.0
NOWHERE = -1e4  # instead of -inf, whose gradient is not a number


def multibox(raw: RawOutput, scene: Scene, decoder: Decoder) -> Tensor:
    """The training loss summed over one image: classification and localisation."""
    return classification(raw, scene, decoder) + LOCALISATION_WEIGHT * localisation(
        raw, scene, decoder
    )


def classification(raw: RawOutput, scene: Scene, decoder: Decoder) -> Tensor:
    """Cross-entropy of the positives and of each image's hardest negatives, three per positive."""
    wanted = scene.wanted_labels.masked_fill(~scene.positive, BACKGROUND)
    entropy = classification_loss(raw.logits, wanted, decoder.scores)
    counts = NEGATIVES_PER_POSITIVE * scene.positive.sum(dim=1).clamp(min=1)
    negatives = entropy.masked_fill(scene.positive, 0)
    hardest = negatives.topk(min(int(counts.max()), negatives.shape[1]), dim=1).values
    ranks = torch.arange(hardest.shape[1], device=hardest.device)
    hardest = hardest.masked_fill(ranks >= counts.unsqueeze(1), 0)
    return entropy.masked_fill(~scene.positive, 0).sum(dim=1) + hardest.sum(dim=1)


def localisation(raw: RawOutput, scene: Scene, decoder: Decoder) -> Tensor:
    """Smooth L1 error of the positives' offsets."""
    offsets = raw.offsets
    error = functional.smooth_l1_loss(
        offsets, scene.wanted_offsets.to(offsets.dtype), reduction="none"
    )
    return error.mean(dim=2).masked_fill(~scene.positive, 0).sum(dim=1)


def vanish(raw: RawOutput, scene: Scene, decoder: Decoder) -> Tensor:
    """Lower the best right-class log-odds of all boxes on each object (as a log-sum-exp)."""
    right, _ = _on_objects(raw, scene, decoder)
    return -_over_objects(right.clamp(min=GONE), scene)


def mislabel(raw: RawOutput, scene: Scene, decoder: Decoder) -> Tensor:
    """Raise the best wrong class above the right one, over all boxes on each object."""
    right, wrong = _on_objects(raw, scene, decoder)
    return _over_objects((wrong - right).clamp(max=MISLABELLED), scene)


def fabricate(raw: RawOutput, scene: Scene, decoder: Decoder) -> Tensor:
    """Raise the best classes of the boxes that lie on no object."""
    log_odds = decoder.scores.log_odds(raw.logits).amax(dim=2)
    touched = _overlap(raw, scene, decoder).amax(dim=2) >= EMPTY
    return functional.softplus(log_odds).masked_fill(touched, 0).sum(dim=1)


OBJECTIVES: dict[str, RawObjective] = {
    "multibox": multibox,
    "classification": classification,
    "localisation": localisation,
    "vanish": vanish,
    "mislabel": mislabel,
    "fabricate": fabricate,
}


def _overlap(raw: RawOutput, scene: Scene, decoder: Decoder) -> Tensor:
    """IoU (B, A, M) of the decoded boxes with the objects, -1 at padding; no gradient."""
    boxes, objects = decoder.boxes(raw.offsets.detach()).unsqueeze(2), scene.boxes.unsqueeze(1)
    starts = torch.maximum(boxes[..., :2], objects[..., :2])
    ends = torch.minimum(boxes[..., 2:], objects[..., 2:])
    shared = (ends - starts).clamp(min=0).prod(dim=3)
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(dim=3)
    object_areas = (objects[..., 2:] - objects[..., :2]).prod(dim=3)
    overlap = shared / (areas + object_areas - shared)
    return overlap.masked_fill(~scene.valid.unsqueeze(1), -1)


def _on_objects(raw: RawOutput, scene: Scene, decoder: Decoder) -> tuple[Tensor, Tensor]:
    """Soft maxima (B, M) of the right and of the wrong classes' log-odds on each object."""
    log_odds = decoder.scores.log_odds(raw.logits)
    near = _overlap(raw, scene, decoder) >= ON_OBJECT
    # One object at a time: all at once would hold (B, A, M, classes).
    per_class = torch.stack(
        [
            log_odds.masked_fill(~own.unsqueeze(2), NOWHERE).logsumexp(dim=1)
            for own in near.unbind(dim=2)
        ],
        dim=1,
    )
    labels = scene.labels.unsqueeze(2)
    right = per_class.gather(2, labels).squeeze(2)
    wrong = per_class.scatter(2, labels, NOWHERE).logsumexp(dim=2)
    return right, wrong


def _over_objects(values: Tensor, scene: Scene) -> Tensor:
    return values.masked_fill(~scene.valid, 0).sum(dim=1)
