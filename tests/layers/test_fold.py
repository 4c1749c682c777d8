"""Folded models are plain torch and compute the same; gradients, and torch.compile."""

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
    FoldedResidual,
    L2NormConv2d,
    MaxMin,
    OrthogonalConv1x1,
    SLLBlock,
    SpectralConv2d,
    UnitNormConv2d,
    fold,
)

LAYERS = [
    lambda: AOLConv2d(4, 6, 3, padding=1),
    lambda: AOLConv2d(4, 4, 2, padding="same", padding_mode="circular", bias=False),
    lambda: BCOPConv2d(4, 6, 3, padding=1),
    lambda: BCOPConv2d(4, 6, 3, 2, 1, padding_mode="circular"),
    lambda: BCOPConv2d(4, 4, (1, 5), padding="same"),
    lambda: OrthogonalConv1x1(4, 2),
    lambda: SpectralConv2d(4, 4, 3, stride=2),
    lambda: L2NormConv2d(4, 4, 3),
    lambda: UnitNormConv2d(4, 5, 3, padding=1),
    lambda: SLLBlock(4, 6),
    lambda: CPLBlock(4, bias=False),
]


@pytest.mark.parametrize("build", LAYERS)
@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_a_folded_layer_computes_the_same(build: object, training: bool) -> None:
    torch.manual_seed(0)
    layer = build().train(training)  # type: ignore[operator]
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    x = torch.randn(2, 4, 6, 8)
    folded = fold(layer)
    assert isinstance(folded, nn.Conv2d | FoldedResidual)
    torch.testing.assert_close(folded(x), layer(x), atol=1e-6, rtol=0)


@torch.no_grad()
def test_a_folded_model_is_plain_and_the_original_is_left_alone() -> None:
    torch.manual_seed(0)
    shared = BCOPConv2d(4, 4, 3, padding=1)
    model = nn.Sequential(shared, MaxMin(), nn.ModuleDict({"a": SLLBlock(4)})["a"], shared)
    x = torch.randn(2, 4, 5, 5)
    before = model(x)
    folded = fold(model)
    torch.testing.assert_close(folded(x), before, atol=1e-6, rtol=0)
    assert not any(isinstance(module, ConstructedWeight) for module in folded.modules())
    assert folded[0] is folded[3]
    assert model[0] is shared
    folded[0].weight.zero_()
    assert torch.equal(model(x), before)


def test_folding_keeps_the_random_state() -> None:
    model = nn.Sequential(BCOPConv2d(4, 4, 3), SLLBlock(4))
    state = torch.get_rng_state()
    fold(model)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("build", LAYERS)
def test_gradients_are_finite_even_from_zero_weights(build: object) -> None:
    torch.manual_seed(0)
    layer: ConstructedWeight = build()  # type: ignore[operator]
    for reset in (nn.init.normal_, nn.init.zeros_):
        for parameter in layer.parameters():
            reset(parameter)
        layer.zero_grad()
        layer(torch.randn(2, 4, 6, 8)).square().sum().backward()
        found = [p.grad for p in layer.parameters() if p.numel()]
        assert all(gradient is not None and gradient.isfinite().all() for gradient in found)


@pytest.mark.slow
@pytest.mark.parametrize("build", [LAYERS[0], LAYERS[2], LAYERS[9]])
def test_compiles_without_graph_breaks(build: object) -> None:
    # Oracle: the same layer in eager mode.
    torch.compiler.reset()
    torch.manual_seed(0)
    layer: ConstructedWeight = build()  # type: ignore[operator]
    twin = copy.deepcopy(layer)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    x = torch.randn(2, 4, 6, 8)
    for model in (compiled, twin):
        model(x).square().sum().backward()
    for ours, expected in zip(layer.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad)
    layer.eval()
    twin.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), twin(x))
