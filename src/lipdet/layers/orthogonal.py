"""Orthogonal convolutions: a semi-orthogonal matrix times projector blocks (BCOP, AOC).

Notable choices:
- Cayley transforms rather than Björck iterations or QR: exact for *every* raw value (zeros
  included), smooth, with a bounded gradient, and one small matrix inverse. Björck needs 30 products
  at 64 channels and never arrives from a singular matrix; the gradient of QR is not finite there.
- A projector of rank n on c channels is (n × (c − n)) free numbers, not a c × c matrix: the Cayley
  transform covers the Grassmannian with a well-conditioned inverse of size n.
- Every second block along an axis is reversed, so that equal projectors compose to a centred shift
  by nothing: an identity start exists, and it does not shift the picture.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lipdet.layers.conv import LipschitzConv2d

# Beyond this the transforms no longer move, and float64 keeps them orthogonal to 1e-9.
_RAW_LIMIT = 100.0


class BCOPConv2d(LipschitzConv2d):
    """Orthogonal convolution (Li et al. 2019, eq. 4; strides as in AOC, Boissin et al. 2025).

    The kernel is the composition R ∘ B₁ ∘ B₂ ∘ … of a semi-orthogonal matrix R and of blocks
    P + (I − P)·z, where P is an orthogonal projector and z a shift by one pixel, alternately down
    and across: each is orthogonal on an endless or circular image. With more outputs than inputs
    the blocks come after R. With stride s, R is an s × s kernel on disjoint patches (RKO), so
    kernel_size = stride is R alone and any larger kernel works too.

    With circular padding all singular values of the map are 1 (of JJᵀ if it lowers the dimension,
    of JᵀJ if it raises it), and for kernel_size = stride without padding where the stride divides
    the size. With zero padding they are at most 1.

    The raw parameters are free; those of blocks have shape (blocks, c − c//2, c//2). Weight decay
    pulls the layer towards an identity, not towards 0. They are not scale invariant: Adam learning
    rates near 1e-3 suit them.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._patch = tuple(min(k, s) for k, s in zip(self.kernel_size, self.stride, strict=True))
        columns = self.in_channels * self._patch[0] * self._patch[1]
        self._blocks_last = self.stride == (1, 1) and self.out_channels > self.in_channels
        channels = self.out_channels if self._blocks_last else self.in_channels
        self._axes = _alternate(
            *(k - p for k, p in zip(self.kernel_size, self._patch, strict=True))
        )
        self.mixing = nn.Parameter(
            torch.empty(max(columns, self.out_channels), min(columns, self.out_channels))
        )
        self.blocks = nn.Parameter(
            torch.empty(len(self._axes), channels - channels // 2, channels // 2)
        )
        self.orthogonal_()

    def orthogonal_(self) -> None:
        """Start as a random orthogonal convolution."""
        for raw in (self.mixing, self.blocks):
            nn.init.normal_(raw, std=max(raw.shape[-1], 1) ** -0.5)

    def dirac_(self) -> None:
        """Start as an identity, with zero-padded or dropped channels where the numbers differ.

        An even number of blocks along an axis (odd kernels at stride 1) cancels; an odd number
        leaves one block, which shifts half of the channels by one pixel.
        """
        nn.init.zeros_(self.mixing)
        nn.init.zeros_(self.blocks)

    def construct(self) -> Tensor:
        """Return the orthogonal kernel (out_channels, in_channels, k1, k2) in float64."""
        matrix = cayley(self.mixing.double())
        if self.out_channels < matrix.shape[0]:
            matrix = matrix.T
        kernel = matrix.reshape(self.out_channels, self.in_channels, *self._patch)
        kernel = kernel.permute(2, 3, 1, 0) if self._blocks_last else kernel.permute(2, 3, 0, 1)
        seen = [0, 0]
        for axis, projector in zip(self._axes, projectors(self.blocks.double()), strict=True):
            kernel = _append_block(kernel, projector, axis, reverse=seen[axis] % 2 == 1)
            seen[axis] += 1
        return kernel.permute(3, 2, 0, 1) if self._blocks_last else kernel.permute(2, 3, 0, 1)


class OrthogonalConv1x1(BCOPConv2d):
    """A semi-orthogonal matrix at every pixel (Cayley transform; Trockman & Kolter 2021).

    Of the ways to build one, the Cayley transform is exact for every raw value and cheapest:
    one inverse of size min(c_in, c_out).
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1, bias=bias)


def cayley(raw: Tensor) -> Tensor:
    """Map (..., m, n) matrices, m ≥ n, to matrices with orthonormal columns.

    With raw = [U; V] and A = U − Uᵀ + VᵀV: Q = [(I − A)(I + A)⁻¹; −2 V (I + A)⁻¹]
    (Trockman & Kolter 2021, appendix B). I + A always has singular values of at least 1.
    """
    n = raw.shape[-1]
    raw = raw.clamp(-_RAW_LIMIT, _RAW_LIMIT)
    upper, lower = raw[..., :n, :], raw[..., n:, :]
    identity = torch.eye(n, dtype=raw.dtype, device=raw.device)
    inverse, _ = torch.linalg.inv_ex(identity + upper - upper.mT + lower.mT @ lower)
    return torch.cat([2 * inverse - identity, -2 * lower @ inverse], dim=-2)


def projectors(raw: Tensor) -> Tensor:
    """Map (..., m, n) matrices V to orthogonal projectors (..., n + m, n + m) of rank n.

    The columns of Q = [(I − VᵀV)(I + VᵀV)⁻¹; −2 V (I + VᵀV)⁻¹] are orthonormal: this is `cayley`
    without the part that only turns the basis of the subspace. Returns Q Qᵀ.
    """
    square = raw.new_zeros(*raw.shape[:-2], raw.shape[-1], raw.shape[-1])
    basis = cayley(torch.cat([square, raw], dim=-2))
    return basis @ basis.mT


def _append_block(kernel: Tensor, projector: Tensor, axis: int, *, reverse: bool) -> Tensor:
    """Compose a (k1, k2, m, c) kernel with [P, I − P] along an axis: one product for all taps."""
    first = kernel @ projector
    second = kernel - first
    if reverse:
        first, second = second, first
    leave = [0, 0, 0, 0]
    after, before = ([0, 0, 0, 1], [0, 0, 1, 0]) if axis == 0 else ([0, 1, 0, 0], [1, 0, 0, 0])
    return functional.pad(first, leave + after) + functional.pad(second, leave + before)


def _alternate(down: int, across: int) -> list[int]:
    """Return the axes of the blocks, 0 for down and 1 for across, alternating while both last."""
    pairs = [(index, axis) for axis, count in ((0, down), (1, across)) for index in range(count)]
    return [axis for _, axis in sorted(pairs)]
