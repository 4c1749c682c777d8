"""Numbers at the ends of their range: no bound falls below the truth, and NaN decides nothing."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from lipdet.certificate import UnknownLipschitz, lipschitz_bound, output_bounds
from lipdet.certificate.constants.outputs import head_convolution
from lipdet.certificate.constants.rounding import measured_rounding, proven_rounding
from lipdet.norms import (
    circular_conv_norm,
    conv_norm,
    gram_norm,
    matrix_norm,
    sampled_norm,
)
from tests.certificate.detectors import small_detector
from tests.certificate.helpers import Apply, conv

SHAPE = (2, 5, 5)
TINY_AND_HUGE = [5e-324, 1e-310, 1e-170, 1e-45, 1.0, 1e20, 1e38, 1e170, 1e300]


def _scaled(scale: float, size: int = 1) -> nn.Module:
    """Return a convolution in float64 that multiplies by a scale."""
    kernel = torch.zeros(2, 2, size, size, dtype=torch.float64)
    kernel[:, :, size // 2, size // 2] = scale * torch.eye(2, dtype=torch.float64)
    layer = nn.Conv2d(2, 2, size, padding=size // 2, bias=False).double()
    layer.weight.data = kernel
    return layer


@pytest.mark.parametrize("scale", TINY_AND_HUGE)
def test_norms_of_tiny_and_huge_weights(scale: float) -> None:
    kernel = torch.full((2, 2, 1, 1), scale, dtype=torch.float64)
    # Oracle: a matrix of equal entries, of norm 2 · scale, in exact arithmetic.
    truth = 2 * Fraction(scale)
    bounds = [
        matrix_norm(kernel[:, :, 0, 0]),
        conv_norm(kernel),
        conv_norm(kernel, image_size=(4, 4)),
        circular_conv_norm(kernel, (1, 1), (1, 1), 1, (4, 4), (4, 4)),
        gram_norm(kernel),
        sampled_norm(kernel),
    ]
    for bound in bounds:
        assert truth <= Fraction(bound)
        assert bound <= max(1.02 * float(truth), 1e-300)


@pytest.mark.parametrize("scale", [1e-45, 1.4e-39, 1e20, 1e38])
def test_norms_of_weights_at_the_ends_of_float32(scale: float) -> None:
    layer = conv(torch.full((2, 2, 1, 1), scale))
    truth = 2 * float(layer.weight.detach()[0, 0, 0, 0])
    assert truth <= lipschitz_bound(layer, SHAPE) <= truth * (1 + 1e-6)


@pytest.mark.parametrize(
    "scales", [(1e-170, 1e-170, 1e300), (1e-310, 1e-310, 1e300, 1e300), (1e-200, 0.0, 1e300)]
)
def test_products_that_vanish_in_between(scales: tuple[float, ...]) -> None:
    truth = Fraction(1)
    for scale in scales:
        truth *= Fraction(scale)
    bound = lipschitz_bound(nn.Sequential(*map(_scaled, scales)), SHAPE)
    # Oracle: multiples of the identity, multiplied in exact arithmetic.
    assert Fraction(bound) >= truth
    assert truth or bound == 0


def test_factors_that_vanish_in_between() -> None:
    def function(x: Tensor) -> Tensor:
        return (x * 1e-200 * 1e-200 / 1e-300) * 1e200

    # Oracle: 1e-200 · 1e-200 · 1e300 · 1e200 = 1e100.
    network = nn.Sequential(_scaled(1.0), Apply(function))
    assert lipschitz_bound(network, SHAPE) >= 1e100
    # In float32 the divisor is 0.
    with pytest.raises(UnknownLipschitz, match="finite"):
        lipschitz_bound(network.float(), SHAPE)


@pytest.mark.parametrize("behind", [True, False])
def test_a_batch_norm_that_vanishes_into_its_convolution(behind: bool) -> None:
    norm = nn.BatchNorm2d(2, eps=0.0).double().eval()
    nn.init.constant_(norm.weight, 1e-200)
    layers = [_scaled(1e-200), norm, _scaled(1e300)]
    bound = lipschitz_bound(nn.Sequential(*(layers if behind else layers[::-1])), SHAPE)
    assert Fraction(bound) >= Fraction(1e-200) * Fraction(1e-200) * Fraction(1e300)


@pytest.mark.parametrize("scale", [1e-310, 1e-170])
def test_outputs_of_tiny_heads_have_constants(scale: float) -> None:
    layer = nn.Conv2d(2, 4, 3, padding=1).double()
    torch.manual_seed(0)
    nn.init.uniform_(layer.weight, scale / 2, scale)
    norms = head_convolution([layer], "head", 2, (2, 2)).norms()
    # Oracle: the 2 · 4 taps inside are scale / 2 or more.
    assert bool((norms >= math.sqrt(8) * scale / 2).all())


def test_outputs_of_tiny_detectors_have_constants() -> None:
    detector = small_detector().double()
    for head in detector.heads:
        for weight in head.parameters():
            weight.data *= 1e-170 if weight.ndim == 4 else 1.0
    bounds = output_bounds(detector)
    for constants in (bounds.logits, bounds.offsets, bounds.offsets_joint):
        assert bool((constants > 0).all())
    assert bool((bounds.offsets_joint >= bounds.offsets.amax(dim=1) / (1 + 1e-6)).all())


NOT_FINITE = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("value", NOT_FINITE)
def test_what_is_not_finite_is_refused(value: float) -> None:
    norm, without_deviation = nn.BatchNorm2d(2).eval(), nn.BatchNorm2d(2).eval()
    nn.init.constant_(norm.weight, value)
    nn.init.constant_(without_deviation.running_var, -1.0)
    linear = nn.Linear(5, 5)
    nn.init.constant_(linear.weight, value)
    zero_and_infinite = nn.Sequential(_scaled(0.0), Apply(lambda x: x * value))
    modules = [
        *(norm, without_deviation),
        nn.Sequential(_scaled(1.0).float(), norm),
        linear,
        conv(torch.full((2, 2, 1, 1), value)),
        nn.LeakyReLU(value),
        Apply(lambda x: x * value),
        Apply(lambda x: x * torch.tensor([1.0, value]).reshape(2, 1, 1)),
        zero_and_infinite,
    ]
    for module in modules:
        with pytest.raises(UnknownLipschitz, match=r"finite|range of float64"):
            lipschitz_bound(module, SHAPE)


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("in_bias", [True, False])
def test_outputs_that_are_not_finite_have_no_rounding(value: float, in_bias: bool) -> None:
    """A difference that is NaN is not passed over."""
    detector = small_detector()
    layer = detector.heads[1].localisation
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
    (layer.bias if in_bias else layer.weight).data[0] = value
    with pytest.raises(UnknownLipschitz, match="finite"):
        measured_rounding(detector, torch.rand(1, 3, 8, 8))


class Listed(nn.Sequential):
    def forward(self, images: Tensor) -> list[Tensor]:
        return [super().forward(images)]


def test_weights_that_vanish_into_a_head_are_refused() -> None:
    detector = small_detector().double()
    for weight in detector.heads[0].parameters():
        weight.data *= 1e-170
    with pytest.raises(UnknownLipschitz, match=r"heads\.0\.classification.*too small"):
        output_bounds(detector)


def test_numbers_are_not_rounded_to_float32() -> None:
    # Oracle: the number itself; in float32 it is smaller.
    assert lipschitz_bound(Apply(lambda x: x * 0.7), SHAPE) >= 0.7


def test_sums_of_more_terms_than_the_precision_holds_have_no_proven_rounding() -> None:
    detector = small_detector()
    detector.backbone = Listed(nn.Conv2d(3, 400, 1, 2))
    detector.normalize = nn.Identity()
    del detector.heads[1]
    head = detector.heads[0]
    head.classification, head.localisation = (nn.Conv2d(400, k, 3, padding=1) for k in (6, 8))
    # 3602 roundings of half precision, of 2⁻¹¹ each, are more than 1.
    with pytest.raises(UnknownLipschitz, match="3602"):
        proven_rounding(detector, torch.float16)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("factor", [0.1, 0.229, 0.7, 1.1, 2.7, -1.7, 58.395])
def test_numbers_are_taken_as_large_as_torch_may_round_them(
    dtype: torch.dtype, factor: float
) -> None:
    # Oracle: exact fractions of the number as each type of an operand or an accumulator holds it.
    held = [Fraction(factor)]
    held += [Fraction(float(torch.tensor(factor, dtype=one))) for one in (dtype, torch.float32)]
    slope, largest = abs(max(held, key=abs)), 1 / abs(min(held, key=abs))

    def bound(network: nn.Module) -> Fraction:
        identity = nn.Conv2d(1, 1, 1, bias=False, dtype=dtype)
        nn.init.ones_(identity.weight)
        return Fraction(lipschitz_bound(nn.Sequential(identity, network), (1, 2, 2)))

    assert bound(nn.LeakyReLU(factor)) >= max(1, slope)
    assert bound(Apply(lambda x: factor * x)) >= slope
    assert bound(Apply(lambda x: x / factor)) >= largest
    assert bound(Apply(lambda x: x / torch.tensor(factor, dtype=torch.float64))) >= largest
