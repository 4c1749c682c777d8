"""Padding that repeats pixels, alone and in convolutions, against dense SVDs."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from lipdet.certificate import lipschitz_bound
from tests.certificate.helpers import Apply, conv, jacobian_norm


@pytest.mark.parametrize(
    "layer",
    [
        nn.ReflectionPad2d((1, 2, 3, 0)),
        nn.ReplicationPad2d((3, 0, 1, 1)),
        nn.CircularPad2d((2, 1, 0, 4)),
        Apply(lambda x: functional.pad(x, (1, 2, -1, 3), mode="replicate")),
    ],
)
def test_padding_that_repeats_pixels_has_its_exact_norm(layer: nn.Module) -> None:
    truth = jacobian_norm(layer, (2, 4, 5))  # Oracle: SVD of the dense matrix.
    assert truth > 1.4
    assert truth <= lipschitz_bound(layer, (2, 4, 5)) <= truth * (1 + 1e-5)


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
@pytest.mark.parametrize("padding", [(2, 1), "same"])
def test_a_convolution_that_pads_with_repeated_pixels(mode: str, padding: object) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, (2, 3), padding=padding, padding_mode=mode)  # type: ignore[arg-type]
    truth = jacobian_norm(layer, (2, 6, 5))  # Oracle: SVD of the dense matrix.
    assert truth <= lipschitz_bound(layer, (2, 6, 5)) <= 3 * truth
    # Constant images pass a mean filter unchanged.
    mean = conv(torch.full((1, 1, 3, 3), 1 / 9), padding=1, padding_mode=mode)
    assert 1 <= jacobian_norm(mean, (1, 4, 4)) <= lipschitz_bound(mean, (1, 4, 4))
