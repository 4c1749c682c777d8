"""Confidence intervals of AP50 by resampling pictures (Efron's percentile bootstrap)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lipdet.evaluate.average_precision import average_precision
from lipdet.progress import track
from lipdet.types import Detections, Target

SAMPLES = 200
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A confidence interval, as fractions."""

    low: float
    high: float


def ap50_interval(
    targets: Sequence[Target],
    detections: Sequence[Detections],
    class_names: Sequence[str],
    seed: int,
) -> Interval:
    """The 95 % interval of AP50 over draws of as many pictures with replacement.

    AP is a measure of the whole set (THEORY §8), so each draw is evaluated as a set of its own.

    Args:
        targets: what is there, per image.
        detections: what was found, per image, in the same order.
        class_names: names of the classes in the order of their labels.
        seed: of the draws.
    """
    random = np.random.default_rng(seed)
    values = []
    for _ in track(range(SAMPLES), "Bootstrap"):
        drawn = random.integers(len(targets), size=len(targets))
        precision = average_precision(
            [targets[index] for index in drawn], [detections[index] for index in drawn], class_names
        )
        values.append(precision.ap50)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return Interval(float(low), float(high))
