"""Cross-checks against orthogonium and deel-torchlip, which share no code with the layers here."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from lipdet import norms
from lipdet.layers import BCOPConv2d, Householder, MaxMin, conv_norm_bound
from tests.layers.helpers import singular_values

with warnings.catch_warnings():
    # Deprecated calls inside the two packages, at import; nothing here can silence them otherwise.
    warnings.simplefilter("ignore")
    from deel import torchlip
    from orthogonium.layers.conv.AOC import AdaptiveOrthoConv2d
    from orthogonium.layers.conv.singular_values import get_conv_sv
    from orthogonium.layers.custom_activations import MaxMin as OrthogoniumMaxMin


# (in, out, kernel, stride)
SHAPES = [(4, 6, 3, 1), (6, 4, 3, 1), (4, 8, 4, 2), (4, 4, 2, 2)]


@pytest.mark.parametrize(("c_in", "c_out", "kernel", "stride"), SHAPES)
def test_bcop_has_the_singular_values_of_orthogonium_aoc(
    c_in: int, c_out: int, kernel: int, stride: int
) -> None:
    torch.manual_seed(0)
    padding: int | str = "same" if stride == 1 else (kernel - 1) // 2
    options = {"padding": padding, "bias": False, "padding_mode": "circular"}
    theirs = AdaptiveOrthoConv2d(c_in, c_out, kernel, stride=stride, **options).eval()
    ours = BCOPConv2d(c_in, c_out, kernel, stride, **options)  # type: ignore[arg-type]
    assert ours.weight.shape == theirs.weight.shape
    expected = singular_values(theirs, c_in, (6, 6))
    # Oracle: orthogonium's dense operator, and 1, which both papers prove.
    assert (expected - 1).abs().max() < 1e-4
    torch.testing.assert_close(
        singular_values(ours, c_in, (6, 6)), expected, atol=1e-4, rtol=0, check_dtype=True
    )


@pytest.mark.parametrize(("c_in", "c_out", "kernel", "stride"), SHAPES)
def test_bounds_hold_for_orthogonium_weights(
    c_in: int, c_out: int, kernel: int, stride: int
) -> None:
    torch.manual_seed(0)
    options = {"padding": (kernel - 1) // 2, "bias": False, "padding_mode": "zeros"}
    layer = AdaptiveOrthoConv2d(c_in, c_out, kernel, stride=stride, **options).eval()
    weight = layer.weight.detach()
    truth = float(singular_values(layer, c_in, (8, 8))[0])  # Oracle: SVD of the dense operator
    exact = norms.conv_norm(weight, (stride, stride), image_size=(8, 8))
    every_size = norms.conv_norm(weight, (stride, stride))
    # The dense operator is computed in float32, off by about 1e-6.
    # At most 1 by orthogonium's construction.
    assert truth - 1e-5 <= exact <= every_size * (1 + 5e-7) <= 1 + 1e-5
    assert every_size <= float(conv_norm_bound(weight)) * (1 + 1e-6)


@pytest.mark.parametrize("seed", range(2))
def test_bounds_agree_with_those_of_orthogonium(seed: int) -> None:
    # Oracle: orthogonium's Gram iteration (Delattre et al. 2024), a bound that is up to 10 % and
    # more above the truth at 3 steps: ours lies between the dense norm and theirs.
    torch.manual_seed(seed)
    layer = nn.Conv2d(4, 6, 3, padding=1, bias=False)
    nn.init.normal_(layer.weight)
    theirs = float(get_conv_sv(layer, 3, return_stab_rank=False))
    truth = float(singular_values(layer, 4, (8, 8))[0])
    ours = norms.conv_norm(layer.weight.detach())
    trained = float(conv_norm_bound(layer.weight.detach(), oversampling=16, squarings=8))
    assert truth <= ours <= theirs <= 1.3 * truth
    assert truth <= trained <= theirs


def _trained(stride: int, mode: str) -> nn.Module:
    torch.manual_seed(0)
    layer = torchlip.SpectralConv2d(
        4, 6, 3, stride=stride, padding=1, padding_mode=mode, bias=False
    )
    optimizer = torch.optim.Adam(layer.parameters(), 0.3)
    for _ in range(10):
        optimizer.zero_grad()
        y = layer(torch.randn(4, 4, 8, 8))
        (y - 5 * y.detach().sign()).square().sum().backward()
        optimizer.step()
    return layer.eval()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_torchlip_spectral_conv_is_1_lipschitz_and_below_our_bounds(stride: int, mode: str) -> None:
    # torchlip multiplies the orthogonalised reshaped kernel by 1/√(⌈k/s⌉²), the sound factor.
    layer = _trained(stride, mode)
    weight = layer.weight.detach()  # type: ignore[operator]
    truth = float(singular_values(layer, 4, (8, 8))[0])  # Oracle: SVD of the dense operator
    assert truth <= 1
    bound = norms.conv_norm(weight, (stride, stride))
    assert truth <= bound <= 1
    assert truth <= float(conv_norm_bound(weight))


def test_maxmin_is_that_of_both_packages() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 8, 5, 4)
    torch.testing.assert_close(MaxMin()(x), OrthogoniumMaxMin()(x))
    # torchlip sorts neighbouring channels upwards: the same pairs, in another order of channels.
    neighbours = torch.stack(x.chunk(2, dim=1), dim=2).flatten(1, 2)
    smaller, larger = torchlip.GroupSort2()(neighbours).unflatten(1, (4, 2)).unbind(2)
    torch.testing.assert_close(MaxMin()(x), torch.cat([larger, smaller], dim=1))
    torch.testing.assert_close(Householder(8)(x), OrthogoniumMaxMin()(x))
