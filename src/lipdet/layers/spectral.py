"""Convolutions divided by a sound bound of their spectral norm."""

from __future__ import annotations

from torch import Tensor, nn

from lipdet.layers.kernel import KernelConv2d
from lipdet.norms import reshaped_norm_bound


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
