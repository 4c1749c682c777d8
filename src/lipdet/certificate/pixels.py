"""What no perturbation can change in a segmentation: each pixel alone, and all pixels together.

Proofs are in theory §13. Notable choices:
- Constants hold for pictures of any size: the kernels that run are bounded anew, without a size.
- Cells share a perturbation. The pixels of a cell read its features and no others, so that what a
  perturbation spends on one cell it cannot spend on the next: of ε² each cell gets a share, and
  flips no pixel whose squared radius is more. Pixels of one cell share a budget of margins, too.
- Which shares are the worst is bounded by duality: a price of ε² separates the cells, and each
  price gives a bound. So none is wrong, however well it was chosen.
- An adversary of IoU loses found pixels, at 1 each, and gains others, at the ratio that is to be
  bounded. Over a data set each picture has an ε of its own.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lipdet.certificate.constants.rounding import largest_difference
from lipdet.detector.forward import frozen
from lipdet.errors import InputError, UnknownLipschitz
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

# Ratios at which an adversary of IoU is bounded: between two of them its bound is a line, as what
# it bounds is convex.
RATIOS = np.linspace(0.0, 1.0, 9)
# Powers of ten between which a price of shares is looked for, in so many halvings.
PRICES, PRICE_STEPS = (-2.0, 8.0), 10
# Above any rounding of sums of counts.
ROUNDING = 1e-6

Floats = NDArray[np.float64]
Mask = NDArray[np.uint8]
Chosen = NDArray[np.bool_]


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
            that is not finite, or a map of another size; or a function that layers call was
            replaced.
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


class Shares(NamedTuple):
    """The shares of ε² that it takes to flip pixels, of (cells, pixels of a cell).

    Attributes:
        alone: what the share of a pixel's cell has to be before it flips; infinite where all of ε²
            is too little.
        together: what the pixels of a cell that flip take of its share, added up; infinite where
            all of ε² is too little for one of them alone.
    """

    alone: Floats
    together: Floats

    def where(self, chosen: Chosen, other: Shares) -> Shares:
        """Return these of the chosen pixels, and those of others elsewhere."""
        alone = np.where(chosen, self.alone, other.alone)
        return Shares(alone, np.where(chosen, self.together, other.together))

    def of(self, pixels: int) -> Floats:
        """Return the shares (cells, pixels) at which 1, 2, … pixels of a cell can flip.

        Infinite beyond all of them.
        """
        dearest, cheapest = (np.sort(one, axis=1)[:, :pixels] for one in self)
        return np.maximum(dearest, np.cumsum(cheapest, axis=1))


class Reach(NamedTuple):
    """What perturbations of one size can flip.

    Attributes:
        become: to make a pixel a class, one of each.
        flip: to make it any other class.
        cells: of the picture.
    """

    become: Sequence[Shares]
    flip: Shares
    cells: Cells


def reach(found: PixelMargins, bounds: PixelBounds, epsilon: float) -> Reach:
    """Return what perturbations with ‖δ‖ ≤ ε can do.

    *Claim.* With s_c, the share of cell c, Σ s_c ≤ 1; p in c becomes j only if alone[j, p] ≤ s_c;
    and together[j, p], summed over the pixels of c that flip, is at most s_c. *Proof.* Let s_c be
    (‖Δf_c‖ / εL)², where Δf_c is by how much the features of c move and L the constant of the body.
    Cells share no feature, so the s_c add up to (‖Δf‖ / εL)² ≤ 1. The logits of p read f_c alone:
    z_j − z_y rises by at most pairwise·ε·√s_c. Let Q take the mean over the classes from the logits
    of each pixel. If p flips to j, its margin m_p is at most Δz_j − Δz_y = (QΔz)_j − (QΔz)_y ≤
    √2·‖(QΔz)_p‖, by Cauchy and Schwarz. So Σ m_p² ≤ 2·‖QΔz‖² over the pixels of c, which is at most
    (C·ε)²·s_c. ∎

    Raises:
        InputError: ε is no number, negative or infinite.
    """
    if not 0 <= epsilon < math.inf:
        raise InputError("ε must be a finite number that is not negative.")
    become = []
    for radii, margins in zip(found.radii, found.margins, strict=True):
        near = radii <= epsilon
        alone = np.where(near, _squared(radii, epsilon), np.inf)
        together = np.where(near, of_budget(margins, bounds, epsilon), np.inf)
        become.append(Shares(*(found.cells.split(one, np.inf) for one in (alone, together))))
    alone, together = (functools.reduce(np.minimum, kind) for kind in zip(*become, strict=True))
    return Reach(become, Shares(alone, together), found.cells)


def of_budget(margins: Floats, bounds: PixelBounds, epsilon: float) -> Floats:
    """Return what pixels with some margins take of the budget of their cell, or of all cells."""
    return _squared(margins, bounds.contrasts * epsilon)


def _squared(values: Floats, unit: float) -> Floats:
    """Return the squares of values in a unit: 0 of a 0, whatever the unit."""
    with np.errstate(divide="ignore", over="ignore"):
        there = np.divide(values, unit, out=np.zeros_like(values), where=values > 0)
        squares: Floats = np.square(there)
    return squares


def most_flipped(found: PixelMargins, bounds: PixelBounds, epsilon: float) -> int:
    """Return how many pixels of a picture can be of another class at most."""
    everywhere = np.ones(found.predicted.shape, np.bool_)
    return most_lost(reach(found, bounds, epsilon), everywhere)


def most_lost(reach: Reach, chosen: Chosen) -> int:
    """Return how many of the chosen pixels (H, W) can be of another class at most."""
    lost = reach.cells.split(chosen, False)
    [bound] = _worst(reach, lost, np.zeros_like(lost), 0, np.zeros(1))
    return min(math.floor(float(bound) + ROUNDING), most_by_budget(reach.flip.together[lost]))


def most_by_budget(together: Floats) -> int:
    """Return how many of some pixels (n,) can flip if all cells share one budget of 1.

    The cheapest come first: any k of them cost at least what the k cheapest do.
    """
    total = np.cumsum(np.sort(together[together <= SLACK]))
    return int(np.searchsorted(total, SLACK, side="right"))


class Overlap(NamedTuple):
    """Of a class in pictures: intersection, union, and what adversaries can take and add.

    Attributes:
        intersection: pixels of the class that are found.
        union: pixels that are of the class, or found as it.
        harm: (len(RATIOS),): at each ratio ρ a bound of lost + ρ·gained, where pixels are lost
            that are found, and others gained that do not belong to the class.
    """

    intersection: int
    union: int
    harm: Floats

    def beside(self, other: Overlap) -> Overlap:
        """Return that of both sets of pictures, each picture being perturbed for itself."""
        both = self.intersection + other.intersection, self.union + other.union
        return Overlap(*both, self.harm + other.harm)


NOTHING = Overlap(0, 0, np.zeros(len(RATIOS)))


def overlap(found: PixelMargins, mask: Mask, label: int, reach: Reach) -> Overlap:
    """Return what an adversary can do to the IoU of a class.

    IoU falls with each found pixel that is lost (the union keeps it) and with each pixel of another
    class that is gained; all else raises it or leaves it.
    """
    is_class, shown = mask == label, found.predicted == label
    known = mask != IGNORED
    right, outside = is_class & shown, known & ~is_class & ~shown
    lost, gained = (reach.cells.split(one, False) for one in (right, outside))
    return Overlap(
        int(right.sum()),
        int((known & (is_class | shown)).sum()),
        _worst(reach, lost, gained, label, RATIOS),
    )


def least_iou(whole: Overlap) -> float | None:
    """Return the lowest IoU of a class over pictures that are perturbed each for itself.

    It is pooled: intersections over unions of all pictures. *Proof.* Let ρ be a ratio at which
    intersection − ρ·union ≥ harm(ρ). Then intersection − lost ≥ ρ·(union + gained), whatever is
    lost and gained: the IoU stays at least ρ. The largest such ρ is looked up. As the maximum of
    lost + ρ·gained is convex in ρ, lines between its bounds bound it. ∎

    Returns:
        None if no pixel is of the class or found as it, and none can be.
    """
    if not whole.union:
        return 0.0 if whole.harm[-1] > ROUNDING else None
    # Bounds by prices that were not quite the best may fall where what they bound cannot.
    harm = np.maximum.accumulate(whole.harm)
    left = whole.intersection - RATIOS * whole.union - harm
    if left[0] <= 0:
        return 0.0
    # It falls with the ratio, so that the sign changes once.
    return float(np.interp(0.0, left[::-1], RATIOS[::-1]))


def _worst(reach: Reach, lost: Chosen, gained: Chosen, label: int, ratios: Floats) -> Floats:
    """Bound lost + ρ·gained for each of some ratios ρ in [0, 1].

    *Proof.* For a price λ ≥ 0 of shares, Σ_c value_c ≤ λ + Σ_c (value_c − λ·s_c), as the shares add
    up to at most 1; and each cell takes its best share by itself. ∎

    Args:
        reach: of the picture.
        lost: (cells, pixels) that count 1 if they become any other class.
        gained: (cells, pixels) others, which count ρ if they become `label`.
        label: a class.
        ratios: (R,) ρ.

    Returns:
        (R,).
    """
    beyond = np.full(lost.shape, np.inf)
    nothing = Shares(beyond, beyond)
    ways = [reach.flip.where(lost, nothing)]
    if gained.any():
        ways += [reach.become[label].where(gained, nothing)]
        ways += [ways[0].where(lost, ways[1])]
    there = np.isfinite(ways[-1].alone)
    cells, pixels = there.any(axis=1), int(there.sum(axis=1).max(initial=0))
    steps = [Shares(one.alone[cells], one.together[cells]).of(pixels) for one in ways]
    shares = np.concatenate([np.zeros((len(steps[0]), 1)), *steps], axis=1)
    owner = np.repeat(range(len(steps) + 1), [1, *[pixels] * len(steps)])
    order = np.argsort(shares, axis=1)
    shares, owner = np.take_along_axis(shares, order, axis=1), owner[order]
    counts = [np.cumsum(owner == one + 1, axis=1) for one in range(len(steps))]
    first, second = counts[0], np.zeros_like(counts[0])
    if len(ways) > 1:
        # The kinds share the budget of their cell, of which each alone would have all.
        first = np.minimum(counts[0], counts[2])
        second = np.minimum(counts[1], counts[2] - first)
    first, second, shares = (np.where(shares <= SLACK, one, 0.0) for one in (first, second, shares))
    return np.array([_lowest_bound(first + ratio * second, shares) for ratio in ratios])


def _lowest_bound(values: Floats, shares: Floats) -> float:
    """Return the lowest bound of the values' sum over the cells that one of the tried prices gives.

    A larger price takes smaller shares; the best one takes all of them together.

    Args:
        values: (cells, n) of the choices of each cell.
        shares: (cells, n) that they take, up to 1.
    """
    lowest, rows = float(values.max(axis=1).sum()), np.arange(len(values))
    low, high = PRICES
    for _ in range(PRICE_STEPS):
        middle = (low + high) / 2
        left = values - 10**middle * shares
        chosen = left.argmax(axis=1)
        lowest = min(lowest, 10**middle * SLACK + float(left[rows, chosen].sum()))
        if shares[rows, chosen].sum() > 1:
            low = middle
        else:
            high = middle
    return lowest
