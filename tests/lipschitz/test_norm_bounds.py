"""Norm bounds are never below the truth and not far above it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lipdet.layers import L2NormConv2d, UnitNormConv2d, conv_norm_bound, matrix_norm_bound
from lipdet.norms import reshaped_norm_bound
from tests.layers.helpers import DISTURBANCES, dense_operator, singular_values


def _true_conv_norm(kernel: Tensor) -> float:
    """Oracle: SVD of the frequency response on a grid of 64 x 64 (a lower bound within 1 %)."""
    response = torch.fft.fft2(kernel.double(), s=(64, 64)).permute(2, 3, 0, 1)
    return float(torch.linalg.svdvals(response).max())


@pytest.mark.parametrize("shape", [(1, 1), (3, 8), (8, 3), (6, 6)])
def test_matrix_bound(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    for matrix in (
        torch.randn(shape),
        torch.randn(shape[0], 1) @ torch.randn(1, shape[1]),
        torch.nn.init.orthogonal_(torch.empty(shape)),
        1e20 * torch.randn(shape),
        1e-20 * torch.randn(shape),
    ):
        truth = float(torch.linalg.matrix_norm(matrix.double(), 2))
        assert truth <= matrix_norm_bound(matrix) <= 1.02 * truth


@pytest.mark.parametrize("seed", range(10))
def test_conv_bound_holds_between_the_samples(seed: int) -> None:
    torch.manual_seed(seed)
    sides = torch.randint(1, 6, (2,)).tolist()
    channels = torch.randint(1, 5, (2,)).tolist()
    kernel = torch.randn(*channels, *sides)
    truth = _true_conv_norm(kernel)
    dense = nn.Conv2d(channels[1], channels[0], tuple(sides), padding=2, bias=False)
    dense.weight.data = kernel
    zero_padded = float(singular_values(dense, channels[1], (6, 5))[0])
    for oversampling, loose in ((2, 2.2), (4, 1.25), (16, 1.03)):
        bound = float(conv_norm_bound(kernel, oversampling, squarings=8))
        assert max(truth, zero_padded) <= bound <= loose * truth


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (2, 2), (5, 2), (1, 1)])
def test_reshaped_bound(size: int, stride: int) -> None:
    torch.manual_seed(size)
    for _ in range(5):
        conv = nn.Conv2d(2, 3, size, stride, padding=size // 2, bias=False)
        truth = singular_values(conv, 2, (7, 6))[0]
        assert truth <= reshaped_norm_bound(conv.weight, (stride, stride))


@pytest.mark.parametrize(
    ("channels", "kernel", "stride"),
    [((2, 6), 1, 1), ((4, 4), 2, 2), ((6, 2), 3, 1), ((2, 6), 3, 2), ((4, 4), (1, 5), 1)],
)
def test_l2norm_bound_is_above_the_dense_norm(
    channels: tuple[int, int], kernel: int | tuple[int, int], stride: int
) -> None:
    torch.manual_seed(0)
    layer = L2NormConv2d(*channels, kernel, stride, bias=False)
    for disturb in (lambda _: None, lambda m: nn.init.uniform_(m.raw), *DISTURBANCES.values()):
        disturb(layer)
        truth = float(singular_values(layer, channels[0], (7, 8))[0])
        assert truth <= layer.lipschitz_bound() * (1 + 1e-6)
        assert layer.weight.isfinite().all()
    nn.init.uniform_(layer.raw)
    # Positive filters add up: the layer is far from 1-Lipschitz, and says so.
    assert layer.lipschitz_bound() > 1.2


def test_head_constants_are_those_of_the_dense_rows() -> None:
    torch.manual_seed(0)
    head = UnitNormConv2d(3, 4, 3, padding=1)
    nn.init.normal_(head.raw)
    head.bias.data.normal_()  # type: ignore[union-attr]
    rows = dense_operator(head, 3, (4, 5)).reshape(4, 4, 5, -1)
    norms = rows.norm(dim=-1)
    # Oracle: the norm of a row is the constant of that scalar output; the whole filter fits inside.
    torch.testing.assert_close(norms.amax(dim=(1, 2)), torch.ones(4).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("disturb", DISTURBANCES.values(), ids=DISTURBANCES.keys())
def test_head_constants_hold_for_any_raw_weights(disturb: Callable[[nn.Module], None]) -> None:
    torch.manual_seed(0)
    head = UnitNormConv2d(3, 4, 3, padding=1)
    disturb(head)
    rows = dense_operator(head, 3, (4, 5)).reshape(4 * 4 * 5, -1)
    assert (rows.norm(dim=1) <= 1 + 1e-6).all()


def test_head_refuses_wrapped_features() -> None:
    with pytest.raises(ValueError, match="twice"):
        UnitNormConv2d(3, 4, 3, padding=1, padding_mode="circular")
