"""`Detector.certify` notices that its network has changed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from lipdet import Detector
from lipdet.boxes import SigmoidScores
from lipdet.checkpoint import LoadedDetector
from lipdet.detector import SSD
from tests.certificate.detectors import small_detector


@pytest.fixture
def detector() -> Detector:
    return Detector(LoadedDetector("small", small_detector(), {}))


def _first(network: SSD) -> nn.Parameter:
    return next(network.heads[0].classification.parameters())


def _steeper(network: SSD) -> None:
    with torch.no_grad():
        for parameter in network.heads.parameters():
            parameter.mul_(2.0)


def _in_place(network: SSD) -> None:
    _first(network).data.mul_(1.5)  # which autograd does not count


def _loaded(network: SSD) -> None:
    network.load_state_dict({name: 0.5 * value for name, value in network.state_dict().items()})


def _hotter(network: SSD) -> None:
    network.scores = SigmoidScores(2.0)


def _other_boxes(network: SSD) -> None:
    network.default_boxes += 1.0


def _other_overlap(network: SSD) -> None:
    network.nms_iou = 0.9


def _precise(network: SSD) -> None:
    network.double()


CHANGES: list[Callable[[SSD], None]] = [
    *(_steeper, _in_place, _loaded, _hotter, _other_boxes, _other_overlap, _precise),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(detector: Detector, change: Callable[[SSD], None]) -> None:
    before = detector._verifier
    assert detector._verifier is before
    change(detector.network)
    after = detector._verifier
    assert after is not before
    # Oracle: a detector that never had another network.
    fresh = Detector(LoadedDetector("fresh", detector.network, {}))._verifier
    assert torch.equal(after.bounds.logits, fresh.bounds.logits)
    assert after.decoder.scores == fresh.decoder.scores
    assert after.decoder.nms_iou == fresh.decoder.nms_iou
    assert torch.equal(after.decoder.default_boxes, fresh.decoder.default_boxes)
    assert after.rounding_known == fresh.rounding_known
