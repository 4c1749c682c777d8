"""The certified detector: an SSD in which every output is 1-Lipschitz in the image.

Notable choices:
- Every layer of the body preserves the norm of gradients: orthogonal convolutions and MaxMin;
  space-to-depth and semi-orthogonal 1×1 convolutions instead of pooling. That, not the bound, is
  what decides whether such a network learns (theory §3); two other kinds of layers are there to
  show it.
- No normalisation, not even of pixel values, and no scale anywhere: a class logit or an offset is
  a unit filter on 1-Lipschitz features. What an offset of 1 means is left to the box coding, and
  what a logit of 1 means to the temperature of the scores.
- The four offsets of a default box have orthonormal filters, so that they move in a ball.
- Pictures are padded evenly, and default boxes stand at the true centres of their cells.
- All heads read one map, unlike SSD's: so all outputs are linear in the same features, and what two
  of them can do together is known. Of outputs on two maps only the sum of both is, and of two boxes
  that compete in NMS either could then pass the other (theory §6, tightening 2).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from lipdet.boxes import BoxCoding, SigmoidScores
from lipdet.config import IMAGE_SIZE, DetectorConfig
from lipdet.detector.default_boxes import DefaultBoxLevel, default_boxes
from lipdet.detector.ssd import SSD, Head
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
# In logits, and an IoU: chosen by scripts/sweep_selection.py on pictures that training held out.
# Boxes that suppress what barely overlaps them leave a perturbation less room for false positives.
CLASS_MARGIN, NMS_THRESHOLD = 0.15, 0.2
# Every default box starts as background.
PRIOR_LOGIT = -0.4
# Smaller is easier to certify (an offset moves by at most ε), larger is easier to learn.
OFFSET_UNIT = 0.25

# Blocks on the map of strides 4, and on that of 8, which the heads read.
BLOCKS = (3, 6)
# Default boxes of each cell, in pixels of 74: medians of eight clusters, by IoU, of the digits in
# training crops; found once, by a script that was not kept.
SIDES = (
    *((14.5, 27.0), (19.2, 33.8), (15.6, 51.5), (24.3, 39.4)),
    *((20.5, 47.1), (23.8, 59.5), (29.2, 50.2), (34.3, 63.0)),
)

# What a block is: a 3×3 convolution and an activation.
BODIES: dict[str, tuple[Callable[..., nn.Module], type[nn.Module]]] = {
    "orthogonal-ssd": (BCOPConv2d, MaxMin),
    "aol-ssd": (AOLConv2d, MaxMin),
    "spectral-ssd": (SpectralConv2d, nn.ReLU),
}


def lipschitz_ssd(config: DetectorConfig) -> SSD:
    """Build a detector whose architecture is a key of BODIES.

    It has `config.width` channels on the finer map and twice as many on the other.

    Raises:
        InputError: the image is too small or odd, or the width too small or odd.
    """
    _check(config)
    body = LipschitzBackbone(config.architecture, config.image_size, config.width)
    classes = len(config.class_names)
    sides = tuple((width / IMAGE_SIZE, height / IMAGE_SIZE) for width, height in SIDES)
    head = Head(
        classification=_classifier(body.channels, classes),
        localisation=OrthonormalConv2d(body.channels, len(SIDES) * 4, 3, padding=1),
        logits=classes,
    )
    return SSD(
        config,
        backbone=body,
        heads=[head],
        default_boxes=default_boxes(
            [DefaultBoxLevel(body.cells, sides, body.stride)], config.image_size
        ),
        coding=BoxCoding.of_unit(config.offset_unit or OFFSET_UNIT),
        scores=SigmoidScores(TEMPERATURE, CLASS_MARGIN),
        normalize=nn.Identity(),
        nms_iou=NMS_THRESHOLD,
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
        cells: side of the last map.
        stride: pixels from one of its cells to the next; it is centred on the image.
        channels: of the last map.
    """

    def __init__(self, architecture: str, image_size: int, width: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        self.cells, self.stride, self.channels = image_size, 1, 3
        for level, blocks in enumerate(BLOCKS):
            step, out = (FIRST_STRIDE, width) if level == 0 else (2, 2 * width)
            # A map that is halved again needs an even side.
            pad = _even_padding(self.cells, step if level + 1 == len(BLOCKS) else 2 * step)
            deep = self.channels * step**2
            resize = [nn.ZeroPad2d(pad), SpaceToDepth(step)]
            mix = ZeroPadChannels(out) if level == 0 else OrthogonalConv1x1(deep, out)
            self.stages.append(nn.Sequential(*resize, mix, *_blocks(architecture, out, blocks)))
            self.cells, self.stride = (self.cells + 2 * pad) // step, self.stride * step
            self.channels = out

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, S, S) to one map (B, C, n, n); n = 10 for S = 74."""
        features = images
        for stage in self.stages:
            features = stage(features)
        return [features]


def _even_padding(side: int, multiple: int) -> int:
    """The smallest padding on both sides of an even side after which `multiple` divides it."""
    return -side % multiple // 2


def _blocks(architecture: str, channels: int, count: int) -> list[nn.Module]:
    convolution, activation = BODIES[architecture]
    return [
        layer
        for _ in range(count)
        for layer in (convolution(channels, channels, 3, padding=1), activation())
    ]


def _classifier(channels: int, classes: int) -> UnitNormConv2d:
    layer = UnitNormConv2d(channels, len(SIDES) * classes, 3, padding=1)
    assert layer.bias is not None
    nn.init.constant_(layer.bias, PRIOR_LOGIT)
    return layer
