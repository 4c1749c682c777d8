"""The certified detector: an SSD in which every output is 1-Lipschitz in the image.

Notable choices:
- Every layer of the body preserves the norm of gradients: orthogonal convolutions and MaxMin;
  space-to-depth and semi-orthogonal 1×1 convolutions instead of pooling. That, not the bound, is
  what decides whether such a network learns (THEORY §3); two other kinds of layers are there to
  show it.
- No normalisation, not even of pixel values, and no scale anywhere: a class logit or an offset is
  a unit filter on 1-Lipschitz features. What an offset of 1 means is left to the box coding, and
  what a logit of 1 means to the temperature of the scores.
- The four offsets of a default box have orthonormal filters, so that they move in a ball.
- Pictures are padded evenly, and default boxes stand at the true centres of their cells.
- With heads on one map, all outputs are linear in the same features, so that what two of them can
  do together is known; of outputs on two maps only the sum of both is. The four maps that SSD has
  are there to compare with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from lipdet.boxes import BoxCoding, SigmoidScores
from lipdet.config import DetectorConfig
from lipdet.detector.default_boxes import DefaultBoxLevel, default_boxes, sides
from lipdet.detector.ssd import SSD, Head
from lipdet.detector.tinier_ssd import RATIOS
from lipdet.errors import InputError
from lipdet.layers import (
    AOLConv2d,
    BCOPConv2d,
    MaxMin,
    OrthogonalConv1x1,
    OrthonormalConv2d,
    SpaceToDepth,
    SpectralConv2d,
    UnitNormConv2d,
    ZeroPadChannels,
)

FIRST_STRIDE = 4
SMALLEST_IMAGE = 32
TEMPERATURE = 20.0
# Every default box starts as background.
PRIOR_LOGIT = -0.4
# What an offset of 1 means, in sides of the default box: smaller is easier to certify (an offset
# moves by at most ε), larger is easier to learn. A centre that is off by d sides costs an IoU of
# about 2d, a side that is off by a factor of exp(d) only d.
CENTRE_VARIANCE, SIZE_VARIANCE = 0.25, 0.5


class Layout(NamedTuple):
    """Which maps there are.

    Attributes:
        blocks: on each map, from the finest.
        sides: of the default boxes on each map that has a head, the last ones; as fractions of the
            image.
    """

    blocks: tuple[int, ...]
    sides: tuple[tuple[tuple[float, float], ...], ...]


PYRAMID = Layout((4, 4, 3, 2), tuple(sides(scale, RATIOS) for scale in (0.15, 0.35, 0.55, 0.725)))
# Medians of eight clusters of digits in training crops by IoU, in pixels of 74.
DIGITS = (
    *((14.5, 27.0), (19.2, 33.8), (15.6, 51.5), (24.3, 39.4)),
    *((20.5, 47.1), (23.8, 59.5), (29.2, 50.2), (34.3, 63.0)),
)
ONE_MAP = Layout((3, 6), (tuple((width / 74, height / 74) for width, height in DIGITS),))


class Body(NamedTuple):
    """What a detector is made of: 3×3 convolutions and activations, on some maps."""

    convolution: Callable[..., nn.Module]
    activation: type[nn.Module]
    layout: Layout


BODIES = {
    "one-map-ssd": Body(BCOPConv2d, MaxMin, ONE_MAP),
    "orthogonal-ssd": Body(BCOPConv2d, MaxMin, PYRAMID),
    "aol-ssd": Body(AOLConv2d, MaxMin, PYRAMID),
    "spectral-ssd": Body(SpectralConv2d, nn.ReLU, PYRAMID),
}


def lipschitz_ssd(config: DetectorConfig) -> SSD:
    """Build a detector whose architecture is a key of BODIES.

    It has `config.width` channels on the finest map and twice as many on the others.

    Raises:
        InputError: the image is too small for four maps or odd, or the width too small or odd.
    """
    _check(config)
    body = BODIES[config.architecture]
    backbone = LipschitzBackbone(body, config.image_size, config.width)
    classes = len(config.class_names)
    levels = [
        DefaultBoxLevel(cells, boxes, stride)
        for cells, boxes, stride in zip(
            backbone.cells, body.layout.sides, backbone.strides, strict=True
        )
    ]
    heads = [
        Head(
            classification=_classifier(channels, len(boxes), classes),
            localisation=OrthonormalConv2d(channels, len(boxes) * 4, 3, padding=1),
            logits=classes,
        )
        for channels, boxes in zip(backbone.channels, body.layout.sides, strict=True)
    ]
    return SSD(
        config,
        backbone=backbone,
        heads=heads,
        default_boxes=default_boxes(levels, config.image_size),
        coding=BoxCoding(CENTRE_VARIANCE, SIZE_VARIANCE),
        scores=SigmoidScores(TEMPERATURE),
        normalize=nn.Identity(),
    )


def _check(config: DetectorConfig) -> None:
    limits = {"image_size": SMALLEST_IMAGE, "width": 3 * FIRST_STRIDE**2}
    for name, least in limits.items():
        value = getattr(config, name)
        if value < least or value % 2:
            raise InputError(
                f"{config.architecture} needs an even {name} of at least {least}, not {value}."
            )


class LipschitzBackbone(nn.Module):
    """Stages of space-to-depth and 1-Lipschitz blocks, each map half as fine as the one before.

    Attributes:
        cells: side of each map that is returned.
        strides: pixels from one cell to the next, per map; the maps are centred on the image.
        channels: of each map.
    """

    def __init__(self, body: Body, image_size: int, width: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        self.returned = len(body.layout.sides)
        cells, strides, widths = [], [], []
        side, stride, channels = image_size, 1, 3
        for level, blocks in enumerate(body.layout.blocks):
            step, out = (FIRST_STRIDE, width) if level == 0 else (2, 2 * width)
            # A map that is halved again needs an even side.
            pad = _even_padding(side, step if level + 1 == len(body.layout.blocks) else 2 * step)
            side, stride = (side + 2 * pad) // step, stride * step
            resize = [nn.ZeroPad2d(pad), SpaceToDepth(step)]
            deep = channels * step**2
            mix = ZeroPadChannels(out) if level == 0 else OrthogonalConv1x1(deep, out)
            self.stages.append(nn.Sequential(*resize, mix, *_blocks(body, out, blocks)))
            cells.append(side)
            strides.append(stride)
            widths.append(out)
            channels = out
        self.cells, self.strides, self.channels = (
            of_maps[-self.returned :] for of_maps in (cells, strides, widths)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, S, S) to maps (B, C, n, n); for S = 74, n = 10, or 20, 10, 6, 3."""
        features, maps = images, []
        for stage in self.stages:
            features = stage(features)
            maps.append(features)
        return maps[-self.returned :]


def _even_padding(side: int, multiple: int) -> int:
    """The smallest padding on both sides of an even side after which `multiple` divides it."""
    return -side % multiple // 2


def _blocks(body: Body, channels: int, count: int) -> list[nn.Module]:
    return [
        layer
        for _ in range(count)
        for layer in (body.convolution(channels, channels, 3, padding=1), body.activation())
    ]


def _classifier(channels: int, boxes: int, classes: int) -> UnitNormConv2d:
    layer = UnitNormConv2d(channels, boxes * classes, 3, padding=1)
    assert layer.bias is not None
    nn.init.constant_(layer.bias, PRIOR_LOGIT)
    return layer
