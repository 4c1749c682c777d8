"""What is certified in one precision holds in the other, where rounding alone decides.

A detector of two boxes whose float32 logits are off by up to 2⁻¹²: the backbone adds 4096 to the
first channel, where float32 numbers are 2⁻¹¹ apart, and the head takes it away again. The second
channel is exact. One box matches the object; the other suppresses it if it comes first.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from benchmarks.attack_the_certificate import matched_scores
from lipdet.boxes import AP_SELECTION, BoxCoding, SigmoidScores, select_detections
from lipdet.certificate.conditions.certify import certified_up_to
from lipdet.certificate.conditions.ground_truth import ground_truth_of
from lipdet.certificate.constants.rounding import measured_rounding, proven_rounding, rounding_of
from lipdet.certificate.geometry.box_range import centers_and_sides
from lipdet.certificate.verifier import Verifier, verifier_of
from lipdet.config import DetectorConfig
from lipdet.detector import SSD
from lipdet.detector.forward import raw_output
from lipdet.detector.ssd import Head
from lipdet.types import Canvas, Target
from tests.certificate.detectors import small_detector

pytestmark = pytest.mark.slow

STEP = 2.0**-11  # between float32 numbers above 4096
SIZE = 64
ON_OBJECT, BESIDE = (10.0, 10.0, 30.0, 30.0), (18.0, 10.0, 38.0, 30.0)


class Rounds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.conv.weight.data = torch.eye(3)[:, :, None, None]
        self.conv.bias.data = torch.tensor([4096.0, 0, 0])  # type: ignore[union-attr]

    def forward(self, images: Tensor) -> list[Tensor]:
        maps: Tensor = self.conv(images)
        return [maps[:, :, :1, :1]]


def _conv(channels: int, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    conv = nn.Conv2d(3, channels, 1)
    conv.weight.data, conv.bias.data = weight[:, :, None, None], bias  # type: ignore[union-attr]
    return conv


def _detector() -> SSD:
    logits = _conv(2, torch.eye(3)[:2], torch.tensor([-4096.0, 0]))
    offsets = _conv(8, torch.zeros(8, 3), torch.zeros(8))
    boxes = centers_and_sides(torch.tensor([ON_OBJECT, BESIDE]))
    config = DetectorConfig(class_names=("a",), canvas=Canvas(SIZE, SIZE))
    heads = [Head(logits, offsets, 1)]
    scores = SigmoidScores(1.0)
    return SSD(config, Rounds(), heads, boxes, BoxCoding(), scores, nn.Identity()).eval()


class Tie(NamedTuple):
    """An image (1, 3, S, S) in which the right box comes first in one precision only."""

    image: Tensor
    first_in: torch.dtype
    second_in: torch.dtype


def _tie(on_object: float, beside: float, first: torch.dtype, second: torch.dtype) -> Tie:
    image = torch.zeros(1, 3, SIZE, SIZE)
    # Float32 numbers around 0.5 are 2⁻²⁴ apart: these are told apart well.
    image[0, :2, 0, 0] = 0.5 + STEP * torch.tensor([on_object, beside])
    return Tie(image, first, second)


TIES = {
    # Rounded up in float32, past the other.
    "from float32 to float64": _tie(0.6, 0.8, torch.float32, torch.float64),
    # Rounded down in float32, below the other.
    "from float64 to float32": _tie(0.4, 0.2, torch.float64, torch.float32),
}
TARGET = Target(boxes=torch.tensor([ON_OBJECT]), labels=torch.tensor([0]))


def _is_certified(verifier: Verifier, detector: SSD, image: Tensor) -> bool:
    radius = torch.zeros(1, dtype=torch.float64)
    candidates = verifier.candidates(raw_output(detector, image), radius)
    found = verifier.certifiers(candidates, ground_truth_of([TARGET]), radius, 0.5)
    return bool(certified_up_to(found, 1, [0.5]) > -torch.inf)


def _is_found(detector: SSD, image: Tensor) -> bool:
    """The oracle: the detector itself, and the metric's own matcher."""
    found = select_detections(raw_output(detector, image), detector.decoder, AP_SELECTION)
    [scores] = matched_scores([TARGET], found, ("a",), 0.5)
    return bool(scores[0] > 0)


@pytest.mark.parametrize("tie", TIES.values(), ids=TIES.keys())
def test_the_slack_decides_where_precisions_differ(tie: Tie) -> None:
    first, second = (_detector().to(dtype) for dtype in (tie.first_in, tie.second_in))
    assert _is_found(first, tie.image)
    assert not _is_found(second, tie.image)
    verifier = verifier_of(first, AP_SELECTION, tie.image)
    assert not _is_certified(verifier, first, tie.image)
    # Without the slack it would be certified, even at ε = 0, and lost in the other precision.
    assert _is_certified(replace(verifier, rounding=0.0), first, tie.image)


def test_a_clear_case_is_certified_in_both() -> None:
    clear = _tie(200.0, 0.0, torch.float32, torch.float64)
    for dtype in (torch.float32, torch.float64):
        detector = _detector().to(dtype)
        verifier = verifier_of(detector, AP_SELECTION, clear.image)
        assert _is_certified(verifier, detector, clear.image)


def test_float64_is_proven_and_covers_float32_too() -> None:
    image = TIES["from float32 to float64"].image
    measured = measured_rounding(_detector(), image)
    assert measured > STEP / 4
    found = rounding_of(_detector().double(), image)
    assert found.known == "proven in float64"
    assert found.bound == measured > proven_rounding(_detector(), torch.float64)
    assert rounding_of(_detector(), image) == (measured, "measured in float32")


def test_without_a_proof_nothing_is_called_proven() -> None:
    # Its BatchNorm has no bound of rounding.
    detector = small_detector().eval().double()
    found = rounding_of(detector, torch.rand(2, 3, 8, 8))
    assert found.known == "measured in float32"
    assert found.bound > 1e-8
