"""Operator-norm bounds are never below the dense truth, and near it; what is no bound is shown."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from lipdet.errors import UnknownLipschitz
from lipdet.layers import L2NormConv2d, UnitNormConv2d, conv_norm_bound, matrix_norm_bound
from lipdet.norms import (
    circular_conv_norm,
    conv_norm,
    gram_norm,
    matrix_norm,
    reshaped_norm_bound,
    sampled_norm,
)
from tests.certificate.helpers import conv, jacobian_norm, response_norm
from tests.layers.helpers import DISTURBANCES, dense_operator, singular_values

TINY = 1 + 1e-8
pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    groups=st.integers(1, 2),
    kernel_size=pairs,
    stride=pairs,
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    size=st.tuples(st.integers(3, 7), st.integers(3, 7)),
    circular=st.booleans(),
    seed=st.integers(0, 999),
)
def test_conv_bound_is_above_the_dense_norm(
    channels: tuple[int, int],
    groups: int,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    padding: tuple[int, int],
    size: tuple[int, int],
    circular: bool,
    seed: int,
) -> None:
    axes = list(zip(size, kernel_size, dilation, padding, strict=True))
    assume(all(n + 2 * p > d * (k - 1) for n, k, d, p in axes))
    assume(not circular or all(p <= n for n, _, _, p in axes))
    torch.manual_seed(seed)
    kernel = torch.randn(groups * channels[0], channels[1], *kernel_size)
    mode = "circular" if circular else "zeros"
    layer = conv(
        kernel, stride=stride, padding=padding, dilation=dilation, groups=groups, padding_mode=mode
    )
    # Oracle: SVD of the dense operator.
    shape = (groups * channels[1], *size)
    truth = jacobian_norm(layer, shape)
    arguments = stride, dilation, groups
    if circular:
        height, width = layer(torch.zeros(1, *shape)).shape[-2:]
        assert truth <= circular_conv_norm(kernel, *arguments, size, (height, width))
    else:
        bound = conv_norm(kernel, *arguments, size)
        assert truth <= bound <= conv_norm(kernel, *arguments) * TINY


@pytest.mark.parametrize(
    ("size", "stride"), [((4, 6), 1), ((4, 6), 2), ((3, 3), 1), ((3, 3), 3), ((2, 5), 1)]
)
def test_circular_bound_is_exact(size: tuple[int, int], stride: int) -> None:
    torch.manual_seed(0)
    # A kernel larger than the image, which wraps around: 5 > 2.
    layer = conv(torch.randn(3, 2, 5, 5), stride=stride, padding=2, padding_mode="circular")
    height, width = layer(torch.zeros(1, 2, *size)).shape[-2:]
    bound = circular_conv_norm(layer.weight, (stride, stride), (1, 1), 1, size, (height, width))
    # Oracle: SVD of the dense operator.
    assert bound == pytest.approx(jacobian_norm(layer, (2, *size)), rel=1e-8)


def test_circular_outputs_that_repeat_are_counted() -> None:
    # A 1×1 kernel with padding 1 on one pixel gives 9 copies of it: norm 3.
    layer = conv(torch.ones(1, 1, 1, 1), padding=1, padding_mode="circular")
    assert jacobian_norm(layer, (1, 1, 1)) == pytest.approx(3)
    assert circular_conv_norm(layer.weight, (1, 1), (1, 1), 1, (1, 1), (3, 3)) == pytest.approx(3)


@pytest.mark.parametrize("shape", [(1, 1, 3, 3), (4, 4, 3, 3), (2, 4, 1, 5), (4, 1, 2, 2)])
def test_gram_iteration_is_within_two_percent_at_eight_steps(shape: tuple[int, ...]) -> None:
    torch.manual_seed(sum(shape))
    kernel = torch.randn(*shape)
    # Oracle: the largest sample of the frequency response on a 128 × 128 grid.
    truth = response_norm(kernel, 128)
    bounds = [gram_norm(kernel, steps) for steps in (1, 2, 4, 8)]
    assert truth <= bounds[-1] <= 1.02 * truth
    assert bounds == sorted(bounds, reverse=True)
    assert truth <= sampled_norm(kernel) <= 1.02 * truth


def test_one_zero_padded_conv_is_within_two_percent() -> None:
    torch.manual_seed(0)
    kernel = torch.randn(2, 1, 3, 3)
    # Oracle: SVD of the dense operator on 24 × 24 pixels.
    truth = jacobian_norm(conv(kernel, padding=1), (1, 24, 24))
    for bound in (
        conv_norm(kernel),
        conv_norm(kernel, image_size=(24, 24)),
        gram_norm(kernel, 8),
    ):
        assert truth <= bound <= 1.02 * truth


def test_grids_too_large_for_exact_samples_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    kernel = torch.randn(3, 3, 3, 3)
    exact = conv_norm(kernel, image_size=(20, 20))
    monkeypatch.setattr("lipdet.norms._MOST_EIGEN_WORK", 0)
    fallback = conv_norm(kernel, image_size=(20, 20))
    assert exact < fallback <= 1.02 * response_norm(kernel)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_extreme_weights_scale_the_bound(scale: float) -> None:
    torch.manual_seed(0)
    kernel = torch.randn(2, 3, 3, 3)
    for bound in (
        conv_norm,
        gram_norm,
        sampled_norm,
        lambda k: conv_norm(k, (2, 1), image_size=(5, 6)),
        lambda k: circular_conv_norm(k, (1, 1), (1, 1), 1, (4, 4), (4, 4)),
        lambda k: matrix_norm(k.flatten(1)),
    ):
        # Oracle: norms are homogeneous; float32 rounds each entry to 6e-8.
        assert bound(kernel * scale) == pytest.approx(scale * bound(kernel), rel=1e-6)
        assert bound(torch.zeros_like(kernel)) == 0.0


@pytest.mark.parametrize("entry", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(entry: float) -> None:
    kernel = torch.ones(2, 2, 3, 3)
    kernel[0, 1, 2, 0] = entry
    for bound in (conv_norm, gram_norm, sampled_norm):
        with pytest.raises(UnknownLipschitz, match="not all finite"):
            bound(kernel)
    with pytest.raises(UnknownLipschitz, match="not all finite"):
        matrix_norm(kernel.flatten(1))


def test_reshaped_spectral_norm_is_no_bound() -> None:
    # The counter-example of theory §2 in its extreme: equal taps add up, 9 against √9.
    kernel = torch.ones(1, 1, 3, 3)
    reshaped = float(torch.linalg.matrix_norm(kernel.flatten(1), 2))
    truth = jacobian_norm(conv(kernel, padding=1), (1, 8, 8))
    assert reshaped == pytest.approx(3)
    assert truth > 2.5 * reshaped
    assert truth <= conv_norm(kernel, image_size=(8, 8))


def test_groups_take_the_maximum() -> None:
    torch.manual_seed(0)
    kernel = torch.randn(4, 2, 3, 3)
    groups = [response_norm(part) for part in kernel.chunk(2)]
    truth = jacobian_norm(conv(kernel, padding=1, groups=2), (4, 8, 8))
    bound = conv_norm(kernel, groups=2)
    assert max(groups) == pytest.approx(bound, rel=0.02)
    assert truth <= bound < math.prod(groups)


def test_aol_with_truncated_lags_is_no_bound() -> None:
    # Row sums over the central 3 × 3 ("same") lags of 5 × 5 that a kernel of ones has: the full sum
    # is 81 = 9², the truncated one (3 + 2 + 2)² = 49, below the truth.
    kernel = torch.ones(1, 1, 3, 3)
    lags = nn.functional.conv2d(kernel, kernel, padding=1).abs()
    truncated = math.sqrt(float(lags.sum()))
    truth = jacobian_norm(conv(kernel, padding=1), (1, 16, 16))
    assert truncated == pytest.approx(7)
    assert truncated < truth <= gram_norm(kernel, 1) == pytest.approx(9)


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
    truth = response_norm(kernel)
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
