"""On linear detectors each objective has a known optimum; attacks must reach 99 % of its gain.

Oracle: a linear function w·δ is at most ε‖w‖₂ on an L2 ball and ε‖w‖₁ on an L∞ ball; the objectives
are increasing functions of it, written out by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from lipdet.attack import OBJECTIVES, AttackSettings, attack_batch
from lipdet.attack.objectives import scene_of
from lipdet.boxes import SigmoidScores, SoftmaxScores
from lipdet.types import Target
from tests.attack.toy import (
    LinearDetector,
    grey,
    linear_detector,
    nothing,
    on_both,
    on_left,
    weights,
)

EPSILON = 0.3
SHARE = 0.99


class Case(NamedTuple):
    """`value(reach)` is the objective where the linear function `direction`·δ has that value."""

    objective: str
    detector: LinearDetector
    target: Target
    direction: Tensor
    value: Callable[[Tensor], Tensor]


def cases() -> list[Case]:
    sigmoid, softmax = SigmoidScores(temperature=2.0), SoftmaxScores()
    one, two, pair = weights(1, 1), weights(2, 1, seed=1), weights(1, 2, seed=2)
    offsets = weights(4, seed=3)
    # The offsets' biases alternate in sign, and so does the derivative of their absolute errors.
    signed = offsets[0] - offsets[1] + offsets[2] - offsets[3]
    both = linear_detector(sigmoid, -signed.view(1, 1, -1), offsets=offsets)
    half = torch.tensor(0.5)
    on, off = logsigmoid(torch.tensor([10.0, -10.0], dtype=torch.float64))
    return [
        # The box lies exactly on the object, ten slopes above the IoU at which it would be lost.
        Case(
            "demote",
            linear_detector(sigmoid, one),
            on_left(),
            -one[0, 0],
            lambda r: ((off - 2 * r) / 3).sigmoid() / 4 - ((on - 2 * r) / 3).sigmoid(),
        ),
        # An object with one box: its log-odds T·w·δ fall; with two objects the sum of both.
        Case("vanish", linear_detector(sigmoid, one), on_left(), -one[0, 0], lambda r: 2 * r),
        Case("vanish", linear_detector(sigmoid, two), on_both(), -two.sum((0, 1)), lambda r: 2 * r),
        Case(
            "mislabel",
            linear_detector(sigmoid, pair),
            on_left(1),
            pair[0, 0] - pair[0, 1],
            lambda r: 2 * r,
        ),
        Case(
            "fabricate",
            linear_detector(sigmoid, one, bias=-1.0),
            nothing(),
            one[0, 0],
            lambda r: softplus(2 * (r - 1)),
        ),
        Case(
            "classification",
            linear_detector(sigmoid, one),
            on_left(),
            -one[0, 0],
            lambda r: softplus(2 * r),
        ),
        Case(
            "classification",
            linear_detector(softmax, pair),
            on_left(),
            pair[0, 0] - pair[0, 1],
            lambda r: softplus(r),
        ),
        # Smooth L1 beyond 1 is |t| - 1/2; the mean of four with |bias| 3.
        Case(
            "localisation",
            linear_detector(sigmoid, one, offsets=offsets),
            on_left(),
            signed,
            lambda r: 3 - half + r / 4,
        ),
        # Here the logit falls along the direction in which the offsets' errors grow.
        Case(
            "multibox", both, on_left(), signed, lambda r: softplus(2 * r) + 2 * (3 - half + r / 4)
        ),
    ]


def value(case: Case, images: Tensor) -> Tensor:
    scene = scene_of([case.target] * len(images), case.detector.decoder)
    with torch.no_grad():
        return OBJECTIVES[case.objective](case.detector(images), scene, case.detector.decoder)


def share_of_optimum(case: Case, settings: AttackSettings) -> float:
    clean = grey(2)
    attacked = attack_batch(case.detector, clean, [case.target] * 2, settings)
    order = 2.0 if settings.norm == "l2" else 1.0
    optimum = case.value(settings.epsilon * torch.linalg.vector_norm(case.direction, order))
    start, end = value(case, clean), value(case, attacked)
    assert (end <= optimum + 1e-9).all(), "more than the formula allows: the ball was left"
    return float(((end - start) / (optimum - start)).min())


def test_there_is_a_case_for_every_objective() -> None:
    assert {case.objective for case in cases()} == set(OBJECTIVES)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("schedule", ["pgd", "apgd"])
@pytest.mark.parametrize("case", cases(), ids=lambda case: case.objective)
def test_the_optimum_is_reached(case: Case, schedule: str, norm: str) -> None:
    epsilon = EPSILON if norm == "l2" else EPSILON / 10
    settings = AttackSettings(epsilon, case.objective, schedule, norm, steps=20)  # type: ignore[arg-type]
    assert share_of_optimum(case, settings) >= SHARE


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.objective)
def test_a_weakened_attack_misses_the_optimum(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    # Teeth: with a tenth of the movement the bar is not reached.
    monkeypatch.setattr("lipdet.attack.loop.FIRST_STEP", 0.1)
    settings = AttackSettings(EPSILON, case.objective, steps=20)
    assert share_of_optimum(case, settings) < SHARE


def test_clipping_to_pixel_values_is_respected_and_used() -> None:
    # All pixels at 0 and w > 0 for half of them: only those can rise. Oracle: the same formula on
    # the values that may move.
    one = weights(1, 1)
    detector = linear_detector(SigmoidScores(1.0), one)
    settings = AttackSettings(EPSILON, "vanish", steps=40)
    black = grey(1) * 0
    attacked = attack_batch(detector, black, [on_left()], settings)
    assert attacked.min() >= 0
    free = torch.where(-one[0, 0] > 0, -one[0, 0], 0)
    gain = float(((attacked - black).flatten() * -one[0, 0]).sum())
    assert gain >= SHARE * EPSILON * float(free.norm())
    assert np.isclose(float((attacked - black).norm()), EPSILON, rtol=1e-3)
