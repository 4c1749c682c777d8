"""Detectors with one map and fitted default boxes, for pictures of any size.

Of the certified kind every output is 1-Lipschitz in the image. Notable choices:
- Every layer of its body preserves the norm of gradients: orthogonal convolutions and MaxMin;
  space-to-depth and semi-orthogonal 1×1 convolutions instead of pooling. That, not the bound, is
  what decides whether such a network learns (theory §3); two other kinds of layers are there to
  show it.
- It starts at the identity: what of the pixels reaches the heads is there from the first step.
- No normalisation, not even of pixel values, and no scale anywhere: a class logit or an offset is
  a unit filter on 1-Lipschitz features. What an offset of 1 means is left to the box coding, and
  what a logit of 1 means to the temperature of the scores.
- The four offsets of a default box have orthonormal filters, so that they move in a ball.
- Pictures are padded with zeros to multiples of the stride, and default boxes stand at the true
  centres of their cells.
- All heads read one map, unlike SSD's: so all outputs are linear in the same features, and what two
  of them can do together is known. Of outputs on two maps only the sum of both is, and of two boxes
  that compete in NMS either could then pass the other (theory §6, tightening 2).

The plain kind is the same with ordinary layers: the price of robustness, on equal ground.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from lipdet.boxes import BoxCoding, SigmoidScores
from lipdet.config import DetectorConfig
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
from lipdet.types import Canvas

FIRST_STRIDE = 4
SMALLEST_SIDE = 32
# Blocks on the maps of strides 4, 8 and 16, up to the one that the heads read.
BLOCKS = {4: (6,), 8: (3, 6), 16: (3, 3, 6)}
# Smaller is easier to certify (an offset moves by at most ε), larger is easier to learn.
OFFSET_UNIT = 0.25


@dataclass(frozen=True)
class Kind:
    """The parts of the detectors of one architecture.

    Attributes:
        block: channels to the layers of a block.
        mixing: from the channels of one map to those of the next.
        classification: (channels, outputs, cells per side) to the layer of class logits.
        localisation: the same of offsets.
        temperature: of the scores.
        prior: logit with which every default box starts, as background.
        class_margin: of the scores, in logits.
        nms_iou: overlap from which on a box suppresses others.
        bounded: whether every output is 1-Lipschitz in the image.
    """

    block: Callable[[int], list[nn.Module]]
    mixing: Callable[[int, int], nn.Module]
    classification: Callable[[int, int, int], nn.Module]
    localisation: Callable[[int, int, int], nn.Module]
    temperature: float
    prior: float
    class_margin: float
    nms_iou: float
    bounded: bool = True


def _identical(channels: int) -> list[nn.Module]:
    convolution = BCOPConv2d(channels, channels, 3, padding=1)
    convolution.dirac_()
    return [convolution, MaxMin()]


def _identical_mixing(channels: int, out: int) -> nn.Module:
    convolution = OrthogonalConv1x1(channels, out)
    convolution.dirac_()
    return convolution


def _certified(block: Callable[[int], list[nn.Module]]) -> Kind:
    # Margin and overlap: chosen by scripts/sweep_selection.py for digits, on pictures that training
    # held out; every training chooses anew at its end. Boxes that suppress what barely overlaps
    # them leave a perturbation less room for false positives.
    return Kind(
        block,
        mixing=_identical_mixing,
        classification=lambda channels, out, size: UnitNormConv2d(
            channels, out, size, padding=size // 2
        ),
        localisation=lambda channels, out, size: OrthonormalConv2d(
            channels, out, size, padding=size // 2
        ),
        temperature=20.0,
        prior=-0.4,
        class_margin=0.15,
        nms_iou=0.2,
    )


KINDS = {
    "orthogonal-ssd": _certified(_identical),
    "aol-ssd": _certified(lambda c: [AOLConv2d(c, c, 3, padding=1), MaxMin()]),
    "spectral-ssd": _certified(lambda c: [SpectralConv2d(c, c, 3, padding=1), nn.ReLU()]),
    "plain-ssd": Kind(
        block=lambda c: [
            nn.Conv2d(c, c, 3, padding=1, bias=False),
            nn.BatchNorm2d(c),
            nn.ReLU(),
        ],
        mixing=lambda channels, out: nn.Conv2d(channels, out, 1),
        classification=lambda channels, out, size: nn.Conv2d(
            channels, out, size, padding=size // 2
        ),
        localisation=lambda channels, out, size: nn.Conv2d(channels, out, size, padding=size // 2),
        temperature=1.0,
        prior=-4.6,
        class_margin=3.0,
        nms_iou=0.3,
        bounded=False,
    ),
}


def one_map_ssd(config: DetectorConfig) -> SSD:
    """Build a detector whose architecture is a key of KINDS.

    It has `config.width` channels on the map of stride 4, and twice as many on each that is half as
    fine.

    Raises:
        InputError: the canvas or the width is too small, the stride is not one of BLOCKS, or there
            are no default boxes.
    """
    _check(config)
    kind = KINDS[config.architecture]
    body = Backbone(kind, config.canvas, config.width, config.stride)
    classes, canvas = len(config.class_names), config.canvas
    level = DefaultBoxLevel(
        *body.cells,
        tuple((width / canvas.width, height / canvas.height) for width, height in config.sides),
        stride=config.stride,
        shift=body.shift,
    )
    boxes, size = len(config.sides), config.head_size
    head = Head(
        classification=kind.classification(body.channels, boxes * classes, size),
        localisation=kind.localisation(body.channels, boxes * 4, size),
        logits=classes,
    )
    bias = head.classification.bias
    assert isinstance(bias, Tensor)
    nn.init.constant_(bias, kind.prior)
    margin, nms_iou = config.class_margin, config.nms_iou
    return SSD(
        config,
        backbone=body,
        heads=[head],
        default_boxes=default_boxes([level], canvas),
        coding=BoxCoding.of_unit(config.offset_unit or OFFSET_UNIT),
        scores=SigmoidScores(kind.temperature, kind.class_margin if margin is None else margin),
        normalize=nn.Identity(),
        nms_iou=kind.nms_iou if nms_iou is None else nms_iou,
    )


def _check(config: DetectorConfig) -> None:
    limits = {
        "image_size": (min(config.canvas), SMALLEST_SIDE),
        "width": (config.width, 3 * FIRST_STRIDE**2),
    }
    for name, (value, least) in limits.items():
        if value < least or (name == "width" and value % 2):
            even = "an even width" if name == "width" else name
            raise InputError(
                f"{config.architecture} needs {even} of at least {least}, not {value}."
            )
    if config.stride not in BLOCKS:
        strides = ", ".join(map(str, BLOCKS))
        raise InputError(f"{config.architecture} needs a stride of {strides}, not {config.stride}.")
    if not config.sides:
        raise InputError(f"{config.architecture} needs default boxes; training fits them.")


class Backbone(nn.Module):
    """Stages of space-to-depth and blocks, each map half as fine as the one before.

    Attributes:
        cells: rows and columns of the last map.
        shift: pixels (right, down) from the image's centre to that of the last map.
        channels: of the last map.
        stride: pixels from one cell of the last map to the next.
    """

    def __init__(self, kind: Kind, canvas: Canvas, width: int, stride: int) -> None:
        super().__init__()
        missing = Canvas(*(-side % stride for side in canvas))
        above, left = missing.height // 2, missing.width // 2
        below, right = missing.height - above, missing.width - left
        self.pad = nn.ZeroPad2d((left, right, above, below))
        self.cells = Canvas(*(math.ceil(side / stride) for side in canvas))
        self.shift = ((right - left) / 2, (below - above) / 2)
        self.channels, self.stride = 3, stride
        self.stages = nn.ModuleList()
        for level, blocks in enumerate(BLOCKS[stride]):
            step, out = (FIRST_STRIDE, width) if level == 0 else (2, 2 * self.channels)
            deep = self.channels * step**2
            mixing = ZeroPadChannels(out) if level == 0 else kind.mixing(deep, out)
            layers = [layer for _ in range(blocks) for layer in kind.block(out)]
            self.stages.append(nn.Sequential(SpaceToDepth(step), mixing, *layers))
            self.channels = out

    def forward(self, images: Tensor) -> list[Tensor]:
        """Turn pictures (B, 3, H, W) into one map (B, C, rows, columns)."""
        return [self.features(self.pad(images))]

    def features(self, padded: Tensor) -> Tensor:
        """Turn padded images, or tiles that are whole cells of them, into the last map."""
        for stage in self.stages:
            padded = stage(padded)
        return padded
