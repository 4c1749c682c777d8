"""Outputs of a large picture, computed in overlapping tiles: the same as in one pass.

Notable choices:
- How far a tile must overlap its neighbours is read off the layers as they are, not assumed.
- What is not known to look only that far is refused, and passes whole.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

from torch import Tensor, nn

from lipdet.detector.one_map import Backbone
from lipdet.detector.ssd import SSD
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
from lipdet.layers.conv import as_pair
from lipdet.layers.fold import is_changed
from lipdet.types import RawOutput

# What tiles can pass: each looks at what its kernel covers, or at one cell.
LOCAL = frozenset(
    {AOLConv2d, BCOPConv2d, OrthogonalConv1x1, OrthonormalConv2d, SpectralConv2d, UnitNormConv2d}
    | {nn.BatchNorm2d, nn.Conv2d, nn.ReLU, MaxMin, SpaceToDepth, ZeroPadChannels}
)


def halo_of(detector: SSD) -> int | None:
    """Return how many cells around one of the last map decide what the heads say there.

    In eval mode; from the layers as they are. None where a part, a hook or a replaced forward
    method may look anywhere.
    """
    body = detector.backbone
    if type(detector) is not SSD or type(body) is not Backbone or len(detector.heads) != 1:
        return None
    if any(map(is_changed, detector.modules())):
        return None
    heads = list(detector.heads[0].children())
    layers = [*itertools.chain(*body.stages), *heads]
    if not all(type(layer) in LOCAL and _keeps_size(layer) for layer in layers):
        return None
    pixels, step = 0, 1
    for layer in itertools.chain(*body.stages):
        step *= layer.block_size if isinstance(layer, SpaceToDepth) else 1
        pixels += step * _looks(layer)
    return math.ceil((pixels + step * max(map(_looks, heads))) / step)


def _looks(layer: nn.Module) -> int:
    """Count the cells to each side that a layer looks at."""
    return int(max(getattr(layer, "kernel_size", (1, 1)))) // 2


def _keeps_size(layer: Any) -> bool:
    """Return whether a convolution has an odd kernel, steps of 1, and zeros around the map."""
    kernel = getattr(layer, "kernel_size", None)
    return kernel is None or (
        not isinstance(layer.padding, str)
        and tuple(2 * one + 1 for one in as_pair(layer.padding)) == kernel
        and (layer.stride, layer.padding_mode) == ((1, 1), "zeros")
        and getattr(layer, "dilation", (1, 1)) == (1, 1)
    )


def output_in_tiles(detector: SSD, images: Tensor, side: int, halo: int) -> RawOutput:
    """Return a detector's outputs, computed in overlapping tiles.

    The same as in one pass, up to rounding: a tile has all that its inner cells depend on, and
    where it ends with the padded picture, so do the maps, which are padded with zeros there.

    Args:
        detector: with one map.
        images: (B, 3, H, W) in [0, 1].
        side: pixels of the inside of a tile.
        halo: cells around it, as of `halo_of`.
    """
    [head], body = detector.heads, detector.backbone
    assert isinstance(body, Backbone)
    padded, stride, (rows, columns) = body.pad(detector.normalize(images)), body.stride, body.cells
    step = max(1, side // stride)
    wholes: list[Tensor] = []
    for top, left in itertools.product(range(0, rows, step), range(0, columns, step)):
        (above, bottom, below), (before, right, after) = (
            (max(0, start - halo), min(start + step, count), min(start + step + halo, count))
            for start, count in ((top, rows), (left, columns))
        )
        tile = padded[..., above * stride : below * stride, before * stride : after * stride]
        parts = head(body.features(tile))
        if not wholes:
            boxes = parts.logits.shape[1] // ((below - above) * (after - before))
            wholes = [one.new_empty(len(one), rows, columns, boxes, one.shape[2]) for one in parts]
        for whole, part in zip(wholes, parts, strict=True):
            cells = part.unflatten(1, (below - above, after - before, -1))
            inside = cells[:, top - above : bottom - above, left - before : right - before]
            whole[:, top:bottom, left:right] = inside
    return RawOutput(*(whole.flatten(1, 3) for whole in wholes))
