"""Convolutions whose raw parameter is a kernel of the usual shape that is then normalised.

`AOLConv2d` and `SpectralConv2d` are 1-Lipschitz maps. The others have filters of unit norm, which
bounds each output alone. `L2NormConv2d` feeds other layers, so its norm as a map counts, and that
exceeds 1; `UnitNormConv2d` shares its weights and is a head, whose outputs count one by one. Those
of the head `OrthonormalConv2d` are jointly bounded at each position.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lipdet.layers.conv import LipschitzConv2d, centred_orthogonal_, tiled_dirac_
from lipdet.layers.orthogonal import cayley
from lipdet.norms import conv_norm_bound, reshaped_norm_bound


class KernelConv2d(LipschitzConv2d):
    """A convolution with a raw kernel `raw` (out_channels, in_channels, k1, k2)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.raw = nn.Parameter(torch.empty(self.out_channels, self.in_channels, *self.kernel_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as an identity: it has gain 1 in every one of these layers that can have it."""
        self.dirac_()

    def dirac_(self) -> None:
        """Start as an identity, with copied or merged channels where the numbers differ."""
        tiled_dirac_(self.raw)

    def orthogonal_(self) -> None:
        """Start as a random semi-orthogonal matrix at the central tap."""
        centred_orthogonal_(self.raw)


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


class SpectralConv2d(KernelConv2d):
    """Convolution divided by a certified bound of its norm (after Miyato et al. 2018).

    The bound is the norm of the reshaped kernel times √(⌈k1/s1⌉⌈k2/s2⌉) (Tsuzuku et al. 2018), the
    norm by Gram iteration in float64: a power iteration on the reshaped kernel, which is what
    `torch.nn.utils.spectral_norm` does, bounds neither the matrix nor the convolution. Sound but
    far from norm preserving: a stride-1 3×3 layer starts with a gain near 1/3, so ten of them pass
    on next to nothing. Kept as the baseline that shows this.
    """

    def reset_parameters(self) -> None:
        """Start with an orthogonal reshaped kernel."""
        nn.init.orthogonal_(self.raw)

    def construct(self) -> Tensor:
        """Return the kernel divided by its bound, in float64."""
        kernel = self.raw.double()
        return kernel / reshaped_norm_bound(kernel, self.stride)


class L2NormConv2d(KernelConv2d):
    """Convolution whose filters are each divided by their L2 norm: **not 1-Lipschitz**.

    Each output value is a unit functional of a patch, but the map to all of them has any norm up to
    √(c_out ⌈k1/s1⌉⌈k2/s2⌉): equal filters add up, and so do overlapping patches.
    """

    def reset_parameters(self) -> None:
        """Start with orthogonal filters, which have unit norm if c_out ≤ c_in·k1·k2."""
        nn.init.orthogonal_(self.raw)

    def construct(self) -> Tensor:
        """Return the kernel with unit filters, in float64; a zero filter stays zero."""
        kernel = self.raw.double()
        return kernel * inverse_root(kernel.square().sum(dim=(1, 2, 3), keepdim=True))

    @torch.no_grad()
    def lipschitz_bound(self) -> float:
        """Return an upper bound of the norm of the map to all outputs, for every image size.

        The smaller of two certified bounds of the rounded weight: from its frequency response, and
        from its reshaped kernel, which is exact for kernel_size = stride.
        """
        weight = self.weight.double()
        bounds = (
            conv_norm_bound(weight, oversampling=16, squarings=8),
            reshaped_norm_bound(weight, self.stride, squarings=8),
        )
        return float(min(bounds))


class UnitNormConv2d(L2NormConv2d):
    """A convolutional head of which every output is 1-Lipschitz in the features.

    With zero or no padding a patch holds each feature at most once, so an output value moves by at
    most ||w_c||_F times the change of the features (theory §1). No promise is made for all outputs
    together; `lipschitz_bound` gives that constant.

    Raises:
        ValueError: padding_mode is not "zeros": a wrapped feature can appear twice in a patch.
    """

    def _checked_padding(self, padding: int | tuple[int, int] | str) -> tuple[int, int] | str:
        if self.padding_mode != "zeros":
            raise ValueError(
                'UnitNormConv2d: use padding_mode="zeros"; a wrapped feature can appear twice in '
                "one patch, and the constants of the outputs would not hold."
            )
        return super()._checked_padding(padding)


class OrthonormalConv2d(UnitNormConv2d):
    """A convolutional head whose outputs at one position are 1-Lipschitz together.

    Its filters are orthonormal as rows of a matrix (out_channels, in_channels·k1·k2), the Cayley
    transform of the raw kernel: all outputs at a position move inside a ball, not only each in its
    interval. Outputs at different positions share features and have no joint bound.

    Raises:
        ValueError: there are more filters than a patch has values.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        values = self.raw[0].numel()
        if self.out_channels > values:
            raise ValueError(
                f"OrthonormalConv2d: {self.out_channels} filters on patches of {values} values "
                "cannot be orthonormal; use fewer outputs or more inputs."
            )

    def reset_parameters(self) -> None:
        """Start with random filters that share all values of a patch."""
        nn.init.normal_(self.raw, std=max(self.raw[0].numel() - self.out_channels, 1) ** -0.5)

    def construct(self) -> Tensor:
        """Return the kernel with orthonormal filters, in float64."""
        rows = cayley(self.raw.double().flatten(1).T).T
        return rows.reshape(self.raw.shape)


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
