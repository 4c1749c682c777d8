"""Gains per layer, and that the layers here start without losing the signal."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lipdet.layers import (
    AOLConv2d,
    BCOPConv2d,
    CPLBlock,
    MaxMin,
    SLLBlock,
    SpectralConv2d,
    dirac_,
    gain_profile,
    orthogonal_,
)


def _scale(factor: float) -> nn.Linear:
    layer = nn.Linear(3, 3)
    layer.weight.data = factor * torch.eye(3)
    return layer


def test_gains_of_a_chain_of_scalings() -> None:
    # Oracle: by hand, multiples of the identity.
    profile = gain_profile(nn.Sequential(_scale(2), _scale(0.25)), torch.randn(4, 3))
    assert [row.name for row in profile.layers] == ["0", "1"]
    assert [row.forward for row in profile.layers] == pytest.approx([2, 0.25])
    assert [row.backward for row in profile.layers] == pytest.approx([2, 0.25])
    assert [row.forward_total for row in profile.layers] == pytest.approx([2, 0.5])
    assert [row.backward_total for row in profile.layers] == pytest.approx([0.5, 0.25])
    assert (profile.forward, profile.backward) == pytest.approx((0.5, 0.5))
    assert "Linear" in str(profile)


class Branches(nn.Module):
    """Two branches, an in-place layer, a shared layer and a nested output."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = _scale(2)
        self.relu = nn.ReLU(inplace=True)
        self.unused = _scale(7)

    def forward(self, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        x = self.relu(x + 100)
        return {"out": (self.twice(self.twice(x)), x)}


def test_branches_shared_layers_and_in_place_layers() -> None:
    # Oracle: by hand; the ReLU is the identity on positive inputs, whatever the branches add.
    model, x = Branches(), torch.rand(4, 3)
    profile = gain_profile(model, x)
    assert [row.name for row in profile.layers] == ["relu", "twice", "twice"]
    assert [row.forward for row in profile.layers] == pytest.approx([1, 2, 2], rel=1e-4)
    assert [row.backward for row in profile.layers] == pytest.approx([1, 2, 2], rel=1e-4)
    assert profile.forward == pytest.approx(17**0.5, rel=1e-4)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def _stack(build: Callable[[], nn.Module], activation: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(*[nn.Sequential(build(), activation()) for _ in range(10)])


def _backward(model: nn.Module) -> float:
    return gain_profile(model, torch.randn(2, 8, 20, 20)).backward


def test_ten_stacked_layers_keep_the_gradient_at_the_start() -> None:
    # theory §3: what is orthogonal at each point keeps a gradient; such a residual block reflects.
    torch.manual_seed(0)
    bcop = _stack(lambda: BCOPConv2d(8, 8, 3, padding=1), MaxMin)
    assert _backward(bcop) > 0.8
    dirac_(bcop)
    assert _backward(bcop) == pytest.approx(1, abs=1e-4)
    aol = _stack(lambda: AOLConv2d(8, 8, 3, padding=1), MaxMin)
    assert _backward(aol) == pytest.approx(1, abs=1e-4)
    orthogonal_(aol)
    assert _backward(aol) == pytest.approx(1, abs=1e-4)
    for block in (SLLBlock, CPLBlock):
        for hidden in (8, 12):
            stack = _stack(lambda kind=block, h=hidden: kind(8, h), nn.Identity)  # type: ignore[misc]
            assert _backward(stack) > 0.8


def test_what_vanishes_is_seen_to_vanish() -> None:
    # theory §3
    torch.manual_seed(0)
    aol = _stack(lambda: AOLConv2d(8, 8, 3, padding=1), MaxMin)
    for module in aol.modules():
        if isinstance(module, AOLConv2d):
            nn.init.normal_(module.raw)
    assert _backward(aol) < 1e-4
    assert _backward(_stack(lambda: SpectralConv2d(8, 8, 3, padding=1), nn.ReLU)) < 1e-4
