"""The multibox loss against its definition in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lipdet.boxes import BoxCoding, Decoder, Scores, SigmoidScores, SoftmaxScores
from lipdet.boxes.coding import corners
from lipdet.config import DIGIT_CROP, DetectorConfig
from lipdet.detector import build_detector
from lipdet.detector.matching import pad_targets
from lipdet.detector.multibox import (
    BACKGROUND,
    MultiboxLoss,
    classification_loss,
    multibox_loss,
    training_scores,
)
from lipdet.types import Objects, RawOutput, Target
from tests.detector.test_matching import naive_match, random_targets

CODING = BoxCoding()
SOFTMAX = SoftmaxScores()
DEFAULTS = build_detector(DetectorConfig()).default_boxes


def decoder(boxes: Tensor, scores: Scores = SOFTMAX) -> Decoder:
    return Decoder(boxes, CODING, scores, DIGIT_CROP)


def random_raw(seed: int, images: int, spread: float = 2.0) -> RawOutput:
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(images, len(DEFAULTS), 11, generator=generator)
    offsets = spread * torch.randn(images, len(DEFAULTS), 4, generator=generator)
    return RawOutput(logits.requires_grad_(), offsets.requires_grad_())


def loss(raw: RawOutput, targets: list[Target]) -> MultiboxLoss:
    return multibox_loss(raw, pad_targets(targets), decoder(DEFAULTS))


def naive_loss(raw: RawOutput, targets: list[Target]) -> tuple[float, float]:
    """Classification and localisation by the definition (Liu et al., 2016), loop by loop."""
    classification = localisation = 0.0
    positives = 0
    for logits, offsets, target in zip(*raw, targets, strict=True):
        matched = naive_match(corners(DEFAULTS), target)
        positives += len(matched)
        negatives = []
        for anchor, row in enumerate(logits.tolist()):
            total = math.log(sum(map(math.exp, row)))
            if anchor in matched:
                label = int(target["labels"][matched[anchor]])
                classification += total - row[label + 1]
                localisation += smooth_l1(
                    offsets[anchor].tolist(), target["boxes"][matched[anchor]], DEFAULTS[anchor]
                )
            else:
                negatives.append(total - row[0])
        hardest = sorted(negatives, reverse=True)[: 3 * max(1, len(matched))]
        classification += sum(hardest)
    return classification / max(1, positives), localisation / max(1, positives)


def smooth_l1(offsets: list[float], box: Tensor, default: Tensor) -> float:
    (x1, y1, x2, y2), (cx, cy, w, h) = box.tolist(), default.tolist()
    wanted = [
        ((x1 + x2) / 2 - cx) / w / 0.1,
        ((y1 + y2) / 2 - cy) / h / 0.1,
        math.log((x2 - x1) / w) / 0.2,
        math.log((y2 - y1) / h) / 0.2,
    ]
    errors = [abs(found - one) for found, one in zip(offsets, wanted, strict=True)]
    return sum(e - 0.5 if e >= 1 else 0.5 * e * e for e in errors) / 4


@pytest.mark.parametrize("seed", range(6))
def test_loss_equals_its_definition(seed: int) -> None:
    raw, targets = random_raw(seed, 4), random_targets(seed)
    found = loss(raw, targets)
    # Oracle: the definition in plain Python.
    classification, localisation = naive_loss(raw, targets)
    assert found.classification.item() == pytest.approx(classification, rel=1e-5)
    assert found.localisation.item() == pytest.approx(localisation, rel=1e-5)
    # α = 2: the reference experiment.
    assert found.total.item() == pytest.approx(classification + 2 * localisation, rel=1e-5)


def test_where_the_gradient_goes() -> None:
    raw, targets = random_raw(2, 4), random_targets(2)
    loss(raw, targets).total.backward()
    assert raw.logits.grad is not None
    assert raw.offsets.grad is not None
    assert raw.logits.grad.isfinite().all()
    assert raw.offsets.grad.isfinite().all()
    for image, target in enumerate(targets):
        # Oracle: the loop's matches. Boxes learn on positives; classes besides on three times
        # as many negatives.
        matched = set(naive_match(corners(DEFAULTS), target))
        boxes = set(torch.nonzero(raw.offsets.grad[image].any(dim=1)).flatten().tolist())
        classes = set(torch.nonzero(raw.logits.grad[image].any(dim=1)).flatten().tolist())
        assert boxes == matched
        assert matched <= classes
        assert len(classes - matched) == 3 * max(1, len(matched))


def test_more_positives_than_a_third_of_the_default_boxes() -> None:
    # Three times the positives are more than there are negatives: each negative counts once.
    defaults = torch.tensor([[10.0, 10, 20, 20]] * 3 + [[60, 60, 10, 10]] * 2)
    box = Target(boxes=torch.tensor([[0.0, 0, 20, 20]]), labels=torch.tensor([1]))
    raw = RawOutput(torch.zeros(1, 5, 3), torch.zeros(1, 5, 4))
    found = multibox_loss(raw, pad_targets([box]), decoder(defaults))
    # By hand: equal logits of three classes cost ln 3 each; 3 positives, 2 negatives.
    assert found.classification.item() == pytest.approx(5 * math.log(3) / 3, rel=1e-6)


def test_near_boxes_are_no_negatives_of_their_class_and_learn_their_box() -> None:
    # Side by side boxes, 10 wide: the second overlaps the object by 1/3, the third not at all.
    defaults = torch.tensor([[10.0, 10, 10, 10], [15, 10, 10, 10], [40, 40, 10, 10]])
    box = Target(boxes=torch.tensor([[5.0, 5, 15, 15]]), labels=torch.tensor([1]))
    gradients = []
    for near_iou in (0.5, 0.3):
        raw = RawOutput(
            torch.zeros(1, 3, 3, requires_grad=True), torch.zeros(1, 3, 4, requires_grad=True)
        )
        one_vs_all = decoder(defaults, SigmoidScores(1.0))
        multibox_loss(raw, pad_targets([box]), one_vs_all, near_iou=near_iou).total.backward()
        assert raw.logits.grad is not None
        assert raw.offsets.grad is not None
        gradients.append((raw.logits.grad[0], raw.offsets.grad[0]))
    (plain_logits, plain_offsets), (logits, offsets) = gradients
    # By hand: the derivative of softplus at 0 is 1/2, for each of three negatives.
    assert plain_logits[1].tolist() == [0.5, 0.5, 0.5]
    assert logits[1].tolist() == [0.5, 0.0, 0.5]
    assert logits[[0, 2]].tolist() == plain_logits[[0, 2]].tolist()
    # The object is half a side to the left; the offset in units of 0.1, saturated: weight 2 times
    # 1/2, a quarter for the mean over four offsets.
    assert plain_offsets[1].tolist() == [0, 0, 0, 0]
    assert offsets[1].tolist() == [0.25, 0, 0, 0]


def test_near_boxes_do_not_count_in_a_softmax() -> None:
    logits = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, BACKGROUND, BACKGROUND]])
    ignored = torch.tensor([[[False] * 3, [False, True, False], [False] * 3]])
    plain = classification_loss(logits, labels, SOFTMAX)
    found = classification_loss(logits, labels, SOFTMAX, ignored=ignored)
    assert found.tolist() == [[plain[0, 0].item(), 0.0, plain[0, 2].item()]]


def test_one_vs_all_loss_equals_its_definition() -> None:
    logits = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 2, BACKGROUND, 1, BACKGROUND], [BACKGROUND] * 4 + [2]])
    found = classification_loss(logits, labels, SigmoidScores(7.0))
    # Oracle: the sum of binary cross-entropies, probability by probability in float64.
    for row, label, value in zip(
        logits.flatten(0, 1).tolist(), labels.flatten().tolist(), found.flatten(), strict=True
    ):
        chances = [1 / (1 + math.exp(-7 * z)) for z in row]
        right = [p if index == label else 1 - p for index, p in enumerate(chances)]
        assert value.item() == pytest.approx(-sum(map(math.log, right)), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("scores", [SOFTMAX, SigmoidScores(7.0)])
def test_the_margin_is_the_worst_that_logits_can_do(scores: Scores) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 50, 4, generator=generator)
    labels = torch.randint(BACKGROUND, 3, (1, 50), generator=generator)
    margin = 0.3
    worst = classification_loss(logits, labels, scores, margin)
    # Oracle: all corners of the cube of logits within the margin.
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 4)
    corner = torch.stack(
        [classification_loss(logits + margin * sign, labels, scores) for sign in signs]
    )
    torch.testing.assert_close(worst, corner.max(dim=0).values)
    assert (worst > classification_loss(logits, labels, scores)).all()


def test_temperature_rises_and_stays() -> None:
    scores = SigmoidScores(20.0)
    # By hand: from 3 to 20 in the first 60 percent of the steps.
    risen = [training_scores(scores, 3.0, share) for share in (0.0, 0.3, 0.6, 1.0)]
    assert risen == [SigmoidScores(t) for t in (3.0, 11.5, 20.0, 20.0)]
    assert training_scores(SOFTMAX, 3.0, 0.0) is SOFTMAX


@pytest.mark.parametrize("scores", [SOFTMAX, SigmoidScores(1.0)])
def test_an_area_of_a_crowd_holds_no_negatives_of_its_class(scores: Scores) -> None:
    """No box half inside the crowd learns that there is no such class."""
    defaults = torch.tensor([[5.0, 5, 10, 10], [9.0, 5, 10, 10], [15.0, 5, 10, 10]])
    crowd = Objects(boxes=torch.tensor([[0.0, 0, 10, 10]]), labels=torch.tensor([1]))
    target = Target(
        boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64), ignored=crowd
    )
    softmax = scores is SOFTMAX
    logits = torch.zeros(1, 3, 3 + softmax, requires_grad=True)
    raw = RawOutput(logits, torch.zeros(1, 3, 4))
    its = decoder(defaults)._replace(scores=scores)
    multibox_loss(raw, pad_targets([target]), its).total.backward()
    learns = (logits.grad != 0)[0].tolist()
    # By hand: 10 and 6 of 10 columns of the first two lie in the crowd, none of the third.
    inside = [False] * 4 if softmax else [True, False, True]
    assert learns == [inside, inside, [True] * len(inside)]
