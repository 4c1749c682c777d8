"""Dense operators by pushing an identity batch, and ways to disturb raw parameters."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Size = tuple[int, int]


@torch.no_grad()
def dense_operator(layer: nn.Module, channels: int, size: Size) -> Tensor:
    """Return the matrix of an affine layer for images (channels, *size), in float64."""
    count = channels * size[0] * size[1]
    images = torch.eye(count).reshape(count, channels, *size)
    offset = layer(torch.zeros_like(images[:1]))
    return (layer(images) - offset).flatten(1).T.double()


def singular_values(layer: nn.Module, channels: int, size: Size) -> Tensor:
    return torch.linalg.svdvals(dense_operator(layer, channels, size))


def jacobian(layer: nn.Module, x: Tensor) -> Tensor:
    """Return the Jacobian of a layer at one image x (1, C, H, W), in float64."""
    matrix = torch.autograd.functional.jacobian(lambda image: layer(image).flatten(), x)
    return matrix.flatten(1).double()


def train_hard(layer: nn.Module, channels: int, size: Size) -> None:
    """Take 50 Adam steps at a large learning rate towards outputs that no such layer can reach."""
    optimizer = torch.optim.Adam(layer.parameters(), 0.3)
    x = torch.randn(4, channels, *size)
    target = 5 * torch.randn_like(layer(x).detach())
    for _ in range(50):
        optimizer.zero_grad()
        (layer(x) - target).square().sum().backward()
        optimizer.step()


def _fill(value: float) -> Callable[[nn.Module], None]:
    @torch.no_grad()
    def fill(layer: nn.Module) -> None:
        for parameter in layer.parameters():
            parameter.fill_(value)

    return fill


@torch.no_grad()
def _mix_scales(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        scales = torch.tensor([0.0, 1e-20, 1.0, 1e20])
        signs = torch.randint(0, 2, parameter.shape) * 2 - 1
        parameter.copy_(scales[torch.randint(0, 4, parameter.shape)] * signs)


DISTURBANCES: dict[str, Callable[[nn.Module], None]] = {
    "zeros": _fill(0.0),
    "1e-20": _fill(1e-20),
    "1e20": _fill(1e20),
    "mixed": _mix_scales,
}
