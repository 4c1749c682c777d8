"""Constants of several outputs of a detector's heads at once.

They are below what the constants of single outputs add up to, since outputs share features:
differences of two outputs (THEORY §6, tightening 2) and all outputs of a class (tightening 1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipdet.certificate.heads import HeadConvolution
from lipdet.certificate.operator_norm import SLACK
from lipdet.certificate.outputs import OutputBounds, head_convolutions
from lipdet.certificate.propagation import Propagation
from lipdet.detector.ssd import SSD

# Squared norms of differences are found as |a|² + |b|² − 2ab, which may be off by the rounding of
# sums of at most 1e5 products in float64.
_CANCELLATION = 1e-11
# Half a second of one core for ten classes.
_MOST_DENSE_ROWS = 512


def collective_class_constants(
    detector: SSD, propagation: Propagation, bounds: OutputBounds
) -> Tensor:
    """Λ_c of each logit c: Σ over all default boxes of Δz_c² is at most Λ_c²‖δ‖² (tightening 1).

    *Proof.* On a level, the logits of class c are a convolution W_c of the features, with one
    filter for each shape of default box: Σ Δz² ≤ ‖W_c‖²_op·‖Δfeatures‖² ≤ (‖W_c‖_op·L)²‖δ‖². Sum
    over the levels.

    Returns:
        (K,) float64.
    """
    convolutions, _ = head_convolutions(detector, propagation)
    norms = [_class_norms(convolution) for convolution in convolutions]
    scales = torch.tensor(bounds.features, dtype=torch.float64).unsqueeze(1)
    return (scales * torch.stack(norms)).square().sum(dim=0).sqrt() * SLACK


def _class_norms(convolution: HeadConvolution) -> Tensor:
    """The norm of the map from the features to all logits of each class, (K,).

    Of a small map by its Gram matrix, exactly; the bound for convolutions treats it as larger.
    """
    kernel = convolution.kernel
    labels = torch.arange(kernel.shape[1], device=kernel.device)
    rows = len(convolution.norms())
    if rows > _MOST_DENSE_ROWS:
        found = [convolution.norm_bound(kernel[:, label]) for label in labels]
        return torch.tensor(found, dtype=torch.float64)
    shared = _SharedTaps(convolution)
    a, b = torch.cartesian_prod(*[torch.arange(rows, device=kernel.device)] * 2).unbind(dim=1)
    grams = [shared.products(a, b, label.expand(len(a))) for label in labels]
    squares = [torch.linalg.eigvalsh(gram.reshape(rows, rows))[-1] for gram in grams]
    return torch.stack(squares).clamp_min(0).sqrt().cpu()


class PairwiseLogits:
    """Constants of z_{b,c} − z_{a,c} for pairs of default boxes and a class (tightening 2).

    *Proof.* On one level, both are linear functionals of the features f: filters w at the two
    positions, zero elsewhere. So |Δz_b − Δz_a| ≤ ‖w_b − w_a‖·‖Δf‖ ≤ L·‖w_b − w_a‖·‖δ‖, with
    ‖w_b − w_a‖² = ‖w_b‖² + ‖w_a‖² − 2⟨w_b, w_a⟩ over the taps inside the map; disjoint patches
    have ⟨w_b, w_a⟩ = 0. On two levels the features differ, and only the sum of both constants is
    known to hold.
    """

    def __init__(self, detector: SSD, propagation: Propagation, bounds: OutputBounds) -> None:
        convolutions, _ = head_convolutions(detector, propagation)
        self._logits = bounds.logits
        sizes = torch.tensor([rows.stop - rows.start for rows in bounds.anchors])
        self._level_of = torch.arange(len(sizes)).repeat_interleave(sizes).to(bounds.logits.device)
        self._levels = [
            (bound, rows.start, _SharedTaps(convolution))
            for bound, rows, convolution in zip(
                bounds.features, bounds.anchors, convolutions, strict=True
            )
        ]

    def constants(self, a: Tensor, b: Tensor, labels: Tensor) -> Tensor:
        """Constants of z_{b,c} − z_{a,c} for every pair.

        Args:
            a: (P,) int64 indices of default boxes.
            b: (P,) int64 indices of default boxes.
            labels: (P,) int64 the logit c.

        Returns:
            (P,) float64.
        """
        found = self._logits[a, labels] + self._logits[b, labels]
        level_a, level_b = self._level_of[a], self._level_of[b]
        for index, (bound, start, shared) in enumerate(self._levels):
            (pairs,) = torch.nonzero((level_a == index) & (level_b == index), as_tuple=True)
            if len(pairs):
                rows_a, rows_b, classes = a[pairs], b[pairs], labels[pairs]
                own = self._logits[rows_a, classes] ** 2 + self._logits[rows_b, classes] ** 2
                products = shared.products(rows_a - start, rows_b - start, classes)
                difference = _norm_of_difference(own / bound**2, products)
                found[pairs] = torch.minimum(found[pairs], bound * difference)
        return found


class _SharedTaps:
    """Inner products of the filters of one level, each where it stands.

    Attributes:
        tap_products: inner products over the input channels, (K, taps, boxes, taps, boxes).
    """

    def __init__(self, convolution: HeadConvolution) -> None:
        self.convolution = convolution
        columns = convolution.kernel.flatten(-2).permute(1, 3, 0, 2)
        self.tap_products = torch.einsum("ksbi,ktdi->ksbtd", columns, columns)

    def products(self, a: Tensor, b: Tensor, labels: Tensor) -> Tensor:
        """⟨w_a, w_b⟩ of filters where they stand, over the taps inside the map."""
        conv = self.convolution
        boxes, (k1, k2) = len(conv.kernel), conv.kernel.shape[-2:]
        cells_a, cells_b = a // boxes, b // boxes
        columns = conv.columns
        taps = [
            self._common_taps(cells_a // columns, cells_b // columns, 0, k1),
            self._common_taps(cells_a % columns, cells_b % columns, 1, k2),
        ]
        total = self.tap_products.new_zeros(len(a))
        for row, (row_b, row_shared) in enumerate(zip(*taps[0], strict=True)):
            for column, (column_b, column_shared) in enumerate(zip(*taps[1], strict=True)):
                product = self.tap_products[
                    labels, row * k2 + column, a % boxes, row_b * k2 + column_b, b % boxes
                ]
                total += product * (row_shared & column_shared)
        return total

    def _common_taps(
        self, cells_a: Tensor, cells_b: Tensor, axis: int, taps: int
    ) -> tuple[Tensor, Tensor]:
        """For each tap of a's patch: the tap of b's patch at the same feature, and if there is one.

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
    """√(|a|² + |b|² − 2ab) with the slack that cancellation needs."""
    squares = (sums - 2 * products).clamp_min(0) + _CANCELLATION * sums
    return squares.sqrt() * SLACK
