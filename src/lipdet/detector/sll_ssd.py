"""The reference experiment's robust detectors: a body of SDP-based layers between two edges.

The experiment names its parts (SLL body, and entry and exit layers that are spectral-norm,
standard or L2-normalised convolutions; about 7 million parameters) but not their arrangement. Ours
keeps Tinier SSD's feature maps and default boxes.

Notable choices:
- The body is 1-Lipschitz: SLL blocks keep channels and size, and max-pooling with kernel = stride
  halves the map; no batch normalisation anywhere.
- The edges are the entry convolution and the heads. Biases, which cost nothing, let every default
  box start as background.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lipdet.boxes import BoxCoding, SoftmaxScores
from lipdet.config import DetectorConfig
from lipdet.detector.default_boxes import default_boxes
from lipdet.detector.ssd import SSD, Head
from lipdet.detector.tinier_ssd import (
    BACKGROUND_LOGIT,
    LEVELS,
    OFFSET_UNIT,
    RATIOS,
    check_canvas,
)
from lipdet.layers import DisjointMaxPool2d, L2NormConv2d, SLLBlock, SpectralConv2d

# Blocks before each pooling to the maps of 37 (no head), 18, 9, 4 and 2 cells.
BLOCKS = (1, 4, 3, 2, 2)
# The sides that halving, rounded down, turns into those maps.
SIDES = range(72, 76)
EDGES: dict[str, Callable[..., nn.Module]] = {
    "sll-spectral": SpectralConv2d,
    "sll-conv": nn.Conv2d,
    "sll-l2": L2NormConv2d,
}


def sll_ssd(config: DetectorConfig) -> SSD:
    """Build a detector whose architecture is a key of EDGES, `config.width` channels wide.

    Raises:
        InputError: its stages do not accept the image size.
    """
    check_canvas(config, SIDES)
    edge = EDGES[config.architecture]
    logits = len(config.class_names) + 1
    heads = [
        Head(
            classification=_classifier(edge, config.width, logits),
            localisation=edge(config.width, len(RATIOS) * 4, 3, padding=1),
            logits=logits,
        )
        for _ in LEVELS
    ]
    return SSD(
        config,
        backbone=SLLBackbone(edge(3, config.width, 3, padding=1), config.width),
        heads=heads,
        default_boxes=default_boxes(LEVELS, config.canvas),
        coding=BoxCoding.of_unit(config.offset_unit or OFFSET_UNIT),
        scores=SoftmaxScores(),
    )


class SLLBackbone(nn.Module):
    """An entry layer, then stages of pooling and SLL blocks; maps of 18, 9, 4 and 2 cells."""

    def __init__(self, entry: nn.Module, width: int) -> None:
        super().__init__()
        self.entry = entry
        self.stages = nn.ModuleList(
            nn.Sequential(DisjointMaxPool2d(2), *(SLLBlock(width) for _ in range(blocks)))
            for blocks in BLOCKS
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Turn (B, 3, 74, 74) into maps (B, width, n, n) for n = 18, 9, 4, 2."""
        features = self.entry(images)
        maps = []
        for stage in self.stages:
            features = stage(features)
            maps.append(features)
        return maps[1:]


def _classifier(edge: Callable[..., nn.Module], width: int, logits: int) -> nn.Module:
    layer = edge(width, len(RATIOS) * logits, 3, padding=1)
    assert isinstance(layer.bias, nn.Parameter)
    with torch.no_grad():
        layer.bias.zero_()
        layer.bias[::logits] = BACKGROUND_LOGIT
    return layer
