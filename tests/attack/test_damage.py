"""Damage of single images, recall, and the worst of several outcomes, by hand."""

from __future__ import annotations

import pytest
import torch

from lipdet.attack import Outcome, recall, worst_of
from lipdet.attack.damage import damage, true_positives
from lipdet.types import Detections, Target

TARGET = Target(
    boxes=torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]]), labels=torch.tensor([1, 2])
)


def found(*rows: tuple[list[float], int, float]) -> Detections:
    return Detections(
        boxes=torch.tensor([row[0] for row in rows]).reshape(-1, 4),
        labels=torch.tensor([row[1] for row in rows], dtype=torch.int64),
        scores=torch.tensor([row[2] for row in rows], dtype=torch.float64),
    )


FIRST = ([0.0, 0, 10, 9], 1, 0.9)
AGAIN = ([0.0, 0, 10, 10], 1, 0.8)
WRONG = ([20.0, 0, 30, 10], 1, 0.7)
NARROW = ([20.0, 0, 24, 10], 2, 0.6)


def test_a_second_detection_a_wrong_class_and_a_bad_box_are_false() -> None:
    detections = found(FIRST, AGAIN, WRONG, NARROW)
    assert true_positives(detections, TARGET).tolist() == [True, False, False, False]
    assert damage(detections, TARGET) == pytest.approx(0.8 + 0.7 + 0.6 - 0.9)


def test_nothing_found_and_nothing_there() -> None:
    empty = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    assert damage(found(), TARGET) == 0
    assert damage(found(FIRST), empty) == pytest.approx(0.9)


def test_recall_counts_objects_above_the_score() -> None:
    detections = [found(FIRST, NARROW), found(AGAIN)]
    # By hand: one of two objects in each picture; above 0.85 only the first.
    assert recall(detections, [TARGET, TARGET], 0.2) == pytest.approx(2 / 4)
    assert recall(detections, [TARGET, TARGET], 0.85) == pytest.approx(1 / 4)


def test_the_worst_is_chosen_per_image() -> None:
    images = torch.zeros(2, 3, 4, 4)
    one = Outcome(images, [found(FIRST), found()], [-0.9, 0.0])
    other = Outcome(images + 1, [found(), found(AGAIN)], [0.0, -0.8])
    chosen = worst_of([one, other])
    assert chosen.damage == [0.0, 0.0]
    assert chosen.images[:, 0, 0, 0].tolist() == [1.0, 0.0]
