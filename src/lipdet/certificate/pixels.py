"""What no perturbation can change in a segmentation: each pixel alone, and all pixels together.

Proofs are in theory §13. Notable choices:
- Constants hold for pictures of any size: the kernels that run are bounded anew, without a size.
- Both promises are used at once. A pixel flips only if the perturbation reaches its own radius, and
  all that flip share one budget. Alone each promises less; how much is kept beside it.
- An adversary of accuracy, or of what is found of a class, takes the cheapest pixels first, so that
  sorting is exact. One of IoU divides the budget between pixels to lose and pixels to gain; all
  divisions are tried. Over a data set each picture has a budget of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

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
from lipdet.lipschitz.state import refuse_replaced
from lipdet.norms import SLACK, conv_norm, gram_norm
from lipdet.segmenter import Segmenter
from lipdet.segmenter.network import Beside
from lipdet.types import IGNORED

# What moves, drops or compares numbers, or averages disjoint ones; each of constant 1.
_NORM_ONE = (MaxMin, ScaledAvgPool2d, SpaceToDepth, ZeroPadChannels, nn.PixelShuffle)

Floats = NDArray[np.float64]
Mask = NDArray[np.uint8]


@dataclass(frozen=True)
class PixelBounds:
    """Constants of a segmenter, in [0, 1] pixel units.

    Attributes:
        pairwise: (K, K, cell, cell) of the difference of two logits of a pixel, by its place in its
            cell.
        joint: of the map to all logits of all pixels.
        contrasts: C: squared margins of pixels that flip add up to at most (C·ε)².
        rounding: κ, how far a logit may lie from that of real arithmetic.
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
            that is not finite; or a function that layers call was replaced.
    """
    refuse_replaced()
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
    if type(head) is not nn.Conv2d or not _is_simple(head):
        raise UnknownLipschitz("Nothing can be certified with another head than a convolution.")
    classes, cell = len(segmenter.config.class_names), segmenter.cell
    kernel = head.weight.detach().double()
    by_class = kernel.reshape(classes, cell**2, -1)
    centred = (by_class - by_class.mean(dim=0)).reshape(kernel.shape)
    apart = (by_class[:, None] - by_class[None]).norm(dim=3)
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


class PixelMargins(NamedTuple):
    """The distance of each pixel of a picture from each other class.

    Attributes:
        predicted: (H, W) class with the highest logit.
        margins: (K, H, W) float64: how much its logit is ahead of each, less what rounding may
            hide; infinite for the class itself.
        radii: (K, H, W): norm of a perturbation below which the pixel cannot become that class.
    """

    predicted: NDArray[np.int64]
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
    j, z_j − z_y has to rise by the margin, and as computed both logits of both pictures may be off
    by κ: in real arithmetic it rises by margin − 4κ at least. It rises by at most pairwise·‖δ‖. ∎

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
    margins = (top.double() - logits - 4 * bounds.rounding).clamp_min(0)
    margins.scatter_(0, predicted[None], math.inf)
    above, left = segmenter.missing(height, width)[:2]
    rows = (torch.arange(height) + above) % segmenter.cell * segmenter.cell
    columns = (torch.arange(width) + left) % segmenter.cell
    places = (rows[:, None] + columns) * classes + predicted
    table = bounds.pairwise.permute(1, 2, 3, 0).flatten(1)
    constants = table.index_select(1, places.flatten()).reshape(margins.shape)
    radii = margins / constants
    # Two classes with the same filters change places by rounding alone; 0 / 0 is no number.
    radii.masked_fill_((constants == 0) & (margins == 0), 0.0)
    return PixelMargins(predicted.numpy(), margins.numpy(), radii.numpy())


class Reach(NamedTuple):
    """The costs at which perturbations of one size can change a picture.

    Attributes:
        flip: (H, W): of the budget what it costs to make a pixel any other class; infinite if none.
        become: (K, H, W): what it costs to make it that class.
        budget: what all flipped pixels together may cost.
    """

    flip: Floats
    become: Floats
    budget: float


def reach(
    found: PixelMargins,
    bounds: PixelBounds,
    epsilon: float,
    single: bool = True,
    joint: bool = True,
) -> Reach:
    """Return what perturbations with ‖δ‖ ≤ ε can do, by both promises or by one of them.

    *Claim.* Flipped pixels cost at most the budget together. *Proof.* Let Q take the mean over the
    classes from the logits of each pixel. If p flips from y to j, its margin m_p is at most
    Δz_j − Δz_y = (QΔz)_j − (QΔz)_y ≤ √2·‖(QΔz)_p‖, by Cauchy and Schwarz. So Σ m_p² ≤ 2·‖QΔz‖², and
    QΔz is a convolution with centred filters of what the body moved, at most (C·ε)²/2. ∎
    """
    reachable = found.radii <= epsilon if single else np.isfinite(found.radii)
    become = np.where(reachable, np.square(found.margins), np.inf)
    budget = (bounds.contrasts * epsilon) ** 2 * SLACK if joint else np.inf
    return Reach(become.min(axis=0), become, budget)


def most(costs: Floats, budget: float) -> int:
    """Return how many of some pixels (n,) can flip: the cheapest ones first.

    *Proof.* Any k of them cost at least what the k cheapest do. ∎
    """
    finite = np.sort(costs[np.isfinite(costs)])
    return int(np.searchsorted(np.cumsum(finite), budget, side="right"))


class Front(NamedTuple):
    """Of a class in a picture: intersection, union, and what an adversary can take and add.

    Attributes:
        intersection: pixels of the class that are found.
        union: pixels that are of the class, or found as it.
        lost: (n,) found pixels that are lost, 0, 1, 2, …
        gained: (n,) most pixels of other classes that can become it beside these.
    """

    intersection: int
    union: int
    lost: NDArray[np.int64]
    gained: NDArray[np.int64]


def front(found: PixelMargins, mask: Mask, label: int, reach: Reach) -> Front:
    """Return all divisions of the budget that can be the worst for the IoU of a class.

    IoU falls with each found pixel that is lost (the union keeps it) and with each pixel of another
    class that is gained; all else raises it or leaves it. Of a number each, the cheapest are taken.
    """
    is_class, shown = mask == label, found.predicted == label
    known = mask != IGNORED
    lose = np.sort(reach.flip[is_class & shown])
    gain = np.sort(reach.become[label][known & ~is_class & ~shown])
    spent = np.concatenate([[0.0], np.cumsum(lose[np.isfinite(lose)])])
    spent = spent[spent <= reach.budget]
    added = np.cumsum(gain[np.isfinite(gain)])
    left = reach.budget - spent if math.isfinite(reach.budget) else np.full(len(spent), np.inf)
    return Front(
        int((is_class & shown).sum()),
        int((known & (is_class | shown)).sum()),
        np.arange(len(spent)),
        np.searchsorted(added, left, side="right"),
    )


def least_iou(fronts: Sequence[Front]) -> float | None:
    """Return the lowest IoU of a class over pictures that are perturbed each for itself.

    It is pooled: intersections over unions of all pictures. *Proof.* (Dinkelbach 1967.) For a ratio
    λ that is reached, let each picture minimise intersection − λ·union. If the sum of the minima is
    0, no choice has a lower ratio; else the choice made has one. There are finitely many. ∎

    Returns:
        None where the union can be empty without a pixel of the class.
    """
    whole = sum(one.union for one in fronts)
    ratio = sum(one.intersection for one in fronts) / whole if whole else math.inf
    while fronts:
        above = below = 0
        for one in fronts:
            kept, union = one.intersection - one.lost, one.union + one.gained
            at = int(np.argmin(kept - min(ratio, 1.0) * union))
            above, below = above + int(kept[at]), below + int(union[at])
        if not below or above / below >= ratio:
            break
        ratio = above / below
    return ratio if math.isfinite(ratio) else None


def largest_reach(found: PixelMargins, bounds: PixelBounds, epsilon: float) -> int:
    """Return how many pixels of a picture can be of another class at most."""
    costs = reach(found, bounds, epsilon)
    return most(costs.flip.ravel(), costs.budget)
