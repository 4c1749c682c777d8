"""Confidence intervals of AP50 by resampling pictures (the bootstrap).

Notable choices:
- What matches what does not depend on the other pictures: it is found once, and a draw only counts
  pictures several times or not at all. On the set itself that gives the AP50 of faster-coco-eval.
- A draw holds some pictures several times, which makes precision jump in larger steps, and AP takes
  the highest precision at any recall or more: draws have a higher AP than the set they are drawn
  from. The mean difference is an estimate of that bias (Efron and Tibshirani, An Introduction to
  the Bootstrap, 1993, chapter 10) and is taken off the percentiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lipdet.evaluate.ranking import ranked
from lipdet.types import Detections, Target

SAMPLES = 200
CONFIDENCE = 0.95
# As COCO computes them.
RECALLS = np.linspace(0.0, 1.0, 101)


class Interval(NamedTuple):
    """A confidence interval, as fractions."""

    low: float
    high: float


class Ranking(NamedTuple):
    """The N detections of one class in all images, best first.

    Attributes:
        image: (N,) of each.
        hit: (N,) whether it is matched to an object.
        objects: (images,) of this class in each.
    """

    image: NDArray[np.int64]
    hit: NDArray[np.bool_]
    objects: NDArray[np.int64]


def ap50_interval(
    targets: Sequence[Target], detections: Sequence[Detections], classes: int, seed: int
) -> Interval:
    """Return the 95 % interval of AP50 over draws with replacement, bias taken off.

    AP is a measure of the whole set (theory §8), so each draw is evaluated as a set of its own.

    Args:
        targets: what is there, per image.
        detections: what was found, per image, in the same order, best first.
        classes: how many there are.
        seed: of the draws.
    """
    random, count = np.random.default_rng(seed), len(targets)
    draws = [random.integers(count, size=count) for _ in range(SAMPLES)]
    by_class = rankings(targets, detections, classes)
    values = [ap50(by_class, np.bincount(drawn, minlength=count)) for drawn in draws]
    tail = (1 - CONFIDENCE) / 2
    bias = np.mean(values) - ap50(by_class, np.ones(count, np.int64))
    low, high = np.quantile(values, [tail, 1 - tail]) - bias
    return Interval(max(0.0, float(low)), min(1.0, float(high)))


def ap50(by_class: Sequence[Ranking], times: NDArray[np.int64]) -> float:
    """Return the mean AP50 of the classes if each image counts so many `times` (images,)."""
    known = [_ap(one, times) for one in by_class if (one.objects * times).any()]
    return float(np.mean(known)) if known else 0.0


def _ap(ranking: Ranking, times: NDArray[np.int64]) -> float:
    weight = times[ranking.image]
    drawn = weight > 0
    hits = (weight * ranking.hit).cumsum()[drawn]
    if not len(hits):
        return 0.0
    precision, recall = hits / weight.cumsum()[drawn], hits / (ranking.objects * times).sum()
    best = np.maximum.accumulate(precision[::-1])[::-1]
    index = np.searchsorted(recall, RECALLS)
    return float(np.where(index < len(best), best[index.clip(max=len(best) - 1)], 0.0).mean())


def rankings(
    targets: Sequence[Target], detections: Sequence[Detections], classes: int
) -> list[Ranking]:
    """Return the detections of each class of all images."""
    found = ranked(targets, detections)
    by_class = []
    for label in range(classes):
        own = found.label == label
        objects = [int((target["labels"] == label).sum()) for target in targets]
        by_class.append(Ranking(found.image[own], found.right[own], np.array(objects)))
    return by_class
