"""What no perturbation can change in a segmentation, pixel by pixel: constants, margins and radii.

Proofs are in theory §13.1 and §13.2; `flips` says what holds of all pixels together. Constants hold
for pictures of any size: the kernels that run are bounded anew, without a size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lipdet.certificate.constants.rounding import largest_difference
from lipdet.detector.forward import frozen
from lipdet.errors import UnknownLipschitz
from lipdet.layers import MaxMin, ScaledAvgPool2d, SpaceToDepth, ZeroPadChannels, fold
from lipdet.layers.base import drop_caches
from lipdet.lipschitz.same_function import is_as_defined
from lipdet.lipschitz.state import refuse_interference
from lipdet.norms import SLACK, conv_norm, gram_norm
from lipdet.segmenter import Segmenter
from lipdet.segmenter.network import Beside

# What moves, drops or compares numbers, or averages disjoint ones; each of constant 1.
_NORM_ONE = (MaxMin, ScaledAvgPool2d, SpaceToDepth, ZeroPadChannels, nn.PixelShuffle)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PixelBounds:
    """Constants of a segmenter, in [0, 1] pixel units.

    Attributes:
        pairwise: (K, K, cell, cell) of the difference of two logits of a pixel, by its place in its
            cell.
        joint: of the map to all logits of all pixels.
        contrasts: C: squared margins of pixels that flip add up to at most (C·ε)², in each cell to
            C² times its share of ε².
        rounding: κ, how far a logit may lie from that of real arithmetic, at pictures in [0, 1].
    """

    pairwise: Tensor
    joint: float
    contrasts: float
    rounding: float


def bounds_of_pixels(segmenter: Segmenter, images: Tensor) -> PixelBounds:
    """Bound a segmenter, once for all certificates.

    Args:
        segmenter: in eval mode.
        images: (B, 3, H, W) in [0, 1], at which the rounding of a forward pass is measured, besides
            noise; a batch as large as those to be certified.

    Raises:
        UnknownLipschitz: it has a layer without a bound, code or hooks of another's, or an output
            that is not finite, or a map of another size; or what layers compute is changed from
            outside.
    """
    refuse_interference()
    if type(segmenter) is not Segmenter or not is_as_defined(segmenter):
        raise UnknownLipschitz(
            "Nothing can be certified of a segmenter of another class, or with hooks or code of "
            "another's."
        )
    if {one.dtype for one in segmenter.parameters()} != {torch.float32}:
        raise UnknownLipschitz("Rounding is measured in float32 alone: call float() first.")
    drop_caches(segmenter)
    folded = fold(segmenter)
    assert isinstance(folded, Segmenter)
    body = _bound(folded.body, "body")
    head = folded.head
    if type(head) is not nn.Conv2d or not _is_simple(head) or not _reads_one_cell(head):
        raise UnknownLipschitz("Nothing can be certified with a head that is no 1×1 convolution.")
    classes, cell = len(segmenter.config.class_names), segmenter.cell
    kernel = head.weight.detach().double()
    by_class = kernel.reshape(classes, cell**2, -1)
    centred = (by_class - by_class.mean(dim=0)).reshape(kernel.shape)
    apart = (by_class[:, None] - by_class[None]).norm(dim=3)
    _check_cells(segmenter, images[:1])
    with frozen(segmenter):
        rounding = largest_difference(segmenter, folded.double(), images)
    return PixelBounds(
        pairwise=apart.reshape(classes, classes, cell, cell) * (body * SLACK),
        joint=body * conv_norm(kernel) * SLACK,
        contrasts=math.sqrt(2) * body * conv_norm(centred) * SLACK,
        rounding=rounding,
    )


def _bound(module: nn.Module, name: str) -> float:
    """Bound a folded part of a body, made of known classes alone, for every size of picture."""
    if type(module) is nn.Sequential:
        return math.prod(_bound(part, f"{name}.{at}") for at, part in enumerate(module))
    if type(module) is Beside:
        return max(1.0, _bound(module.inner, f"{name}.inner"))
    if type(module) is nn.Conv2d and _is_simple(module):
        # Kernels are orthogonal up to rounding: two steps are within 1e-4, and take a second.
        return gram_norm(module.weight, steps=2)
    if type(module) in _NORM_ONE:
        return 1.0
    kind = type(module).__name__
    raise UnknownLipschitz(f'Nothing can be certified: "{name}" is a {kind}, which has no bound.')


def _is_simple(conv: nn.Conv2d) -> bool:
    """Return whether a convolution is what norms without a size are of."""
    plain = conv.stride, conv.dilation, conv.groups, conv.padding_mode
    return plain == ((1, 1), (1, 1), 1, "zeros")


@torch.no_grad()
def _check_cells(segmenter: Segmenter, images: Tensor) -> None:
    """Refuse a body whose map has other cells than those that the logits are split into."""
    with frozen(segmenter):
        padded = segmenter.padded(images)
        found = segmenter.body(padded).shape[2:]
    if tuple(found) != tuple(size // segmenter.cell for size in padded.shape[2:]):
        raise UnknownLipschitz("Nothing can be certified of a body with a map of another size.")


def _reads_one_cell(conv: nn.Conv2d) -> bool:
    return conv.kernel_size == (1, 1) and conv.padding == (0, 0)


class Cells(NamedTuple):
    """Where the cells of the finest map lie in a picture.

    Attributes:
        side: in pixels.
        above: rows of pixels that the first cells lack.
        left: columns that they lack.
    """

    side: int
    above: int
    left: int

    def split(self, values: NDArray[Any], missing: float) -> NDArray[Any]:
        """Return values (H, W) as (cells, side²), with `missing` where a cell lacks pixels."""
        around = [
            (before, -(before + size) % self.side)
            for before, size in zip((self.above, self.left), values.shape, strict=True)
        ]
        padded = np.pad(values, around, constant_values=missing)
        rows, columns = (size // self.side for size in padded.shape)
        blocks = padded.reshape(rows, self.side, columns, self.side).swapaxes(1, 2)
        return blocks.reshape(rows * columns, self.side**2)


class PixelMargins(NamedTuple):
    """The distance of each pixel of a picture from each other class.

    Attributes:
        predicted: (H, W) class with the highest logit.
        cells: that share the pixels.
        margins: (K, H, W) float64: how much its logit is ahead of each, less what rounding may
            hide; infinite for the class itself.
        radii: (K, H, W): norm of a perturbation below which the pixel cannot become that class.
    """

    predicted: NDArray[np.int64]
    cells: Cells
    margins: Floats
    radii: Floats

    @property
    def radius(self) -> Floats:
        """The norm of a perturbation below which a pixel keeps its class, (H, W)."""
        least: Floats = self.radii.min(axis=0)
        return least


def margins_of(logits: Tensor, segmenter: Segmenter, bounds: PixelBounds) -> PixelMargins:
    """Return margins and radii of one picture.

    *Claim.* If ‖δ‖ is less than radius[p], pixel p keeps its class. *Proof.* For p to become class
    j, z_j − z_y has to rise from z_j − z_y, and as computed both logits of both pictures may be off
    by κ: in real arithmetic it rises by at least z_y − z_j − 4κ, which is the margin, or the margin
    is 0 and nothing is claimed. It rises by at most pairwise·‖δ‖. ∎

    Args:
        logits: (K, H, W).
        segmenter: that gave them.
        bounds: of it.

    Raises:
        UnknownLipschitz: a logit is not finite.
    """
    if not logits.isfinite().all():
        raise UnknownLipschitz("Logits are not all finite, so nothing is certified.")
    classes, height, width = logits.shape
    top, predicted = logits.max(dim=0)
    # A difference of numbers of float32 is one of float64.
    margins = (top.double() - logits.double()).sub_(4 * bounds.rounding).clamp_min_(0)
    margins.scatter_(0, predicted[None], math.inf)
    above, left = segmenter.missing(height, width)[:2]
    cell = segmenter.cell
    rows = (torch.arange(height) + above) % cell * cell
    columns = (torch.arange(width) + left) % cell
    places = (rows[:, None] + columns) * classes + predicted
    table = bounds.pairwise.permute(1, 2, 3, 0).flatten(1)
    constants = table.index_select(1, places.flatten()).reshape(margins.shape)
    radii = margins / constants
    # Two classes with the same filters change places by rounding alone; 0 / 0 is no number.
    radii.masked_fill_((constants == 0) & (margins == 0), 0.0)
    cells = Cells(cell, above % cell, left % cell)
    return PixelMargins(predicted.numpy(), cells, margins.numpy(), radii.numpy())
