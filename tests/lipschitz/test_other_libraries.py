"""Networks of orthogonium and deel-torchlip, bounded by what their weights are."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from lipdet.certificate import UnknownLipschitz, lipschitz_bound
from tests.certificate.helpers import Apply

with warnings.catch_warnings():
    # Deprecated calls inside the two packages, at import; nothing here can silence them otherwise.
    warnings.simplefilter("ignore")
    from deel import torchlip
    from orthogonium.layers.conv.AOC import AdaptiveOrthoConv2d, AdaptiveOrthoConvTranspose2d
    from orthogonium.layers.custom_activations import MaxMin as OrthogoniumMaxMin
    from orthogonium.layers.linear import OrthoLinear
    from orthogonium.reparametrizers import (
        BatchedIdentity,
        BatchedQROrthogonalization,
        OrthoParams,
    )

SHAPE = (4, 6, 6)


def _observed(network: nn.Module, points: int = 2) -> float:
    """Return the largest norm of the dense Jacobian over random points, by SVD."""
    norms = []
    for _ in range(points):
        x = torch.randn(1, *SHAPE)
        rows = torch.autograd.functional.jacobian(network, x, vectorize=True)
        norms.append(float(torch.linalg.matrix_norm(rows.reshape(-1, x.numel()).double(), 2)))
    return max(norms)


def _torchlip(activation: nn.Module, padding_mode: str = "zeros", kernel: int = 3) -> nn.Module:
    torch.manual_seed(0)
    conv = {"padding": kernel // 2, "padding_mode": padding_mode}
    network = torchlip.Sequential(
        torchlip.SpectralConv2d(4, 6, kernel, **conv),
        activation,
        torchlip.SpectralConv2d(6, 6, 2, stride=2),
        torchlip.GroupSort2(),
        nn.Flatten(),
        torchlip.SpectralLinear(54, 5),
    )
    for layer in network:  # As after a training: no longer orthogonal where they start.
        if hasattr(layer, "parametrizations"):
            nn.init.normal_(layer.parametrizations.weight.original)
    for _ in range(3):
        network(torch.randn(2, *SHAPE))
    return network.eval()


def _orthogonium(params: OrthoParams) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        AdaptiveOrthoConv2d(4, 6, 3, padding=1, ortho_params=params),
        OrthogoniumMaxMin(),
        AdaptiveOrthoConv2d(6, 8, 4, stride=2, padding=1, ortho_params=params),
        OrthogoniumMaxMin(),
        AdaptiveOrthoConvTranspose2d(8, 4, 2, stride=2, ortho_params=params),
        nn.Flatten(),
        OrthoLinear(144, 5, ortho_params=params),
    ).eval()


# Of weights that stay as they are; those of orthogonium's usual choice change with every use.
STEADY = OrthoParams(BatchedIdentity, BatchedQROrthogonalization)
# Each network, and how many times the largest that is observed its bound may be: the norm of a
# chain is below the product of norms, and padding that repeats pixels is bounded apart from its
# kernel.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], float]] = {
    "GroupSort2": (lambda: _torchlip(torchlip.GroupSort2()), 2.5),
    "FullSort": (lambda: _torchlip(torchlip.FullSort()), 2.5),
    "around": (lambda: _torchlip(torchlip.GroupSort2(), "circular"), 4.0),
    "symmetric": (lambda: _torchlip(torchlip.GroupSort2(), "symmetric", 5), 4.0),
    "orthogonium": (lambda: _orthogonium(STEADY), 2.0),
}


@pytest.mark.parametrize("exported", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_other_libraries_are_bounded(name: str, exported: bool) -> None:
    """`orthogonium` and deel-torchlip, before and after `vanilla_export`."""
    build, factor = NETWORKS[name]
    network = build()
    expected = network(torch.ones(2, *SHAPE))
    if exported:
        network = torchlip.vanilla_model(network)
    truth = _observed(network)  # Oracle: SVD of dense Jacobians.
    bound = lipschitz_bound(network, SHAPE)
    assert truth <= bound * (1 + 1e-6) <= factor * truth
    # Bounding leaves a network as it was.
    torch.testing.assert_close(network(torch.ones(2, *SHAPE)), expected)


def test_weights_that_change_with_every_use_are_refused_until_they_are_exported() -> None:
    network = _orthogonium(OrthoParams())
    with pytest.raises(UnknownLipschitz, match=r"weight .* changes with every use.*vanilla_model"):
        lipschitz_bound(network, SHAPE)
    network = torchlip.vanilla_model(network)
    assert _observed(network) <= lipschitz_bound(network, SHAPE) <= 1 + 1e-4


def test_a_parametrised_network_outlives_its_bound() -> None:
    layer = spectral_norm(nn.Conv2d(4, 4, 3)).eval()
    network = nn.Sequential(layer, layer)
    y = network(torch.ones(1, *SHAPE))
    weight = layer.weight.detach().clone()
    assert lipschitz_bound(network, SHAPE) >= _observed(network)
    torch.testing.assert_close(network(torch.ones(1, *SHAPE)), y, rtol=0, atol=0)
    torch.testing.assert_close(layer.weight, weight, rtol=0, atol=0)


def _max_min(x: Tensor) -> Tensor:
    a, b = x.split(2, 1)
    return torch.cat([torch.maximum(a, b), torch.minimum(b, a)], 1)


ROOT2, ROOT3 = math.sqrt(2), math.sqrt(3)
# Near misses join something else than both halves of the same pairs of disjoint parts.
SORTED: dict[str, tuple[Callable[[Tensor], object], float]] = {
    "MaxMin": (_max_min, 1),
    "every other channel": (
        lambda x: torch.stack([torch.max(x[:, ::2], x[:, 1::2]), x[:, ::2].min(x[:, 1::2])], 2),
        1,
    ),
    "two maxima": (
        lambda x: torch.cat([torch.max(x[:, :2], x[:, 2:]), torch.max(x[:, 2:], x[:, :2])], 1),
        ROOT2,
    ),
    "other pairs": (
        lambda x: torch.cat([torch.max(x[:, :2], x[:, 2:]), torch.min(x[:, :2], x[:, 1:3])], 1),
        ROOT3,
    ),
    "other maps": (
        lambda x: torch.cat([torch.max(x, x.flip(1)), torch.min(x, 3 * x.flip(1))], 1),
        math.sqrt(2 + 10),
    ),
    "of itself": (lambda x: torch.cat([torch.max(x, x), torch.min(x, x)], 1), ROOT2),
    "largest": (lambda x: x.amax(1, keepdim=True), 1),
    "largest and smallest": (lambda x: torch.stack([x.max(1)[0], x.min(1).values], 1), 1),
    "one channel's": (
        lambda x: torch.stack([x[:, :1].max(1).values, x[:, :1].min(1).values], 1),
        ROOT2,
    ),
    "sort of an expanded view": (
        lambda x: x.unsqueeze(2).expand(-1, -1, 3, -1, -1).sort(2)[0],
        ROOT3,
    ),
    "sorted down": (lambda x: torch.sort(x, 2, descending=True).values, 1),
    "parts joined again": (lambda x: torch.cat(x.split(3, 1), 1), 1),
    "beside a constant": (lambda x: torch.max(x, torch.ones(4, 6, 6)), 1),
    "weight made of a parameter": (
        lambda x: functional.conv2d(x, 2 * torch.eye(4)[:, :, None, None]),
        2,
    ),
}


@pytest.mark.parametrize("name", SORTED)
def test_what_is_sorted_moves_as_far_as_its_entries(name: str) -> None:
    function, constant = SORTED[name]
    network = Apply(function)
    bound = lipschitz_bound(network, SHAPE)
    assert bound == pytest.approx(constant, rel=1e-6)
    assert _observed(network) <= bound * (1 + 1e-6)


REFUSED: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "kernel of the image": (lambda x: functional.conv2d(x, x[:, :, :3, :3]), "may depend on the"),
    "matrix of the image": (lambda x: functional.linear(x, x[0, 0]), "may depend on the image"),
    "positions": (lambda x: x.sort(1)[1], "Positions"),
    "values and positions": (lambda x: x.sort(1), "Positions"),
    "joined with positions": (lambda x: torch.cat(x.max(1), 1), "Positions"),
    "added positions": (lambda x: x + x.sort(1).indices, "Positions"),
    "over the batch": (lambda x: x.max(0)[0], "mixes images"),
    "over all": (lambda x: x - x.max(), "mixes images"),
    "sorted batch": (lambda x: x.sort(-4)[0], "mixes images"),
    "repeated by a comparison": (lambda x: torch.max(x, x[:, :1]), "repeats entries"),
    "numbers in another type": (lambda x: x.double().sort(1)[0], "no rule"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_jumps_or_depends_on_the_image_is_refused(name: str) -> None:
    function, message = REFUSED[name]
    with pytest.raises(UnknownLipschitz, match=message):
        lipschitz_bound(Apply(function), SHAPE)


def test_a_class_that_only_calls_itself_like_one_of_theirs_is_looked_into() -> None:
    class GroupSort2(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 5 * x

    class SpectralConv2d(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return 7 * super().forward(x)

    conv = SpectralConv2d(4, 4, 1, bias=False)
    nn.init.dirac_(conv.weight)
    network = nn.Sequential(conv, GroupSort2())
    assert lipschitz_bound(network, SHAPE) == pytest.approx(35, rel=1e-6)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("dilation", [1, 2])
def test_transposed_convolutions_have_the_norm_of_their_matrix(
    stride: int, padding: int, dilation: int
) -> None:
    torch.manual_seed(stride)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": 2}
    layer = nn.ConvTranspose2d(4, 6, 3, output_padding=max(stride, dilation) - 1, **options)  # type: ignore[arg-type]
    truth = _observed(layer, 1)  # Oracle: SVD of the dense matrix.
    assert truth <= lipschitz_bound(layer, SHAPE) <= 1.25 * truth


def test_a_branch_on_the_size_is_followed_and_one_on_the_number_of_images_is_not() -> None:
    assert lipschitz_bound(Apply(lambda x: 2 * x if x.shape[2] > 5 else 9 * x), SHAPE) < 2.1
    with pytest.raises(UnknownLipschitz, match="cannot be traced"):
        lipschitz_bound(Apply(lambda x: x if x.shape[0] == 1 else 9 * x), SHAPE)
    # The axis of the images is not the first here, and what is asked for it holds for one image.
    with pytest.raises(UnknownLipschitz):
        lipschitz_bound(Apply(lambda x: x.transpose(0, 1) * x.transpose(0, 1).shape[1]), SHAPE)
