"""Tinier SSD against the published network: every layer, the maps, the order of its outputs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lipdet.config import DetectorConfig
from lipdet.detector import SSD, build_detector
from lipdet.detector.tinier_ssd import LEVELS, RATIOS

# Source: ADI ai8x-training, models/ai85net-tinierssd.py: every layer is a 3×3 convolution with
# bias (9 · in · out + out) and an affine batch normalisation (2 · out), here in order.
# Name in the source, channels in, channels out.
BACKBONE = [
    ("fire1", 3, 32),
    ("fire2", 32, 32),
    ("fire3", 32, 64),
    ("fire4", 64, 64),
    ("fire5", 64, 64),
    ("fire6", 64, 64),
    ("fire7", 64, 128),
    ("fire8", 128, 32),
    ("fire9", 32, 32),
    ("fire10", 32, 32),
    ("conv12_1", 32, 16),
    ("conv12_2", 16, 16),
]
# Four boxes per cell: 4 · 11 logits, 4 · 4 offsets.
HEADS = [
    ("cl_fire8", 32, 44),
    ("loc_fire8", 32, 16),
    ("cl_fire9", 32, 44),
    ("loc_fire9", 32, 16),
    ("cl_fire10", 32, 44),
    ("loc_fire10", 32, 16),
    ("cl_conv12_2", 16, 44),
    ("loc_conv12_2", 16, 16),
]
LAYERS = BACKBONE + HEADS


@pytest.fixture(scope="module")
def detector() -> SSD:
    torch.manual_seed(0)
    return build_detector(DetectorConfig()).eval()


def convolutions(detector: SSD) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    modules = [m for m in detector.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    pairs = list(zip(modules[::2], modules[1::2], strict=True))
    assert all(isinstance(c, nn.Conv2d) and isinstance(n, nn.BatchNorm2d) for c, n in pairs)
    return pairs  # type: ignore[return-value]


def test_every_layer_and_337_968_parameters(detector: SSD) -> None:
    for (name, inputs, outputs), (conv, norm) in zip(LAYERS, convolutions(detector), strict=True):
        assert (conv.in_channels, conv.out_channels) == (inputs, outputs), name
        assert (conv.kernel_size, conv.padding, conv.stride) == ((3, 3), (1, 1), (1, 1)), name
        assert conv.bias is not None, name
        assert norm.affine, name
    assert sum(parameter.numel() for parameter in detector.parameters()) == 337_968


def test_feature_maps(detector: SSD) -> None:
    # Source: the shapes in the comments of the published forward method.
    features = detector.backbone(torch.zeros(2, 3, 74, 74))
    assert [tuple(one.shape) for one in features] == [
        (2, 32, 18, 18),
        (2, 32, 9, 9),
        (2, 32, 4, 4),
        (2, 16, 2, 2),
    ]
    assert [level.rows for level in LEVELS] == [18, 9, 4, 2]


def test_raw_output(detector: SSD) -> None:
    raw = detector(torch.rand(2, 3, 74, 74))
    # 4 · (18² + 9² + 4² + 2²) = 1,700 default boxes.
    assert raw.logits.shape == (2, 1700, 11)
    assert raw.offsets.shape == (2, 1700, 4)
    assert detector.default_boxes.shape == (1700, 4)
    assert "default_boxes" not in detector.state_dict()


def test_pixels_are_centred_once(detector: SSD) -> None:
    images = torch.tensor([0.0, 0.5, 1.0]).reshape(1, 3, 1, 1)
    assert detector.normalize(images).flatten().tolist() == [-1, 0, 1]
    seen: list[Tensor] = []
    handle = detector.backbone.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    detector(torch.ones(1, 3, 74, 74))
    handle.remove()
    assert (seen[0] == 1).all()


def test_default_boxes_by_hand(detector: SSD) -> None:
    # cx = (column + 0.5) / cells · 74, w = scale · √ratio · 74, h = scale / √ratio · 74.
    def box(cells: int, row: int, column: int, scale: float, ratio: float) -> list[float]:
        return [
            (column + 0.5) / cells * 74,
            (row + 0.5) / cells * 74,
            scale * math.sqrt(ratio) * 74,
            min(1.0, scale / math.sqrt(ratio)) * 74,
        ]

    expected = {
        0: box(18, 0, 0, 0.15, 0.85),
        3: box(18, 0, 0, 0.15, 0.25),
        4: box(18, 0, 1, 0.15, 0.85),
        4 * 18: box(18, 1, 0, 0.15, 0.85),
        4 * (18 * 5 + 7) + 1: box(18, 5, 7, 0.15, 0.6),
        1295: box(18, 17, 17, 0.15, 0.25),
        1296: box(9, 0, 0, 0.35, 0.85),
        1296 + 4 * (9 * 2 + 4) + 2: box(9, 2, 4, 0.35, 0.4),
        1620: box(4, 0, 0, 0.55, 0.85),
        1684: box(2, 0, 0, 0.725, 0.85),
        1699: box(2, 1, 1, 0.725, 0.25),
    }
    chosen = detector.default_boxes[list(expected)]
    torch.testing.assert_close(chosen, torch.tensor(list(expected.values())))
    # 0.725 / √0.25 = 1.45 and 0.55 / √0.25 = 1.1 are clamped to the image, as published.
    assert (detector.default_boxes[[1683, 1699], 3] == 74).all()
    assert detector.default_boxes[0].tolist() == pytest.approx(
        [2.0556, 2.0556, 10.234, 12.04], 1e-4
    )


@pytest.mark.parametrize("level", range(4))
@pytest.mark.parametrize("part", ["classification", "localisation"])
def test_outputs_stand_in_the_order_of_default_boxes(level: int, part: str) -> None:
    """One cell and one box of one level fire; the default box at that place is theirs."""
    torch.manual_seed(1)
    detector = build_detector(DetectorConfig()).eval()
    cells, values = LEVELS[level].rows, 11 if part == "classification" else 4
    row, column, ratio, value = cells - 1, cells // 2, 2, 3
    # The head sees features that are nought but in one cell, and passes that cell's to one output.
    features = [
        torch.zeros(1, 16 if one.rows == 2 else 32, one.rows, one.columns) for one in LEVELS
    ]
    features[level][0, 0, row, column] = 1
    with torch.no_grad():
        for head in detector.heads:
            for parameter in head.parameters():
                parameter.zero_()
        conv, norm = getattr(detector.heads[level], part)
        conv.weight[ratio * values + value, 0, 1, 1] = 1
        norm.weight.fill_(1)
    detector.backbone = Fixed(features)
    raw = detector(torch.zeros(1, 3, 74, 74))
    output = raw.logits if part == "classification" else raw.offsets
    [(anchor, place)] = torch.nonzero(output[0]).tolist()
    assert place == value
    scale = (0.15, 0.35, 0.55, 0.725)[level]
    expected = [(column + 0.5) / cells, (row + 0.5) / cells, scale * math.sqrt(RATIOS[ratio])]
    torch.testing.assert_close(detector.default_boxes[anchor, :3], torch.tensor(expected) * 74)


class Fixed(nn.Module):
    def __init__(self, features: list[Tensor]) -> None:
        super().__init__()
        self.features = features

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.features


@pytest.mark.parametrize("training", [True, False])
def test_every_default_box_starts_as_background(training: bool) -> None:
    torch.manual_seed(2)
    detector = build_detector(DetectorConfig()).train(training)
    scores = detector(torch.rand(4, 3, 74, 74)).logits.softmax(dim=2)
    # By hand: e⁵ / (e⁵ + 10) = 0.94 where the other logits are 0.
    assert scores[:, :, 0].mean().item() == pytest.approx(0.93, abs=0.02)
    assert (scores.argmax(dim=2) == 0).float().mean() > 0.999
