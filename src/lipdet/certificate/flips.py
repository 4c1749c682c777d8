"""How many pixels of a picture one perturbation can flip at most, as its cells share it.

Proofs are in theory §13.3 and §13.4. Notable choices:
- The pixels of a cell read its features and no others, so that what a perturbation spends on one
  cell it cannot spend on the next: of ε² each cell gets a share, and flips no pixel whose squared
  radius is more. Pixels of one cell share a budget of margins, too.
- Which shares are the worst is bounded by duality: a price of shares separates the cells, and each
  price gives a bound. So none is wrong, however well it was chosen.
- An adversary of IoU loses found pixels, at 1 each, and gains others, at the ratio that is to be
  bounded. Over a data set each picture has an ε of its own.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lipdet.certificate.pixels import Cells, Floats, PixelBounds, PixelMargins
from lipdet.errors import InputError
from lipdet.norms import SLACK
from lipdet.types import IGNORED

# Ratios at which an adversary of IoU is bounded: between two of them its bound is a line, as what
# it bounds is convex.
RATIOS = np.linspace(0.0, 1.0, 9)
# Powers of ten between which a price of shares is looked for, in so many halvings.
PRICES, PRICE_STEPS = (-2.0, 8.0), 10
# Above any rounding of sums of counts.
ROUNDING = 1e-6

Mask = NDArray[np.uint8]
Chosen = NDArray[np.bool_]


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


def most_missed(whole: Overlap, count: int) -> float | None:
    """Return the largest share of the pixels of a class, `count` of them, that is not found as it.

    An adversary to whom a gained pixel is worth nothing loses as many as it can.

    Returns:
        None if the class has no pixel.
    """
    return 1 - (whole.intersection - float(whole.harm[0])) / count if count else None


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
