"""Convolutions whose filters have unit norm: per-output constants are known, the joint one is not.

The first two layers share their weights and differ in what they promise. `L2NormConv2d` feeds other
layers, so its norm as a map counts, and that exceeds 1. `UnitNormConv2d` is a head: each scalar
output is bounded by the norm of its own filter. `OrthonormalConv2d` is a head whose outputs at one
position are jointly bounded as well.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lipdet.layers.aol import inverse_root
from lipdet.layers.kernel import KernelConv2d
from lipdet.layers.orthogonal import cayley
from lipdet.norms import conv_norm_bound, reshaped_norm_bound

_SLACK = 1.0 + 1e-9


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
        """Upper bound of the norm of the map to all outputs, for every image size.

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
