"""One forward pass of a detector as it is used: in eval mode, frozen, in its own precision."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn

from lipdet.boxes import Decoder, Selection, select_detections
from lipdet.detector.ssd import SSD
from lipdet.detector.tiles import halo_of, output_in_tiles
from lipdet.layers.base import drop_caches
from lipdet.types import Detections, Framing, RawOutput

# Images that pass at a time, if they have no more pixels together than these: two million take
# some hundreds of MB. A larger image passes in tiles, if its network can.
BATCH_SIZE = 64
MOST_PIXELS = 2**21


class Network(Protocol):
    """All that detections need: `SSD` has it, and so has an exported model."""

    @property
    def framing(self) -> Framing:
        """Return how pictures get onto its canvas."""

    @property
    def display(self) -> Selection:
        """Return which of its detections are shown."""

    @property
    def decoder(self) -> Decoder:
        """Return what turns the raw output into boxes, on the network's device."""

    def __call__(self, images: Tensor, /) -> RawOutput:
        """Map images (B, 3, H, W) in [0, 1] to raw output."""


def raw_output(network: Network, images: Tensor) -> RawOutput:
    """Return the outputs that certificates speak of, on the CPU.

    Weights are built anew: kept ones may have been left behind by a change without a trace.

    Args:
        network: its modes are as before afterwards.
        images: (B, 3, H, W) in [0, 1].
    """
    if isinstance(network, nn.Module):
        drop_caches(network)
    return forward(network, images)


def detect_images(network: Network, images: Tensor, selection: Selection) -> list[Detections]:
    """Return detections, on the CPU, on images (B, 3, H, W) in [0, 1]."""
    return select_detections(forward(network, images), decoder_on_cpu(network), selection)


def on_cpu(detector: SSD) -> SSD:
    """Return the detector for what is computed in float64: itself, or a copy on the CPU."""
    if detector.default_boxes.device.type == "cpu":
        return detector
    return copy.deepcopy(detector).cpu()


def decoder_on_cpu(network: Network) -> Decoder:
    """Return what turns outputs of `raw_output` into boxes."""
    decoder = network.decoder
    return decoder._replace(default_boxes=decoder.default_boxes.cpu())


@torch.no_grad()
def forward(network: Network, images: Tensor) -> RawOutput:
    """Return outputs on the CPU, of as many images at a time as MOST_PIXELS allows."""
    at_once = max(1, MOST_PIXELS // images[0, 0].numel())
    with frozen(network) if isinstance(network, nn.Module) else nullcontext():
        every = [
            RawOutput(*(one.cpu() for one in _pass(network, part)))
            for part in torch.split(images.to(network.decoder.default_boxes), at_once)
        ]
    return RawOutput(*(torch.cat(parts) for parts in zip(*every, strict=True)))


def _pass(network: Network, images: Tensor) -> RawOutput:
    """Return outputs of images; of one that is too large, in tiles with room for their halos."""
    if images[0, 0].numel() > MOST_PIXELS and isinstance(network, SSD):
        halo = halo_of(network)
        if halo is not None:
            stride = network.config.stride
            side = max(math.isqrt(MOST_PIXELS) - 2 * halo * stride, stride)
            return output_in_tiles(network, images, side, halo)
    return network(images)


# Models that are frozen now, by their ids; one thread at a time freezes or melts one.
_FROZEN: dict[int, _Ice] = {}
_FREEZING = threading.Lock()


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Freeze a model in eval mode; afterwards every module has its own mode again.

    Threads may freeze one model together: the last that leaves gives it back its modes.
    """
    with _FREEZING:
        ice = _FROZEN.get(id(model)) or _Ice(model)
        _FROZEN[id(model)] = ice
        ice.holders += 1
    try:
        yield
    finally:
        with _FREEZING:
            ice.holders -= 1
            if not ice.holders:
                del _FROZEN[id(model)]
                ice.melt()


class _Ice:
    """A model in eval mode without gradients of parameters, and what it was before.

    Attributes:
        holders: how many need it frozen.
    """

    def __init__(self, model: nn.Module) -> None:
        self.holders = 0
        self.modes = [(module, module.training) for module in model.modules()]
        self.asked = [one for one in model.parameters() if one.requires_grad]
        if any(mode for _, mode in self.modes):
            model.eval()
        for parameter in self.asked:
            parameter.requires_grad_(False)

    def melt(self) -> None:
        """Give every module its mode, and parameters their gradients, again."""
        # Parents come first, so that a child's own mode is the last word.
        for module, mode in self.modes:
            if module.training != mode:
                module.train(mode)
        for parameter in self.asked:
            parameter.requires_grad_(True)
