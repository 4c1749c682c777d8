"""Objectives against the training loss and against what they are meant to measure."""

from __future__ import annotations

import pytest
import torch

from lipdet.attack import OBJECTIVES
from lipdet.attack.objectives import GONE, Predictions, demote, scene_of
from lipdet.boxes import SigmoidScores
from lipdet.config import DetectorConfig
from lipdet.detector import build_detector
from lipdet.detector.matching import pad_targets
from lipdet.detector.multibox import multibox_loss
from lipdet.types import RawOutput, Target
from tests.attack.toy import linear_detector, on_both, on_left, weights


def target(count: int) -> Target:
    generator = torch.Generator().manual_seed(count)
    corners = torch.rand(count, 2, generator=generator) * 40
    sizes = 10 + torch.rand(count, 2, generator=generator) * 20
    return Target(
        boxes=torch.cat([corners, corners + sizes], 1),
        labels=torch.randint(0, 10, (count,), generator=generator),
    )


def random_raw(count: int, anchors: int) -> RawOutput:
    generator = torch.Generator().manual_seed(0)
    return RawOutput(
        3 * torch.randn(count, anchors, 11, generator=generator),
        torch.randn(count, anchors, 4, generator=generator),
    )


def test_multibox_is_the_training_loss_times_the_positives_of_each_image() -> None:
    # Oracle: the training loss of each image alone, a mean over its positives (at least one).
    detector = build_detector(DetectorConfig())
    decoder, targets = detector.decoder, [target(3), target(0), target(1)]
    raw = random_raw(3, len(decoder.default_boxes))
    scene = scene_of(targets, decoder)
    values = OBJECTIVES["multibox"](raw, scene, decoder)
    for index, own in enumerate(targets):
        alone = RawOutput(raw.logits[[index]], raw.offsets[[index]])
        loss = multibox_loss(alone, pad_targets([own]), decoder)
        positives = scene.positive[index].sum().clamp(min=1)
        torch.testing.assert_close(values[index], loss.total * positives)


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_values_do_not_depend_on_companions(name: str) -> None:
    decoder = build_detector(DetectorConfig()).decoder
    targets = [target(5), target(0), target(2)]
    raw = random_raw(3, len(decoder.default_boxes))
    together = OBJECTIVES[name](raw, scene_of(targets, decoder), decoder)
    assert together.shape == (3,)
    for index in range(3):
        alone = RawOutput(raw.logits[[index]], raw.offsets[[index]])
        [value] = OBJECTIVES[name](alone, scene_of([targets[index]], decoder), decoder)
        torch.testing.assert_close(value, together[index])


def test_an_object_that_is_gone_has_no_gradient_left() -> None:
    detector = linear_detector(SigmoidScores(1.0), weights(2, 2), bias=0.0)
    logits = torch.zeros(1, 2, 2, requires_grad=True)
    shift = torch.tensor([[[GONE - 1, 0.0], [3.0, 0.0]]])
    raw = RawOutput(logits + shift, torch.zeros(1, 2, 4))
    value = OBJECTIVES["vanish"](raw, scene_of([on_both()], detector.decoder), detector.decoder)
    # By hand: the first object counts with its floor, the second with its log-odds 3.
    torch.testing.assert_close(value, torch.tensor([-GONE - 3.0]))
    [gradient] = torch.autograd.grad(value.sum(), logits)
    assert torch.equal(gradient[0, :, 0], torch.tensor([0.0, -1.0]))


def test_demote_moves_boxes_off_their_objects() -> None:
    # Two boxes near one object and two classes, against finite differences.
    scene, generator = pad_targets([on_left()]), torch.Generator().manual_seed(0)
    log_odds = torch.randn(1, 2, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    moved = torch.tensor([[1.5, 0.4, -0.3, 0.2], [-0.4, -0.6, -1.2, 0.4]], dtype=torch.float64)
    boxes = (on_left()["boxes"] + moved).unsqueeze(0).requires_grad_()

    def value(boxes: torch.Tensor, log_odds: torch.Tensor) -> torch.Tensor:
        return demote(Predictions(boxes, log_odds), scene)

    assert torch.autograd.gradcheck(value, (boxes, log_odds))
    [gradient] = torch.autograd.grad(value(boxes, log_odds).sum(), boxes)
    # What shrinks a box that is narrower than its object takes it off.
    assert gradient[0, 0, 0] > 0
    assert gradient[0, 1, 2] < 0


def test_boxes_move_out_of_reach_of_vanish() -> None:
    # The second box is moved onto the object by its offsets and now counts; the first has left.
    decoder = linear_detector(SigmoidScores(1.0), weights(2, 1)).decoder
    own = scene_of([on_left()], decoder)
    left_to_right = 4 / 4 / decoder.coding.center_variance
    offsets = torch.zeros(1, 2, 4)
    offsets[0, :, 0] = torch.tensor([left_to_right, -left_to_right])
    raw = RawOutput(torch.tensor([[[5.0], [2.0]]]), offsets)
    [value] = OBJECTIVES["vanish"](raw, own, decoder)
    assert value == pytest.approx(-2.0)


@pytest.mark.parametrize("name", ["classification", "multibox"])
def test_losses_raise_nothing_in_areas_that_are_not_judged(name: str) -> None:
    # Oracle: the training loss, which has no negatives there.
    decoder = build_detector(DetectorConfig()).decoder
    own, crowd = target(1), target(3)
    judged = Target(**own)
    judged["ignored"] = {"boxes": torch.tensor([[0.0, 0, 74, 74]] * 3), "labels": crowd["labels"]}
    raw = random_raw(1, len(decoder.default_boxes))
    scene = scene_of([judged], decoder)
    [value] = OBJECTIVES[name](raw, scene, decoder)
    loss = multibox_loss(raw, pad_targets([judged]), decoder)
    wanted = loss.total if name == "multibox" else loss.classification
    torch.testing.assert_close(value, wanted * scene.positive.sum())
    [without] = OBJECTIVES[name](raw, scene_of([own], decoder), decoder)
    assert value < without
