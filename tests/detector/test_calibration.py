"""Calibration of one-vs-all scores: they add up, and nothing but a shift has changed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lipdet.boxes.coding import corners
from lipdet.config import PRESETS
from lipdet.detector import build_detector
from lipdet.detector.calibration import calibrated, calibration_shift
from lipdet.detector.matching import match, pad_targets
from lipdet.types import Target
from tests.detector.test_matching import random_targets


def test_the_shift_is_the_most_likely_one() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(3_000, generator=generator) < 0.02
    logits = torch.randn(3_000, generator=generator).double() * 0.1 + truth * 0.5 - 0.9
    shift = calibration_shift(logits, int(truth.sum()), temperature=20.0)
    # Oracle: the log-likelihood on a fine grid of shifts.
    grid = torch.linspace(-1, 2, 3001, dtype=torch.float64)
    odds = [20 * (logits + b) for b in grid]
    loss = [
        torch.nn.functional.binary_cross_entropy_with_logits(o, truth.double()).item() for o in odds
    ]
    best = grid[torch.tensor(loss).argmin()].item()
    assert shift == pytest.approx(best, abs=2e-3)


def test_scores_of_held_out_pictures_add_up() -> None:
    torch.manual_seed(0)
    detector = build_detector(
        replace(PRESETS["certified-small"].detector, class_names=("a", "b", "c"))
    ).eval()
    images, targets = torch.rand(4, 3, 74, 74), pad_targets(random_targets(0))
    shifted = calibrated(detector, [(images, targets)])
    with torch.no_grad():
        before, after = detector(images), shifted(images)
    positives = match(corners(detector.default_boxes), targets).positive.sum().item()
    # By its definition: the scores add up to the number of positive default boxes.
    scores = detector.scores.log_odds(after.logits).sigmoid().sum().item()
    assert scores == pytest.approx(positives, rel=1e-3)
    moved = after.logits - before.logits
    torch.testing.assert_close(moved, moved[:1, :1, :1].expand_as(moved), atol=1e-5, rtol=0)
    torch.testing.assert_close(after.offsets, before.offsets)


def test_boxes_near_an_object_do_not_count_for_its_class() -> None:
    torch.manual_seed(0)
    detector = build_detector(
        replace(PRESETS["certified-small"].detector, class_names=("a", "b", "c"))
    ).eval()
    target = Target(boxes=torch.tensor([[20.0, 10, 45, 60]]), labels=torch.tensor([1]))
    images, targets = torch.rand(1, 3, 74, 74), pad_targets([target])
    shifted = calibrated(detector, [(images, targets)], near_iou=0.3)
    matches = match(corners(detector.default_boxes), targets, near_iou=0.3)
    assert matches.near.any()
    with torch.no_grad():
        scores = detector.scores.log_odds(shifted(images).logits).sigmoid()[0]
    # By its definition: all scores but those that may be right or not.
    counted = scores.sum() - scores[matches.near[0], 1].sum()
    assert counted.item() == pytest.approx(matches.positive.sum().item(), rel=1e-3)
