"""Initialisations that preserve the norm of signals and gradients.

Ten stacked 3×3 layers with Gaussian kernels pass on less than 1e-4 of a gradient once normalised to
be 1-Lipschitz; the starts here pass on nearly all of it (theory §3; `lipdet.layers.gain_profile`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lipdet.layers.base import ConstructedWeight


def dirac_(model: nn.Module) -> None:
    """Let every 1-Lipschitz convolution of a model start as an identity, in place.

    Residual blocks start orthogonal instead: from an identity kernel x − 2 relu(x) = −|x|, all
    hidden units of the second block would be dead.
    """
    for module in model.modules():
        if isinstance(module, ConstructedWeight):
            module.dirac_()


def orthogonal_(model: nn.Module) -> None:
    """Let every 1-Lipschitz convolution of a model start as a random orthogonal map, in place."""
    for module in model.modules():
        if isinstance(module, ConstructedWeight):
            module.orthogonal_()


@torch.no_grad()
def tiled_dirac_(kernel: Tensor) -> Tensor:
    """Fill a (c_out, c_in, k1, k2) kernel with a semi-orthogonal identity at the central tap.

    With unequal channels, inputs are copied to several outputs or several inputs are merged into
    one output, with the weight that keeps rows or columns orthonormal. No row or column is zero, so
    none is without a gradient, and W^T W has row sums of 1: AOL keeps this kernel as it is.
    """
    c_out, c_in, height, width = kernel.shape
    few = min(c_out, c_in)
    match = torch.arange(c_out)[:, None] % few == torch.arange(c_in) % few
    copies = match.sum(dim=0, keepdim=True) if c_out >= c_in else match.sum(dim=1, keepdim=True)
    kernel.zero_()
    kernel[:, :, (height - 1) // 2, (width - 1) // 2] = (match / copies.sqrt()).to(kernel)
    return kernel


@torch.no_grad()
def centred_orthogonal_(kernel: Tensor) -> Tensor:
    """Fill a (c_out, c_in, k1, k2) kernel with a random semi-orthogonal matrix at the centre."""
    height, width = kernel.shape[2:]
    kernel.zero_()
    centre = nn.init.orthogonal_(torch.empty(kernel.shape[:2]))
    kernel[:, :, (height - 1) // 2, (width - 1) // 2] = centre.to(kernel)
    return kernel
