"""A detector small enough for dense Jacobians."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lipdet.boxes import BoxCoding, SoftmaxScores
from lipdet.config import DetectorConfig
from lipdet.detector.ssd import SSD, Head
from lipdet.layers import BCOPConv2d, MaxMin, UnitNormConv2d
from lipdet.types import Canvas
from tests.certificate.helpers import randomised

CLASSES = 2
BOXES = 2


class TwoLevels(nn.Module):
    """8 × 8 images to maps of 4 × 4 × 4 and 4 × 2 × 2."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        )
        self.second = nn.Sequential(BCOPConv2d(4, 4, 2, 2), MaxMin())

    def forward(self, images: Tensor) -> list[Tensor]:
        first = self.first(images)
        return [first, self.second(first)]


def small_detector() -> SSD:
    """Return a detector of 40 default boxes, with one head of each supported form."""
    torch.manual_seed(0)

    def conv_bn(channels: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(4, channels, 3, padding=1), nn.BatchNorm2d(channels))

    logits, offsets = BOXES * (CLASSES + 1), BOXES * 4
    heads = [
        Head(conv_bn(logits), conv_bn(offsets), CLASSES + 1),
        Head(UnitNormConv2d(4, logits, 3, padding=1), nn.Conv2d(4, offsets, 1), CLASSES + 1),
    ]
    config = DetectorConfig(class_names=("a", "b"), canvas=Canvas(8, 8))
    detector = SSD(config, TwoLevels(), heads, torch.rand(40, 4), BoxCoding(), SoftmaxScores())
    changed = randomised(detector)
    assert isinstance(changed, SSD)
    return changed
