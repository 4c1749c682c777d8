"""Dense operators and Jacobians in float64: the truth that bounds are held against."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lipdet.layers import fold


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(x)


def jacobian_norm(network: nn.Module, shape: Sequence[int], points: int = 1) -> float:
    """Return the largest norm of the Jacobian over random points, by SVD.

    The Lipschitz constant itself for affine networks, a lower bound of it for all others.
    """
    network = fold(network).double()
    for module in network.modules():
        if hasattr(module, "inplace"):  # Autograd needs what one would overwrite.
            module.inplace = False
    norms = []
    for _ in range(points):
        x = torch.randn(*shape, dtype=torch.float64)
        norms.append(float(torch.linalg.matrix_norm(_jacobian(network, x), 2)))
    return max(norms)


def _jacobian(network: nn.Module, x: Tensor) -> Tensor:
    """Return (outputs, inputs): image i of a batch of copies gives the gradient of output i."""
    count = network(x.unsqueeze(0)).numel()
    copies = x.expand(count, *x.shape).clone().requires_grad_()
    outputs = network(copies).flatten(1)
    (rows,) = torch.autograd.grad(outputs.diagonal().sum(), copies)
    return rows.flatten(1)


def conv(kernel: Tensor, **options: object) -> nn.Conv2d:
    """Return a convolution without bias with this kernel."""
    groups = int(str(options.get("groups", 1)))
    layer = nn.Conv2d(
        kernel.shape[1] * groups, kernel.shape[0], tuple(kernel.shape[2:]), bias=False, **options
    )
    layer.weight.data = kernel.clone()
    return layer


def identity_conv(factor: float = 1.0) -> nn.Conv2d:
    """Return a convolution that multiplies 4 channels by a factor."""
    return conv(factor * torch.eye(4)[:, :, None, None])


def response_norm(kernel: Tensor, points: int = 64) -> float:
    """Return the largest singular value of a kernel's frequency response on a fine FFT grid."""
    response = torch.fft.fft2(kernel.double(), s=(points, points)).permute(2, 3, 0, 1)
    return float(torch.linalg.svdvals(response).max())


def randomised(network: nn.Module) -> nn.Module:
    """Return a copy with random BatchNorm statistics and factors, in eval mode."""
    network = copy.deepcopy(network).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_var is not None
            module.running_var.uniform_(0.1, 2.0)
            if module.affine:
                nn.init.uniform_(module.weight, -2.0, 2.0)
    return network
