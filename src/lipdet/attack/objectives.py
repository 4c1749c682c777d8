"""Objectives that attacks raise: one value per image, of its objects and a detector's outputs.

Notable choices:
- Losses are those that train lipdet's detectors and need their raw output. The others look at
  boxes and log-odds alone, so that any detector can be attacked with them.
- Every value is a sum over one image, never a mean over a batch: hard negatives are mined per
  image, and no image changes another's gradient.
- Log-odds, not scores: a score of 1.0 in float32 has no gradient left.
- Which boxes lie on an object is read off the decoded boxes of the moment, without a gradient, as
  the evaluation will do.
- `demote` alone sees where boxes lie with a gradient: what is pushed off its object is lost to it
  and a false detection besides. Log-odds count there by the rank that they give among others of a
  data set, which is about what AP counts: far above all or below all they gain little.
- Vanish and mislabel stop counting an object that is gone, so that the rest of the perturbation
  goes to the others, and an image with nothing left to win leaves the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from lipdet.attack.damage import MATCHING_IOU
from lipdet.boxes import AP_SELECTION, Decoder
from lipdet.boxes.coding import corners, pairwise_iou
from lipdet.boxes.scores import logit
from lipdet.detector.matching import (
    IGNORED_SHARE,
    PaddedTargets,
    match,
    not_judged,
    pad_targets,
    share_inside,
)
from lipdet.detector.multibox import (
    BACKGROUND,
    LOCALISATION_WEIGHT,
    NEGATIVES_PER_POSITIVE,
    classification_loss,
)
from lipdet.types import RawOutput, Target


class Scene(NamedTuple):
    """The objects of B images, M ≥ 1 at most, and how A default boxes relate to them.

    Attributes:
        boxes: (B, M, 4) xyxy pixels.
        labels: (B, M) int64.
        valid: (B, M) bool; the rest is padding.
        ignored_boxes: (B, J, 4) areas that are not judged.
        ignored_labels: (B, J) int64, of which class.
        positive: (B, A) bool, default boxes that answer for an object in the multibox loss.
        wanted_labels: (B, A) int64, the object's label; meaningful where positive.
        wanted_offsets: (B, A, 4), the object's box as offsets; meaningful where positive.
    """

    boxes: Tensor
    labels: Tensor
    valid: Tensor
    ignored_boxes: Tensor
    ignored_labels: Tensor
    positive: Tensor
    wanted_labels: Tensor
    wanted_offsets: Tensor

    def at(self, rows: Tensor) -> Scene:
        """Return the objects of some of the images."""
        return Scene(*(tensor[rows] for tensor in self))


class Predictions(NamedTuple):
    """Boxes and log-odds of a detector for B images.

    Attributes:
        boxes: (B, A, 4) xyxy pixels.
        log_odds: (B, A, K), of each class at each box.
    """

    boxes: Tensor
    log_odds: Tensor


# Raw output of B images, their objects, and how raw output becomes boxes, to values (B,).
RawObjective = Callable[[RawOutput, Scene, Decoder], Tensor]
# Boxes and log-odds of B images and their objects to values (B,).
PredictionObjective = Callable[[Predictions, PaddedTargets | Scene], Tensor]

# A box with this IoU may be a true positive after a small move; one below EMPTY is none.
ON_OBJECT = 0.45
EMPTY = 0.3
# Log-odds at which an object no longer counts in any AP, with a margin.
GONE = logit(AP_SELECTION.score_floor) - 1
# A wrong class this far ahead of the right one, in log-odds, is as wrong as it can be.
MISLABELLED = 10.0
# Of `demote`, chosen by scripts/choose_attack.py: the log-odds between which most detections are
# ranked, what a wrong detection counts beside a right one, and within what IoU a box slides off.
RANKED_WITHIN = 3.0
SHARE_OF_WRONG = 0.25
SLIDES_OFF_WITHIN = 0.05
NOWHERE = -1e4  # instead of -inf, whose gradient is not a number


def scene_of(targets: Sequence[Target], decoder: Decoder) -> Scene:
    """Match the objects of a batch once; they stay where they are while an image is attacked."""
    default_boxes = decoder.default_boxes
    padded = pad_targets(targets).to(default_boxes.device)
    positive, objects, _ = match(corners(default_boxes), padded)
    own_boxes = padded.boxes.gather(1, objects.unsqueeze(2).expand(-1, -1, 4))
    return Scene(
        *padded,
        positive=positive,
        wanted_labels=padded.labels.gather(1, objects),
        wanted_offsets=decoder.coding.encode(own_boxes, default_boxes),
    )


def multibox(raw: RawOutput, scene: Scene, decoder: Decoder) -> Tensor:
    """Return the training loss summed over one image: classification and localisation."""
    return classification(raw, scene, decoder) + LOCALISATION_WEIGHT * localisation(
        raw, scene, decoder
    )


def classification(raw: RawOutput, scene: Scene, decoder: Decoder) -> Tensor:
    """Sum the cross-entropy of positives and of each image's hardest negatives, three for each.

    As in training, a default box in an ignored area is no negative of the area's class.
    """
    wanted = scene.wanted_labels.masked_fill(~scene.positive, BACKGROUND)
    ignored = not_judged(
        corners(decoder.default_boxes),
        scene.ignored_boxes,
        scene.ignored_labels,
        raw.logits.shape[-1],
    )
    entropy = classification_loss(raw.logits, wanted, decoder.scores, ignored=ignored)
    counts = NEGATIVES_PER_POSITIVE * scene.positive.sum(dim=1).clamp(min=1)
    negatives = entropy.masked_fill(scene.positive, 0)
    hardest = negatives.topk(min(int(counts.max()), negatives.shape[1]), dim=1).values
    ranks = torch.arange(hardest.shape[1], device=hardest.device)
    hardest = hardest.masked_fill(ranks >= counts.unsqueeze(1), 0)
    return entropy.masked_fill(~scene.positive, 0).sum(dim=1) + hardest.sum(dim=1)


def localisation(raw: RawOutput, scene: Scene, decoder: Decoder) -> Tensor:
    """Sum the smooth L1 error of the positives' offsets."""
    offsets = raw.offsets
    error = functional.smooth_l1_loss(
        offsets, scene.wanted_offsets.to(offsets.dtype), reduction="none"
    )
    return error.mean(dim=2).masked_fill(~scene.positive, 0).sum(dim=1)


