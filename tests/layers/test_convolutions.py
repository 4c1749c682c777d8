"""Every convolution is 1-Lipschitz as a dense operator, and orthogonal where it says so."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from lipdet.layers import (
    AOLConv2d,
    BCOPConv2d,
    LipschitzConv2d,
    OrthogonalConv1x1,
    SpectralConv2d,
    dirac_,
    orthogonal_,
)
from tests.layers.helpers import DISTURBANCES, Size, singular_values, train_hard

# Oracle of this file: singular values of the dense operator by SVD; 1 is what the papers prove.
BOUND = 1 + 1e-5
KINDS: list[type[LipschitzConv2d]] = [AOLConv2d, BCOPConv2d, SpectralConv2d]


class Case(NamedTuple):
    channels: Size
    kernel: int | Size
    stride: int | Size
    padding: int | Size | str
    mode: str
    size: Size


# One pair of channels for each shape in turn; all three where padding is zero and where it wraps.
CHANNELS = [(2, 5), (4, 4), (5, 3)]
SHAPES: list[tuple[int | Size, int | Size, int | Size | str, str, Size]] = [
    (3, 1, 1, "zeros", (5, 4)),
    (3, 1, 1, "zeros", (5, 4)),
    (3, 1, 1, "zeros", (5, 4)),
    (3, 1, 1, "circular", (5, 4)),
    (3, 1, 1, "circular", (5, 4)),
    (3, 1, 1, "circular", (5, 4)),
    (1, 1, 0, "zeros", (4, 5)),
    (1, 2, 0, "zeros", (5, 4)),
    (2, 1, "same", "zeros", (4, 5)),
    (2, 1, "same", "circular", (5, 4)),
    (2, 2, 0, "zeros", (4, 6)),
    (2, 2, 1, "zeros", (5, 5)),
    (3, 1, 2, "zeros", (4, 4)),
    (3, 1, 1, "zeros", (1, 6)),
    (3, 1, "same", "circular", (1, 6)),
    (3, 2, 1, "zeros", (5, 6)),
    (3, 2, 1, "circular", (4, 6)),
    (3, 3, 0, "zeros", (6, 3)),
    (3, (2, 1), 1, "zeros", (5, 4)),
    ((1, 3), 1, (0, 1), "zeros", (1, 7)),
    ((3, 1), 1, "same", "circular", (5, 3)),
    (5, 1, 2, "circular", (5, 4)),
    (5, 2, 2, "zeros", (5, 6)),
]
CASES = [Case(CHANNELS[index % 3], *shape) for index, shape in enumerate(SHAPES)]
TRAINED = [CASES[index] for index in (0, 4, 8, 16)]


def _build(kind: type[LipschitzConv2d], case: Case) -> LipschitzConv2d:
    torch.manual_seed(0)
    return kind(
        *case.channels, case.kernel, case.stride, case.padding, bias=False, padding_mode=case.mode
    )


def _values(layer: LipschitzConv2d, case: Case) -> Tensor:
    return singular_values(layer, case.channels[0], case.size)


def _is_orthogonal(case: Case) -> bool:
    """The dense operator must have all singular values 1: what BCOPConv2d's docstring promises."""
    if case.kernel == case.stride and case.padding == 0:
        return True
    return case.mode == "circular" or case.kernel == case.stride == 1


def _check(layer: LipschitzConv2d, case: Case) -> None:
    values = _values(layer, case)
    assert values[0] <= BOUND  # NaN fails too
    if isinstance(layer, BCOPConv2d) and _is_orthogonal(case):
        assert (values - 1).abs().max() <= 1e-5


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_is_1_lipschitz_at_the_start_and_with_any_raw_weights(
    kind: type[LipschitzConv2d], case: Case
) -> None:
    layer = _build(kind, case)
    for initialise in (lambda _: None, dirac_, orthogonal_, *DISTURBANCES.values()):
        initialise(layer)
        _check(layer, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", TRAINED, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_stays_1_lipschitz_in_training(kind: type[LipschitzConv2d], case: Case) -> None:
    layer = _build(kind, case)
    train_hard(layer, case.channels[0], case.size)
    _check(layer, case)
    assert _values(layer, case)[0] > 0.1


@pytest.mark.parametrize("channels", [(1, 1), (1, 6), (7, 3), (32, 32)])
def test_orthogonal_1x1(channels: Size) -> None:
    torch.manual_seed(0)
    layer = OrthogonalConv1x1(*channels)
    for disturb in (orthogonal_, dirac_, *DISTURBANCES.values()):
        disturb(layer)
        matrix = layer.weight.detach()[:, :, 0, 0].double()
        assert (torch.linalg.svdvals(matrix) - 1).abs().max() <= 1e-5


def test_bcop_with_one_channel_is_a_shift() -> None:
    # A single filter whose frequency response has modulus 1 everywhere has a single tap ±1.
    weight = BCOPConv2d(1, 1, 3, padding=1).weight.detach().flatten()
    assert weight.abs().sort().values.tolist() == pytest.approx([0.0] * 8 + [1.0])


def test_spectral_with_kernel_equal_to_stride_is_tight() -> None:
    # Disjoint patches: the norm of the reshaped kernel is the norm of the layer.
    torch.manual_seed(0)
    layer = SpectralConv2d(3, 4, 2, stride=2)
    nn.init.normal_(layer.raw)
    assert 0.97 < singular_values(layer, 3, (4, 6))[0] <= BOUND


def test_lipschitz_bound_covers_the_rounding_of_low_precision() -> None:
    # Oracle: SVD of the dense operator made of the rounded kernel.
    torch.manual_seed(0)
    layer = BCOPConv2d(4, 4, 3, padding=1, padding_mode="circular").to(torch.bfloat16)
    bound = layer.lipschitz_bound()
    plain = layer.folded().float()
    assert 1 + 1e-4 < singular_values(plain, 4, (6, 6))[0] <= bound < 1.1


def test_reflect_padding_exceeds_1_which_is_why_it_is_refused() -> None:
    # theory §2: AOL with reflect padding; a pixel near the border is counted twice.
    torch.manual_seed(0)
    layer = AOLConv2d(1, 1, 3, bias=False)
    nn.init.ones_(layer.raw)
    padded = nn.Sequential(nn.ReflectionPad2d(1), layer)
    assert singular_values(padded, 1, (3, 3))[0] > 1.2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"padding_mode": "reflect"}, "repeats pixels"),
        ({"padding_mode": "replicate"}, "repeats pixels"),
        ({"groups": 2}, "groups=1"),
        ({"dilation": 2}, "dilation=1"),
        ({"padding": -1}, "negative"),
        ({"padding": "full"}, '"same" or "valid"'),
        ({"padding": "same", "stride": 2}, "stride=1"),
        ({"kernel_size": 0}, "at least 1"),
        ({"out_channels": 0}, "at least 1"),
    ],
)
def test_refuses_what_it_cannot_bound(arguments: dict[str, object], words: str) -> None:
    valid = {"in_channels": 4, "out_channels": 4, "kernel_size": 3}
    for kind in KINDS:
        with pytest.raises(ValueError, match=words):
            kind(**{**valid, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stride", "padding", "size"), [(1, 2, (5, 5)), (2, 1, (5, 6)), (2, 1, (6, 5))]
)
def test_refuses_circular_padding_that_repeats_pixels(
    stride: int, padding: int, size: Size
) -> None:
    layer = BCOPConv2d(2, 2, 3, stride, padding, padding_mode="circular")
    with pytest.raises(ValueError, match="circular padding"):
        layer(torch.zeros(1, 2, *size))
