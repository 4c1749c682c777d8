"""Autocast, torch.compile and DistributedDataParallel."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lipdet.layers import (
    AOLConv2d,
    BCOPConv2d,
    ConstructedWeight,
    CPLBlock,
    L2NormConv2d,
    SLLBlock,
    SpectralConv2d,
)

BUILDERS = [
    lambda: AOLConv2d(4, 4, 3, padding=1),
    lambda: BCOPConv2d(4, 6, 3, padding=1),
    lambda: SpectralConv2d(4, 4, 3),
    lambda: L2NormConv2d(4, 4, 3),
    lambda: SLLBlock(4),
    lambda: CPLBlock(4),
]


@pytest.mark.parametrize("build", BUILDERS)
def test_gradients_are_finite_even_from_zero_weights(build: object) -> None:
    torch.manual_seed(0)
    layer: ConstructedWeight = build()  # type: ignore[operator]
    for reset in (nn.init.normal_, nn.init.zeros_):
        for parameter in layer.parameters():
            reset(parameter)
        layer.zero_grad()
        layer(torch.randn(2, 4, 5, 5)).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("build", [BUILDERS[0], BUILDERS[1], BUILDERS[4]])
def test_compiles_without_graph_breaks(build: object) -> None:
    # Oracle: the same layer in eager mode.
    torch.compiler.reset()
    torch.manual_seed(0)
    layer: ConstructedWeight = build()  # type: ignore[operator]
    twin = copy.deepcopy(layer)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    x = torch.randn(2, 4, 5, 5)
    for model in (compiled, twin):
        model(x).square().sum().backward()
    for ours, expected in zip(layer.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad)
    layer.eval()
    twin.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), twin(x))
