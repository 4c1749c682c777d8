"""Bootstrap intervals and false positives at a recall, against hand-made scenes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lipdet.evaluate.average_precision import average_precision
from lipdet.evaluate.bootstrap import ap50, ap50_interval, rankings
from lipdet.evaluate.ranking import false_positives_per_image
from lipdet.types import Detections, Target

BOX = [10.0, 10, 20, 30]
ELSEWHERE = [40.0, 40, 60, 60]


def target(*labels: int, box: list[float] = BOX) -> Target:
    boxes = torch.tensor([box] * len(labels)).reshape(-1, 4)
    return Target(boxes=boxes, labels=torch.tensor(labels, dtype=torch.int64))


def found(*rows: tuple[list[float], int, float]) -> Detections:
    return Detections(
        boxes=torch.tensor([box for box, _, _ in rows]).reshape(-1, 4),
        labels=torch.tensor([label for _, label, _ in rows], dtype=torch.int64),
        scores=torch.tensor([score for _, _, score in rows], dtype=torch.float64),
    )


def test_false_positives_at_a_recall_by_hand() -> None:
    targets = [target(1), target(1), target()]
    detections = [
        found((ELSEWHERE, 1, 0.95), (BOX, 1, 0.9), (BOX, 1, 0.8)),
        found((BOX, 2, 0.85), (BOX, 1, 0.3), (ELSEWHERE, 1, 0.2)),
        found((BOX, 1, 0.3)),
    ]
    # By hand. Half the objects at 0.9: one false positive above. All at 0.3: the wrong place, the
    # duplicate, the wrong class, and one of equal score in the empty picture.
    assert false_positives_per_image(targets, detections, 0.5) == pytest.approx(1 / 3)
    assert false_positives_per_image(targets, detections, 1.0) == pytest.approx(4 / 3)


def test_a_recall_that_is_not_reached() -> None:
    assert false_positives_per_image([target(1)], [found((BOX, 2, 0.9))], 0.1) is None
    assert false_positives_per_image([target()], [found()], 0.1) is None


def test_the_interval_of_pictures_that_are_right_or_wrong() -> None:
    # With one object per picture, found surely or not at all, precision is 1 wherever recall goes,
    # so AP is the share of pictures drawn that are right, rounded to 101 recalls: a binomial share.
    count, right = 60, 45
    targets = [target(0)] * count
    detections = [found((BOX, 0, 0.9))] * right + [found()] * (count - right)
    low, high = ap50_interval(targets, detections, classes=1, seed=0)
    draws = np.random.default_rng(1).binomial(count, right / count, size=100_000) / count
    expected = np.quantile(draws, [0.025, 0.975])
    assert low == pytest.approx(expected[0], abs=0.04)
    assert high == pytest.approx(expected[1], abs=0.04)


def test_the_interval_lies_around_the_value_though_draws_are_better() -> None:
    # Two wrong detections beside each right one, in an order that says nothing: precision jumps.
    random = np.random.default_rng(0)
    targets, detections = [], []
    for _ in range(16):
        right, *wrong = random.uniform(0.01, 1, 3).tolist()
        targets.append(target(0))
        detections.append(found((BOX, 0, right), *((ELSEWHERE, 0, score) for score in wrong)))
    by_class = rankings(targets, detections, 1)
    own = ap50(by_class, np.ones(16, np.int64))
    drawn = [random.integers(16, size=16) for _ in range(200)]
    draws = [ap50(by_class, np.bincount(one, minlength=16)) for one in drawn]
    # Oracle: COCO's evaluation, of the set and of pictures that are there several times.
    assert own == pytest.approx(average_precision(targets, detections, ["a"])["ap50"])
    for one, value in zip(drawn[:20], draws, strict=False):
        again = average_precision([targets[i] for i in one], [detections[i] for i in one], ["a"])
        assert value == pytest.approx(again["ap50"])
    assert np.mean(draws) > own + 0.03
    low, high = ap50_interval(targets, detections, classes=1, seed=0)
    # Half of a symmetric distribution on either side; this one is a little skewed.
    assert (low + high) / 2 == pytest.approx(own, abs=0.025)
