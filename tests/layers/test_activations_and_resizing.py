"""Activations, pooling and changes of channels: exact Jacobians and clear refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lipdet.layers import (
    Abs,
    DisjointMaxPool2d,
    DropChannels,
    Householder,
    MaxMin,
    ScaledAvgPool2d,
    SpaceToDepth,
    ZeroPadChannels,
)
from tests.layers.helpers import dense_operator, jacobian


def _random_householder() -> Householder:
    layer = Householder(4)
    nn.init.uniform_(layer.theta, -10, 10)
    return layer


@pytest.mark.parametrize("layer", [MaxMin(), Abs(), Householder(4), _random_householder()])
def test_activations_have_orthogonal_jacobians(layer: nn.Module) -> None:
    torch.manual_seed(0)
    for _ in range(5):
        values = torch.linalg.svdvals(jacobian(layer, torch.randn(1, 4, 3, 2)))
        assert (values - 1).abs().max() < 1e-6


def test_maxmin_sorts_the_halves() -> None:
    x = torch.tensor([[1.0, 5.0, 3.0, 2.0]])
    assert MaxMin()(x).tolist() == [[3.0, 5.0, 1.0, 2.0]]  # pairs (1, 3) and (5, 2) by hand


def test_householder_is_continuous() -> None:
    # 1-Lipschitz across the line where the branch changes: a norm of differences, not Jacobians.
    torch.manual_seed(0)
    layer, x = _random_householder(), torch.randn(500, 4)
    y = x + 0.5 * torch.randn_like(x)
    assert ((layer(x) - layer(y)).norm(dim=1) <= (x - y).norm(dim=1) * (1 + 1e-5)).all()


@pytest.mark.parametrize("layer", [MaxMin(), Householder(2)])
def test_odd_channels_are_refused(layer: nn.Module) -> None:
    with pytest.raises(ValueError, match="even"):
        layer(torch.zeros(1, 3, 2, 2))
    with pytest.raises(ValueError, match="even"):
        Householder(3)


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (SpaceToDepth(2), (4, 6)),
        (ScaledAvgPool2d(2), (4, 6)),
        (ScaledAvgPool2d((1, 3)), (1, 6)),
        (ZeroPadChannels(5), (3, 2)),
        (DropChannels(2), (3, 2)),
    ],
)
def test_linear_layers_have_singular_values_of_1(layer: nn.Module, size: tuple[int, int]) -> None:
    # Permutations, orthonormal rows and (co)projections: the smaller side has only ones.
    values = torch.linalg.svdvals(dense_operator(layer, 3, size))
    assert (values - 1).abs().max() < 1e-6


def test_scaled_average_drops_what_fills_no_window() -> None:
    values = torch.linalg.svdvals(dense_operator(ScaledAvgPool2d(2), 1, (5, 5)))
    assert values.shape == (4,)
    assert (values - 1).abs().max() < 1e-6


def test_max_pool_over_disjoint_windows() -> None:
    torch.manual_seed(0)
    layer = DisjointMaxPool2d(2, padding=1)
    x = torch.randn(1, 2, 5, 5)
    assert torch.linalg.matrix_norm(jacobian(layer, x), 2) <= 1 + 1e-6
    torch.testing.assert_close(layer(x), nn.MaxPool2d(2, padding=1)(x))


def test_overlapping_max_pool_reaches_2_and_is_refused() -> None:
    # theory §2: one pixel that lies in four 3 x 3 windows at stride 2 changes four outputs.
    x, y = torch.zeros(2, 1, 1, 5, 5)
    y[0, 0, 2, 2] = 1
    pool = nn.MaxPool2d(3, 2)
    assert float((pool(y) - pool(x)).norm()) == 2
    with pytest.raises(ValueError, match="overlap"):
        DisjointMaxPool2d(3, 2)
    with pytest.raises(ValueError, match="overlap"):
        DisjointMaxPool2d((2, 3), (2, 2))


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (SpaceToDepth(2), "not divisible"),
        (ZeroPadChannels(2), "cannot be padded"),
        (DropChannels(4), "cannot be kept"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(layer: nn.Module, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        layer(torch.zeros(1, 3, 3, 4))
