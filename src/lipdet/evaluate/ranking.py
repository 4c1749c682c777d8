"""The detections of a data set by falling score, and false positives at a given recall."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lipdet.attack.damage import judged, true_positives
from lipdet.types import Detections, Target


class Ranked(NamedTuple):
    """Detections (N,) of all images, best first; false ones in ignored areas are left out."""

    image: NDArray[np.int64]
    label: NDArray[np.int64]
    score: NDArray[np.float64]
    right: NDArray[np.bool_]


def ranked(targets: Sequence[Target], detections: Sequence[Detections]) -> Ranked:
    """Rank the detections of all images, matched as in COCO; of equal scores the first come first.

    Args:
        targets: what is there, per image.
        detections: what was found, per image, in the same order, best first.
    """
    pairs = list(zip(detections, targets, strict=True))
    right = [true_positives(*pair) for pair in pairs]
    counts = torch.cat([hit | judged(*pair) for hit, pair in zip(right, pairs, strict=True)])
    image = np.repeat(np.arange(len(right)), [len(one) for one in right])
    label = torch.cat([found["labels"] for found in detections]).numpy()
    score = torch.cat([found["scores"] for found in detections]).double().numpy()
    order = np.argsort(-score, kind="stable")
    order = order[counts.numpy()[order]]
    return Ranked(*(column[order] for column in (image, label, score, torch.cat(right).numpy())))


def false_positives_per_image(
    targets: Sequence[Target], detections: Sequence[Detections], recall: float
) -> float | None:
    """Count false positives per picture at the highest threshold that reaches a recall, or None.

    Detections are matched as in COCO: by falling score, each to the free object of its class with
    the highest IoU, of at least one half. Equal scores pass a threshold together.

    Args:
        targets: see `ranked`.
        detections: see `ranked`.
        recall: share of all objects, in (0, 1].
    """
    found, objects = ranked(targets, detections), sum(len(one["labels"]) for one in targets)
    reached = np.flatnonzero(found.right.cumsum() >= recall * objects)
    if not objects or not len(reached):
        return None
    passing = found.score >= found.score[reached[0]]
    return float((passing & ~found.right).sum()) / len(targets)