def vanish(found: Predictions, scene: PaddedTargets | Scene) -> Tensor:
    """Lower the best right-class log-odds of all boxes on each object (as a log-sum-exp)."""
    right, _ = _on_objects(found, scene)
    return -_over_objects(right.clamp(min=GONE), scene)


def mislabel(found: Predictions, scene: PaddedTargets | Scene) -> Tensor:
    """Raise the best wrong class above the right one, over all boxes on each object."""
    right, wrong = _on_objects(found, scene)
    return _over_objects((wrong - right).clamp(max=MISLABELLED), scene)


def demote(found: Predictions, scene: PaddedTargets | Scene) -> Tensor:
    """Lower the rank of what is right on each object, in class and place; raise what is wrong."""
    overlap = pairwise_iou(found.boxes, scene.boxes).nan_to_num(0.0)
    on = (overlap - MATCHING_IOU) / SLIDES_OFF_WITHIN
    right, wrong = functional.logsigmoid(on), functional.logsigmoid(-on)
    classes = torch.arange(found.log_odds.shape[2], device=overlap.device)
    ranks = []
    # One object at a time: all at once would hold (B, A, M, classes).
    for place, label in enumerate(scene.labels.unbind(dim=1)):
        here = slice(place, place + 1)
        near, own = overlap[..., here] >= EMPTY, (label.unsqueeze(1) == classes).unsqueeze(1)
        as_right = (found.log_odds + right[..., here]).masked_fill(~(near & own), NOWHERE)
        as_wrong = torch.where(own, found.log_odds + wrong[..., here], found.log_odds)
        as_wrong = as_wrong.masked_fill(~near, NOWHERE)
        ranks.append(SHARE_OF_WRONG * _rank(as_wrong) - _rank(as_right))
    return _over_objects(torch.stack(ranks, dim=1), scene)


def fabricate(found: Predictions, scene: PaddedTargets | Scene) -> Tensor:
    """Raise the best classes of the boxes that lie on no object and in no ignored area."""
    touched = _overlap(found.boxes, scene).amax(dim=2) >= EMPTY
    inside = share_inside(found.boxes.detach(), scene.ignored_boxes) >= IGNORED_SHARE
    touched |= inside.any(dim=2)
    best = found.log_odds.amax(dim=2)
    return functional.softplus(best).masked_fill(touched, 0).sum(dim=1)


LOSSES: dict[str, RawObjective] = {
    "multibox": multibox,
    "classification": classification,
    "localisation": localisation,
}
ON_PREDICTIONS: dict[str, PredictionObjective] = {
    "demote": demote,
    "mislabel": mislabel,
    "vanish": vanish,
    "fabricate": fabricate,
}


def _of_raw(objective: PredictionObjective) -> RawObjective:
    def value(raw: RawOutput, scene: Scene, decoder: Decoder) -> Tensor:
        boxes = decoder.boxes(raw.offsets)
        return objective(Predictions(boxes, decoder.scores.log_odds(raw.logits)), scene)

    return value


OBJECTIVES: dict[str, RawObjective] = {
    **{name: _of_raw(objective) for name, objective in ON_PREDICTIONS.items()},
    **LOSSES,
}


def _overlap(boxes: Tensor, scene: PaddedTargets | Scene) -> Tensor:
    """Return the IoU (B, A, M) of boxes with the objects, -1 at padding."""
    overlap = pairwise_iou(boxes.detach(), scene.boxes)
    return overlap.masked_fill(~scene.valid.unsqueeze(1), -1)


def _on_objects(found: Predictions, scene: PaddedTargets | Scene) -> tuple[Tensor, Tensor]:
    """Return soft maxima (B, M) of the right and the wrong classes' log-odds on each object."""
    near = _overlap(found.boxes, scene) >= ON_OBJECT
    # One object at a time: all at once would hold (B, A, M, classes).
    per_class = torch.stack(
        [
            found.log_odds.masked_fill(~own.unsqueeze(2), NOWHERE).logsumexp(dim=1)
            for own in near.unbind(dim=2)
        ],
        dim=1,
    )
    labels = scene.labels.unsqueeze(2)
    right = per_class.gather(2, labels).squeeze(2)
    wrong = per_class.scatter(2, labels, NOWHERE).logsumexp(dim=2)
    return right, wrong


def _rank(log_odds: Tensor) -> Tensor:
    """Return, of the best of log-odds (B, A, K), about the share of detections below it."""
    return torch.sigmoid(log_odds.flatten(1).logsumexp(dim=1) / RANKED_WITHIN)


def _over_objects(values: Tensor, scene: PaddedTargets | Scene) -> Tensor:
    return values.masked_fill(~scene.valid, 0).sum(dim=1)
