"""Lipschitz constants of several outputs of a detector at once (theory §6.1, §6.2 and §6.6).

They are below what the constants of single outputs add up to, since outputs share features.
Besides, a box whose logit has to rise moves less freely.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lipdet.certificate.constants.outputs import (
    LEAST,
    HeadConvolution,
    OutputBounds,
    head_convolutions,
)
from lipdet.certificate.ragged import flatnonzero, pick, take
from lipdet.detector.ssd import SSD
from lipdet.lipschitz.propagation import Propagation
from lipdet.norms import SLACK, conv_norm

# Squared norms of differences are found as |a|² + |b|² − 2ab, which may be off by the rounding of
# sums of at most 1e5 products in float64.
_CANCELLATION = 1e-11
# A difference of filters that is shorter than this share of the longer one is known to less than
# 1e-6 of its length.
_ALIKE = 0.01
# Above so many rows a dense Gram matrix costs too much.
_MOST_DENSE_ROWS = 512


def collective_class_constants(
    detector: SSD, propagation: Propagation, bounds: OutputBounds
) -> Tensor:
    """Bound Λ_c of each logit c: Σ Δz_c² ≤ Λ_c²·‖δ‖² over all default boxes (theory §6.1).

    Returns:
        (K,) float64.
    """
    convolutions, _ = head_convolutions(detector, propagation)
    norms = [_class_norms(convolution) for convolution in convolutions]
    scales = torch.tensor(bounds.features, dtype=torch.float64).unsqueeze(1)
    return (scales * torch.stack(norms)).square().sum(dim=0).clamp_min(LEAST**2).sqrt() * SLACK


def _class_norms(convolution: HeadConvolution) -> Tensor:
    """Return the norm of the map from the features to all logits of each class, (K,).

    Of a small map by its Gram matrix, exactly; the bound for convolutions treats it as larger.
    """
    kernel = convolution.kernel
    labels = torch.arange(kernel.shape[1], device=kernel.device)
    rows = len(convolution.norms())
    if rows > _MOST_DENSE_ROWS:
        steps = convolution.stride, convolution.dilation
        found = [conv_norm(kernel[:, c], *steps, image_size=convolution.size) for c in labels]
        return torch.tensor(found, dtype=torch.float64)
    shared = _of_logits(convolution)
    a, b = torch.cartesian_prod(*[torch.arange(rows, device=kernel.device)] * 2).unbind(dim=1)
    grams = [shared.products(a, b, label.expand(len(a)))[:, 0] for label in labels]
    squares = [torch.linalg.eigvalsh(gram.reshape(rows, rows))[-1] for gram in grams]
    return torch.stack(squares).clamp_min(LEAST**2).sqrt().cpu()


def class_contrasts(detector: SSD, propagation: Propagation, bounds: OutputBounds) -> Tensor:
    """Bound z_{a,c} − z_{a,j} for every default box a and two logits of it (theory §6.2).

    Taps outside the map only make that less.

    Returns:
        (A, K, K) float64, next to 0 on the diagonal.
    """
    convolutions, _ = head_convolutions(detector, propagation)
    levels = []
    for convolution, rows, bound in zip(convolutions, bounds.anchors, bounds.features, strict=True):
        filters = convolution.kernel.flatten(2)
        apart = torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist")
        apart = apart.clamp_min(LEAST)
        cells = (rows.stop - rows.start) // len(filters)
        levels.append((bound * SLACK * apart).repeat(cells, 1, 1))
    return torch.cat(levels)


class Lift(NamedTuple):
    """Constants of lifting the logits of P default boxes above others.

    Attributes:
        constant: (P,) of what has to rise; +∞ where nothing is known.
        push: (P, 4) by how much the offsets of the box move as it rises by 1, by the smallest
            change of the features that does it.
    """

    constant: Tensor
    push: Tensor


class PairwiseLogits:
    """Constants of z_{b,c} − z_{a,c} for pairs of default boxes and a class (theory §6.2)."""

    def __init__(self, detector: SSD, propagation: Propagation, bounds: OutputBounds) -> None:
        heads = head_convolutions(detector, propagation)
        self._logits = bounds.logits
        sizes = torch.tensor([rows.stop - rows.start for rows in bounds.anchors])
        self._level_of = torch.arange(len(sizes)).repeat_interleave(sizes).to(bounds.logits.device)
        self._levels = [
            _Level(
                bound, rows.start, logits.norms(), _of_logits(logits), _of_offsets(logits, offsets)
            )
            for bound, rows, logits, offsets in zip(
                bounds.features, bounds.anchors, *heads, strict=True
            )
        ]

    def constants(self, a: Tensor, b: Tensor, labels: Tensor) -> Tensor:
        """Return constants of z_{b,c} − z_{a,c} for every pair.

        Args:
            a: (P,) int64 indices of default boxes.
            b: (P,) int64 indices of default boxes.
            labels: (P,) int64 the logit c.

        Returns:
            (P,) float64.
        """
        of_a, of_b = (pick(self._logits, rows, labels) for rows in (a, b))
        found = of_a + of_b
        for pairs, level in self._of_one_level(a, b):
            rows_a, rows_b = take(a, pairs) - level.start, take(b, pairs) - level.start
            own = take(labels, pairs)
            products = level.logits.products(rows_a, rows_b, own)
            sums = pick(level.norms, rows_a, own).square() + pick(level.norms, rows_b, own).square()
            difference = _norm_of_difference(sums, products[:, 0])
            found[pairs] = torch.minimum(take(found, pairs), level.bound * difference)
        return found

    def yielding(self, a: Tensor, b: Tensor, labels: Tensor) -> Tensor:
        """Return how far z_{a,c} can fall per unit of ε with nothing asked of b's features, (P,).

        0 on one level, the constant of z_a on two (theory §6.6), +∞ where the offsets of b are not
        known to depend on the features alike. Arguments as for `constants`.
        """
        found = pick(self._logits, a, labels)
        for pairs, _ in self._of_one_level(a, b):
            found[pairs] = 0.0
        for index, level in enumerate(self._levels):
            if level.offsets is None:
                found[self._level_of[b] == index] = torch.inf
        return found

    def lifts(self, a: Tensor, b: Tensor, labels: Tensor) -> Lift:
        """Return constant and push of ⟨u, f⟩, which has to rise for b to pass a; see `yielding`.

        The smallest change of f that makes it rise by 1 is u/‖u‖², and moves b's offsets by
        W₄·u/‖u‖². Arguments as for `constants`.
        """
        constant, push = pick(self._logits, b, labels), self._logits.new_zeros(len(b), 4)
        scale = self._logits.new_zeros(len(b))
        for index, level in enumerate(self._levels):
            pairs = flatnonzero(self._level_of[b] == index)
            if level.offsets is None:
                constant[pairs] = torch.inf
            else:
                rows, classes = b[pairs] - level.start, labels[pairs]
                push[pairs] = level.offsets.products(rows, rows, classes)
                scale[pairs] = level.bound
        for pairs, level in self._of_one_level(a, b):
            if level.offsets is not None:
                rows_a, rows_b = a[pairs] - level.start, b[pairs] - level.start
                push[pairs] -= level.offsets.products(rows_b, rows_a, labels[pairs])
                constants = self.constants(a[pairs], b[pairs], labels[pairs])
                # Too little is known of filters that are nearly the same.
                alike = constants < _ALIKE * constant[pairs]
                constant[pairs] = constants.masked_fill(alike, torch.inf)
        return Lift(constant, push * (scale / constant).square().unsqueeze(1))

    def _of_one_level(self, a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, _Level]]:
        """Yield those pairs whose default boxes are both of a level, level by level."""
        level_a, level_b = take(self._level_of, a), take(self._level_of, b)
        for index, level in enumerate(self._levels):
            pairs = flatnonzero((level_a == index) & (level_b == index))
            if len(pairs):
                yield pairs, level


class _Level(NamedTuple):
    """Constants and filters of the outputs on one level.

    Attributes:
        bound: constant of the features.
        start: index of its first default box.
        norms: (rows, K) of logits' filters, where they stand.
        logits: inner products of logits' filters.
        offsets: of offsets' filters with logits'; None where their patches differ.
    """

    bound: float
    start: int
    norms: Tensor
    logits: _SharedTaps
    offsets: _SharedTaps | None


def _of_logits(classification: HeadConvolution) -> _SharedTaps:
    """Tabulate inner products of two filters of one class."""
    columns = _columns(classification)
    table = torch.einsum("ksbi,ktdi->ksbtd", columns, columns)
    return _SharedTaps(classification, table.unsqueeze(-1))


def _of_offsets(
    classification: HeadConvolution, localisation: HeadConvolution
) -> _SharedTaps | None:
    """Tabulate inner products of filters of a default box's offsets and of another's logits."""
    if classification.patches != localisation.patches:
        return None
    table = torch.einsum("osbi,ktdi->ksbtdo", _columns(localisation), _columns(classification))
    return _SharedTaps(classification, table)


def _columns(convolution: HeadConvolution) -> Tensor:
    """Return the kernel as (values, taps, boxes, c_in)."""
    return convolution.kernel.flatten(-2).permute(1, 3, 0, 2)


class _SharedTaps:
    """Inner products of the filters of one level, each where it stands.

    Attributes:
        convolution: with the patches of both.
        table: inner products over the input channels of taps s and t of the filters of default
            boxes b and d, (K, s, b, t, d, values).
    """

    def __init__(self, convolution: HeadConvolution, table: Tensor) -> None:
        self.convolution = convolution
        self.table = table

    def products(self, a: Tensor, b: Tensor, labels: Tensor) -> Tensor:
        """Return ⟨w_a, w_b⟩ where filters stand, over the taps inside the map; (P, values)."""
        conv = self.convolution
        boxes, (k1, k2) = len(conv.kernel), conv.kernel.shape[-2:]
        cells_a, cells_b = a // boxes, b // boxes
        columns = conv.columns
        taps = [
            self._common_taps(cells_a // columns, cells_b // columns, 0, k1),
            self._common_taps(cells_a % columns, cells_b % columns, 1, k2),
        ]
        # One list of table rows is read much faster than five indices.
        _, own, _, other, _, values = self.table.shape
        rows = self.table.reshape(-1, values)
        first = ((labels * own * boxes + a % boxes) * other) * boxes + b % boxes
        total = self.table.new_zeros(len(a), values)
        for row, (row_b, row_shared) in enumerate(zip(*taps[0], strict=True)):
            for column, (column_b, column_shared) in enumerate(zip(*taps[1], strict=True)):
                pairs = flatnonzero(row_shared & column_shared)
                step = (row * k2 + column) * boxes * other + row_b * k2 + column_b
                total.index_add_(0, pairs, take(rows, take(first + step * boxes, pairs)))
        return total

    def _common_taps(
        self, cells_a: Tensor, cells_b: Tensor, axis: int, taps: int
    ) -> tuple[Tensor, Tensor]:
        """Find for each tap of a's patch the tap of b's patch at the same feature, if there is one.

        Returns:
            (taps, P) int64, 0 where there is none, and (taps, P) bool.
        """
        conv = self.convolution
        dilation, stride = conv.dilation[axis], conv.stride[axis]
        own = torch.arange(taps, device=cells_a.device).unsqueeze(1)
        features = cells_a * stride - conv.padding[axis] + own * dilation
        inside = (features >= 0) & (features < conv.size[axis])
        steps = (cells_a - cells_b) * stride
        other = own + torch.div(steps, dilation, rounding_mode="floor")
        shared = inside & (steps % dilation == 0) & (other >= 0) & (other < taps)
        return torch.where(shared, other, 0), shared


def _norm_of_difference(sums: Tensor, products: Tensor) -> Tensor:
    """Compute √(|a|² + |b|² − 2ab) with the slack that cancellation needs."""
    squares = (sums - 2 * products).clamp_min(0) + _CANCELLATION * sums
    return squares.sqrt() * SLACK
