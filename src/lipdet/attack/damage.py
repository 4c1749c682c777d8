"""Damage: a measure of how wrong the detections of one image are.

AP is a measure of a whole data set and has no share that belongs to one image (theory §8), so
images are compared by a measure of their own: the scores of false positives minus the scores of
true positives. Both lower AP, and an attack that only hides objects can be compared with one that
only invents them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lipdet.boxes.coding import pairwise_iou
from lipdet.detector.matching import share_inside
from lipdet.types import Detections, Target, ignored_of

MATCHING_IOU = 0.5


def damage(found: Detections, target: Target) -> float:
    """Sum the scores of false positives, and subtract those of true positives.

    Args:
        found: detections of one image.
        target: its objects.
    """
    right = true_positives(found, target)
    scores, false = found["scores"].double(), ~right & judged(found, target)
    return float(scores[false].sum() - scores[right].sum())


def judged(found: Detections, target: Target) -> Tensor:
    """Tell which detections (N,) are false if they are not right: not those in an ignored area."""
    areas = ignored_of(target)
    inside = share_inside(found["boxes"].double(), areas["boxes"].double()) >= MATCHING_IOU
    return ~(inside & (found["labels"].unsqueeze(1) == areas["labels"])).any(dim=1)


def true_positives(found: Detections, target: Target) -> Tensor:
    """Tell which detections (N,), best first, are right at IoU 0.5, matched greedily as in COCO."""
    right = torch.zeros(len(found["labels"]), dtype=torch.bool)
    if len(right) == 0 or len(target["labels"]) == 0:
        return right
    overlap = pairwise_iou(found["boxes"].float(), target["boxes"].float())
    overlap[found["labels"].unsqueeze(1) != target["labels"]] = 0
    for index, row in enumerate(overlap):
        best = int(row.argmax())
        if row[best] >= MATCHING_IOU:
            right[index] = True
            overlap[:, best] = 0
    return right


def recall(found: Sequence[Detections], targets: Sequence[Target], score: float) -> float:
    """Return the share of objects with a right detection of a score above `score`; 0 if none."""
    hits = sum(
        int((true_positives(one, target) & (one["scores"] > score)).sum())
        for one, target in zip(found, targets, strict=True)
    )
    return hits / max(1, sum(len(target["labels"]) for target in targets))
