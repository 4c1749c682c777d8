"""A fully convolutional encoder-decoder from pictures of any size to class logits of each pixel.

Of the certified kind the body is 1-Lipschitz and every logit is, too. Notable choices:
- From the finest map on nothing is lost on the way down: space-to-depth moves cells to channels,
  depth-to-space moves them back, and both are permutations. Of large pictures the finest map has
  one cell for 16×16 pixels and sees the means of 4×4, which makes steps many times as fast.
- A skip is a split. Half of the channels goes down and comes back with as many channels, the other
  half waits beside it. The two halves share no coordinate, so what is 1-Lipschitz below is
  1-Lipschitz beside (theory §13.1), without a factor of √½ and without a merging layer.
- As half of the channels at half the resolution are twice the channels, every level costs as much.
- It starts at the identity, as the certified detectors do (`lipdet.detector.one_map`), and has no
  scale anywhere: what a logit of 1 means is left to the temperature. Grey is 0: to subtract it is
  free, and what all pixels of a cell have in common would drown what tells them apart.
- The head has filters of unit norm and gives the logits of all pixels of a cell at once, from the
  features of that cell alone. So each logit is 1-Lipschitz, and what a perturbation spends on one
  cell it cannot spend on another (theory §13.4).

The plain kind is the same with ordinary layers: the price of robustness. Its head reads 3×3 cells,
as it has no certificate to lose by that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from lipdet.config import SegmenterConfig
from lipdet.detector.one_map import FIRST_STRIDE, KINDS
from lipdet.errors import InputError
from lipdet.layers import ScaledAvgPool2d, SpaceToDepth, UnitNormConv2d, ZeroPadChannels
from lipdet.types import Framing

# Blocks before and behind the next level, on the two finest maps, and those on the coarsest.
BLOCKS = (2, 2)
LAST_BLOCKS = 2
GREY = 0.5
# The values of a cell of the finest map.
LEAST_WIDTH = 3 * FIRST_STRIDE**2


@dataclass(frozen=True)
class Kind:
    """The parts of the segmenters of one architecture.

    Attributes:
        block: channels to the layers of a block.
        head: (channels, outputs) to the layer of logits.
        temperature: by which the loss multiplies logits.
    """

    block: Callable[[int], list[nn.Module]]
    head: Callable[[int, int], nn.Module]
    temperature: float


SEGMENTERS = {
    "orthogonal-segmenter": Kind(
        KINDS["orthogonal-ssd"].block,
        lambda channels, out: UnitNormConv2d(channels, out, 1),
        temperature=10.0,
    ),
    "plain-segmenter": Kind(
        KINDS["plain-ssd"].block,
        lambda channels, out: nn.Conv2d(channels, out, 3, padding=1),
        temperature=1.0,
    ),
}


class Beside(nn.Module):
    """Half of the channels goes through a module, and the other half waits beside it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) with an even C to the same shape."""
        through, waiting = x.chunk(2, dim=1)
        return torch.cat([self.inner(through), waiting], dim=1)


class Segmenter(nn.Module):
    """Pictures to the logits of each pixel.

    Attributes:
        config: what it was built from.
        temperature: by which the loss multiplies logits.
        cell: side in pixels of a cell of the finest map.
        body: padded pictures to features of that map.
        head: features to the logits of the pixels of each cell, class by class.
    """

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        kind = SEGMENTERS[config.architecture]
        classes = len(config.class_names)
        self.config, self.temperature = config, kind.temperature
        self.cell = config.cell
        self.body = nn.Sequential(
            ScaledAvgPool2d(config.cell // FIRST_STRIDE),
            SpaceToDepth(FIRST_STRIDE),
            ZeroPadChannels(config.width),
            *_level(kind, config.width),
        )
        self.head = kind.head(config.width, classes * config.cell**2)
        _start_alike(self.head, classes)

    @property
    def framing(self) -> Framing:
        """Return how pictures get onto its canvas."""
        return self.config.framing

    def forward(self, images: Tensor) -> Tensor:
        """Turn pictures (B, 3, H, W) in [0, 1] of any size into logits (B, K, H, W).

        What is missing to multiples of the stride is grey around the picture, and left out again.
        """
        height, width = images.shape[2:]
        above, left = self.missing(height, width)[:2]
        features = self.body(self.padded(images))
        logits = functional.pixel_shuffle(self.head(features), self.cell)
        return logits[:, :, above : above + height, left : left + width]

    def padded(self, images: Tensor) -> Tensor:
        """Return pictures (B, 3, H, W) less grey, with 0 around them to multiples of the stride."""
        above, left, below, right = self.missing(*images.shape[2:])
        return functional.pad(images - GREY, (left, right, above, below))

    def missing(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Return the rows and columns that a picture lacks: above, left, below, right."""
        stride = self.cell * 2 ** len(BLOCKS)
        down, across = -height % stride, -width % stride
        return down // 2, across // 2, down - down // 2, across - across // 2


def build_segmenter(config: SegmenterConfig) -> Segmenter:
    """Return a segmenter with random weights, as `config` describes it.

    Raises:
        InputError: the width is too small or no multiple of 8, or there are fewer than two classes.
    """
    if config.width < LEAST_WIDTH or config.width % 8:
        raise InputError(
            f"{config.architecture} needs a width of at least {LEAST_WIDTH} that 8 divides, not "
            f"{config.width}."
        )
    if len(config.class_names) < 2:
        raise InputError(
            f"{config.architecture} needs two classes or more, not {len(config.class_names)}."
        )
    return Segmenter(config)


@torch.no_grad()
def _start_alike(head: nn.Module, classes: int) -> None:
    """Let all classes start with the same filters, so that no class is preferred anywhere.

    Filters of unit norm cannot be small, and random ones would start with steep random logits.
    """
    filters = head.raw if isinstance(head, UnitNormConv2d) else head.weight
    assert isinstance(filters, Tensor)
    filters.copy_(torch.cat([filters[: len(filters) // classes]] * classes))


def _level(kind: Kind, channels: int, blocks: tuple[int, ...] = BLOCKS) -> list[nn.Module]:
    """Return the layers of a level and, beside its second half, of all that are coarser."""
    if not blocks:
        return _blocks(kind, channels, LAST_BLOCKS)
    inner = nn.Sequential(
        SpaceToDepth(2), *_level(kind, 2 * channels, blocks[1:]), nn.PixelShuffle(2)
    )
    before, behind = (_blocks(kind, channels, blocks[0]) for _ in range(2))
    return [*before, Beside(inner), *behind]


def _blocks(kind: Kind, channels: int, count: int) -> list[nn.Module]:
    return [layer for _ in range(count) for layer in kind.block(channels)]
