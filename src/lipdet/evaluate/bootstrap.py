"""Confidence intervals of AP50 by resampling pictures (the bootstrap).

Notable choices:
- A draw holds some pictures several times, which makes precision jump in larger steps, and AP takes
  the highest precision at any recall or more: draws have a higher AP than the set they are drawn
  from. The mean difference is an estimate of that bias (Efron and Tibshirani, An Introduction to the
  Bootstrap, 1993, chapter 10) and is taken off the percentiles.
"""

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
    """The 95 % interval of AP50 over draws of as many pictures with replacement, bias taken off.

    AP is a measure of the whole set (THEORY §8), so each draw is evaluated as a set of its own.

    Args:
        targets: what is there, per image.
        detections: what was found, per image, in the same order.
        class_names: names of the classes in the order of their labels.
        seed: of the draws.
    """
    random = np.random.default_rng(seed)
    draws = [random.integers(len(targets), size=len(targets)) for _ in range(SAMPLES)]
    own, *values = (
        average_precision(
            [targets[index] for index in drawn], [detections[index] for index in drawn], class_names
        ).ap50
        for drawn in track([np.arange(len(targets)), *draws], "Bootstrap")
    )
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail]) - (np.mean(values) - own)
    return Interval(max(0.0, float(low)), min(1.0, float(high)))
