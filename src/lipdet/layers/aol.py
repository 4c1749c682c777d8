"""Almost-orthogonal Lipschitz convolutions (Prach & Lampert 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from lipdet.layers.kernel import KernelConv2d


class AOLConv2d(KernelConv2d):
    """Almost-orthogonal Lipschitz convolution (Prach & Lampert 2022, theorem 2 and eq. 9).

    Each input channel j of the kernel is divided by the square root of
    d_j = Σ_i Σ_lags |W ⋆ Wᵀ|_ji. The Gram operator JᵀJ of the convolution J has these entries, so
    diag(d) − JᵀJ is diagonally dominant and J diag(d)^(-1/2) has norm at most 1: for zero and
    circular padding, every image size, and every stride (a subset of the outputs). Starts as an
    identity, which this normalisation leaves as it is.
    """

    def construct(self) -> Tensor:
        """Return the kernel with its input channels rescaled, in float64."""
        kernel = self.raw.double()
        return kernel * inverse_root(gram_row_sums(kernel))[:, None, None]


def gram_row_sums(kernel: Tensor, q: Tensor | None = None) -> Tensor:
    """Sum |W ⋆ Wᵀ| over all (2 k1 − 1)(2 k2 − 1) lags and over the second channel index.

    Args:
        kernel: (c_out, c_in, k1, k2).
        q: (c_in,) positive numbers; entry (i, j) counts q_j/q_i times. All 1 if absent.

    Returns:
        (c_in,) upper bounds d with diag(d) ⪰ WᵀW, W being the convolution on an endless image.
    """
    channels, height, width = kernel.shape[1:]
    q = kernel.new_ones(channels) if q is None else q
    taps = kernel.permute(2, 3, 0, 1).contiguous()
    total = torch.zeros_like(q)
    for row in range(height):
        for column in range(1 - width if row else 0, width):
            # Taps that lie (row, column) apart; the opposite lag is the transpose.
            left = taps[: height - row, max(0, -column) : width - max(0, column)]
            right = taps[row:, max(0, column) : width - max(0, -column)]
            lag = (left.reshape(-1, channels).T @ right.reshape(-1, channels)).abs()
            total = total + lag @ q
            if (row, column) != (0, 0):
                total = total + q @ lag
    return total / q


def inverse_root(squares: Tensor) -> Tensor:
    """Return 1/√squares, and 1 where a square is 0, where any factor keeps a zero channel zero."""
    return torch.where(squares > 0, squares, 1.0).rsqrt()
