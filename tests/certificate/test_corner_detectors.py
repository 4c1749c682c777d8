"""Detectors with a level of features that is constant, or moves beyond float32, from end to end."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lipdet.boxes import BoxCoding, Selection, select_detections
from lipdet.boxes.scores import Scores, SigmoidScores, SoftmaxScores, logit
from lipdet.certificate import UnknownLipschitz
from lipdet.certificate.conditions.certify import certified_up_to
from lipdet.certificate.conditions.ground_truth import independent_objects
from lipdet.certificate.constants.joint_outputs import PairwiseLogits, class_contrasts
from lipdet.certificate.constants.outputs import (
    bounds_of_outputs,
    output_bounds,
    propagate_detector,
)
from lipdet.certificate.verifier import verifier_of
from lipdet.config import DetectorConfig
from lipdet.detector.ssd import SSD, Head
from lipdet.types import Canvas

# Each is proven first.
pytestmark = pytest.mark.slow

SIZE = 8
SELECTION = Selection(0.2, 20)
OBJECT = torch.tensor([[0.0, 0, 4, 4]])
# On the object; over it and beside it, so that it suppresses the first but does not match.
BOXES = torch.tensor([[2.0, 2, 4, 4], [4.0, 2, 4, 4]])


class Levels(nn.Module):
    """Each level one convolution of the whole image."""

    def __init__(self, scales: tuple[float, ...]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.Conv2d(3, 2, SIZE, bias=False) for _ in scales)
        for level, scale in zip(self.levels, scales, strict=True):
            nn.init.constant_(level.weight, scale)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [level(images) for level in self.levels]


def _detector(
    scales: tuple[float, ...], scores: Scores, logits: list[list[float]], precise: bool = False
) -> SSD:
    """The default boxes are shared out to the levels; `logits` are those of a black image."""
    boxes = len(BOXES) // len(scales)
    heads = []
    for index in range(len(scales)):
        values = torch.tensor(logits[index * boxes : (index + 1) * boxes])
        head = Head(nn.Conv2d(2, values.numel(), 1), nn.Conv2d(2, 4 * boxes, 1), values.shape[1])
        nn.init.constant_(head.classification.weight, 1.0)
        nn.init.constant_(head.localisation.weight, 0.0)
        nn.init.zeros_(head.localisation.bias)
        head.classification.bias.data = values.flatten()
        heads.append(head)
    config = DetectorConfig(class_names=("a",), canvas=Canvas(SIZE, SIZE))
    detector = SSD(
        config, Levels(scales), heads, BOXES.clone(), BoxCoding(), scores, nn.Identity()
    ).eval()
    if precise:
        detector = detector.double()
        for level, scale in zip(detector.backbone.levels, scales, strict=True):
            nn.init.constant_(level.weight, scale)
    return detector


def _image(detector: SSD) -> Tensor:
    return torch.zeros(1, 3, SIZE, SIZE).to(detector.default_boxes)


@torch.no_grad()
def _is_found(detector: SSD, image: Tensor) -> bool:
    [found] = select_detections(detector(image), detector.decoder, SELECTION)
    return bool((found["boxes"] == OBJECT).all(dim=1).any())


@torch.no_grad()
def _is_certified(detector: SSD, *epsilons: float) -> list[bool]:
    """Whether the object is certified at each ε; what is refused is not."""
    image = _image(detector)
    try:
        verifier = verifier_of(detector, SELECTION, image.float())
    except UnknownLipschitz:
        return [False for _ in epsilons]
    zero, certified = torch.zeros(1, dtype=torch.int64), []
    for epsilon in epsilons:
        radius = torch.tensor([epsilon], dtype=torch.float64)
        candidates = verifier.candidates(detector(image), radius)
        found = verifier.certifiers(
            candidates, independent_objects(zero, zero, OBJECT), radius, 0.5
        )
        reached = certified_up_to(found, 1, [0.5])[0, 0]
        certified.append(bool(reached >= logit(SELECTION.score_floor)))
    return certified


CONSTANT = [(0.0, False), (1e-45, False), (1e-170, True), (1e-310, True)]


@pytest.mark.parametrize(("scale", "precise"), CONSTANT)
def test_a_level_of_constant_features(scale: float, precise: bool) -> None:
    """What fails without perturbation is not certified at ε = 0 either."""
    lost = _detector((scale,), SigmoidScores(1.0), [[1.0], [2.0]], precise)
    assert not _is_found(lost, _image(lost))
    assert _is_certified(lost, 0.0, 1.0) == [False, False]
    # Its outputs are the same for every image, so that what is detected stays.
    kept = _detector((scale,), SigmoidScores(1.0), [[2.0], [1.0]], precise)
    assert _is_found(kept, _image(kept))
    assert _is_certified(kept, 0.0, 1.0) == [True, True]


@pytest.mark.parametrize(("scale", "precise"), CONSTANT)
def test_constants_of_constant_features_are_numbers(scale: float, precise: bool) -> None:
    """No 0/0 in the constants of pairs."""
    detector = _detector((scale,), SigmoidScores(1.0), [[1.0], [2.0]], precise)
    propagation = propagate_detector(detector)
    bounds = bounds_of_outputs(detector, propagation)
    pairwise = PairwiseLogits(detector, propagation, bounds)
    a, b, labels = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0]])
    lifts = pairwise.lifts(a, b, labels)
    for found in (
        *(bounds.logits, bounds.offsets, bounds.offsets_joint, lifts.push),
        *(pairwise.constants(a, b, labels), pairwise.yielding(a, b, labels)),
        class_contrasts(detector, propagation, bounds),
    ):
        assert ((found >= 0) & (found < 1e-40)).all()


@pytest.mark.parametrize("scores", [SoftmaxScores(), SigmoidScores(1.0), SigmoidScores(1.0, 0.5)])
@pytest.mark.parametrize("factor", [7e18, 1e37])
def test_a_level_whose_bound_is_beyond_float32(scores: Scores, factor: float) -> None:
    """What may be no number is a candidate."""
    softmax = isinstance(scores, SoftmaxScores)
    low, high = ([3.0, 0.0], [0.0, 3.0]) if softmax else ([-3.0], [3.0])
    detector = _detector((1e-3, 0.0), scores, [high, low])
    detector.backbone.levels[1] = _loosely_bounded(factor)
    if softmax:
        nn.init.zeros_(detector.heads[1].classification.weight[:1])
    assert float(output_bounds(detector).logits[1].amax()) > factor**2
    assert _is_found(detector, _image(detector))
    # One pixel lifts the box beside the object above the one on it.
    attacked = _image(detector)
    attacked[0, 0, 0, 0] = 0.29
    assert not _is_found(detector, attacked)
    assert _is_certified(detector, 0.3) == [False]


@torch.no_grad()
def _loosely_bounded(factor: float) -> nn.Module:
    """40 times one pixel; the factors of what is left out, and of what is 0, count in the bound."""
    first, second = nn.Conv2d(3, 3, SIZE, bias=False), nn.Conv2d(3, 2, 1, bias=False)
    for layer in (first, second):
        nn.init.zeros_(layer.weight)
    first.weight[0, 0, 0, 0], first.weight[1, 0, 0, 0] = factor, 40.0
    second.weight[0, 1], second.weight[1, 2] = 1.0, factor
    return nn.Sequential(first, second).eval()


@pytest.mark.parametrize("weight", [torch.nan, torch.inf, 1e120])
def test_filters_that_are_no_numbers_are_refused(weight: float) -> None:
    detector = _detector((1.0,), SigmoidScores(1.0), [[1.0], [2.0]], precise=True)
    detector.heads[0].localisation.weight.data[0, 0] = weight
    with pytest.raises(UnknownLipschitz):
        verifier_of(detector, SELECTION)
