"""False positives per picture at a given recall: what a detector costs at one working point."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lipdet.attack.damage import judged, true_positives
from lipdet.types import Detections, Target


def false_positives_per_image(
    targets: Sequence[Target], detections: Sequence[Detections], recall: float
) -> float | None:
    """False positives per picture at the highest threshold that reaches a recall, or None.

    Detections are matched as in COCO: by falling score, each to the free object of its class with
    the highest IoU, of at least one half. Equal scores pass a threshold together.

    Args:
        targets: what is there, per image.
        detections: what was found, per image, in the same order, best first.
        recall: share of all objects, in (0, 1].
    """
    scores = torch.cat([found["scores"] for found in detections]).numpy()
    hits = torch.cat(
        [true_positives(found, target) for target, found in zip(targets, detections, strict=True)]
    ).numpy()
    objects = sum(len(target["labels"]) for target in targets)
    order = np.argsort(-scores, kind="stable")
    reached = np.flatnonzero(hits[order].cumsum() >= recall * objects)
    if not objects or not len(reached):
        return None
    passing = scores >= scores[order][reached[0]]
    false = ~hits & torch.cat([*map(judged, detections, targets)]).numpy()
    return float((passing & false).sum()) / len(targets)
