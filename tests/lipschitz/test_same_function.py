"""What a network may do that its traced graph shows otherwise, and that makes no difference."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lipdet.certificate import lipschitz_bound
from lipdet.detector.ssd import SSD
from tests.certificate.detectors import small_detector
from tests.certificate.helpers import Apply, identity_conv, jacobian_norm

SHAPE = (4, 6, 6)


class Sum(nn.Module):
    """x + f(x), written in place where nothing reads what is lost."""

    def __init__(self, add: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.add = add
        self.first, self.second = identity_conv(), identity_conv(2.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.add(self.second(x), x)


HARMLESS: dict[str, tuple[nn.Module, float]] = {
    "identity": (Sum(operator.iadd), 3.0),
    "view": (Sum(lambda y, x: operator.iadd(y.flatten(1), x.flatten(1))), 3.0),
    "function": (Sum(lambda y, x: functional.relu(y, True) + x), 3.0),
    "first": (nn.Sequential(nn.ReLU(inplace=True), identity_conv(2.0)), 2.0),
    "steep": (nn.Sequential(identity_conv(), nn.LeakyReLU(2.0, inplace=True)), 2.0),
    "steep alone": (nn.LeakyReLU(2.0, inplace=True), 2.0),
    "relu6": (nn.Sequential(identity_conv(), nn.ReLU6(inplace=True)), 1.0),
    "hardtanh": (nn.Sequential(identity_conv(), nn.Hardtanh(inplace=True)), 1.0),
    "dropout": (nn.Sequential(identity_conv(3.0), nn.Dropout(inplace=True)), 3.0),
    "behind a view": (nn.Sequential(nn.Linear(6, 6), nn.ReLU(True)), math.nan),
    "factor by item": (Apply(lambda x: torch.tensor(3.0).item() * x), 3.0),
    "constants in place": (Apply(lambda x: x * torch.ones(4, 1, 1).mul_(3)), 3.0),
}


@pytest.mark.parametrize(("network", "constant"), HARMLESS.values(), ids=HARMLESS.keys())
def test_harmless_changes_in_place_are_bounded(network: nn.Module, constant: float) -> None:
    # Oracle: by hand, in the table; SVD of the weights where there are random ones.
    network = network.eval()
    if math.isnan(constant):
        constant = float(torch.linalg.matrix_norm(network[0].weight.detach().double(), 2))
    assert lipschitz_bound(network, SHAPE) == pytest.approx(constant, rel=1e-6)


def test_hooks_that_change_nothing_or_in_the_open_are_part_of_the_bound() -> None:
    network = nn.Sequential(nn.Sequential(identity_conv(3.0)), nn.ReLU())
    for module in (network, network[0][0]):
        module.register_forward_hook(lambda module, x, y: None)
    assert lipschitz_bound(network, SHAPE) == pytest.approx(3.0, rel=1e-6)
    network[0].register_forward_hook(lambda module, x, y: 10 * y)
    assert lipschitz_bound(network, SHAPE) == pytest.approx(30.0, rel=1e-6)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("behind_conv", [True, False])
def test_batch_norm_is_read_as_torch_reads_it(affine: bool, behind_conv: bool) -> None:
    """Torch reads `weight`, not `affine`."""
    norm = nn.BatchNorm2d(4, eps=0.0).eval()
    nn.init.constant_(norm.weight, 10.0)
    norm.affine = affine
    norm.track_running_stats = False
    norm.momentum = None
    network = nn.Sequential(identity_conv(), norm) if behind_conv else norm
    # Oracle: weight / √running_var, dense.
    assert jacobian_norm(network, (4, 2, 2)) == pytest.approx(10.0)
    assert lipschitz_bound(network, (4, 2, 2)) == pytest.approx(10.0, rel=1e-6)


def test_attributes_are_read_when_the_layer_runs() -> None:
    # As torch reads them, whatever they were at construction.
    layer = identity_conv(2.0)
    layer.groups, layer.weight = 2, nn.Parameter(2 * torch.ones(4, 2, 1, 1))
    # Oracle: two blocks [[2, 2], [2, 2]] of norm 4.
    assert lipschitz_bound(layer, SHAPE) == pytest.approx(4.0, rel=1e-6)


def test_a_network_for_single_images_is_bounded() -> None:
    network = nn.Sequential(identity_conv(3.0), nn.Unflatten(0, (1, 1)), nn.Flatten(0, 1))
    with pytest.raises(RuntimeError):
        network(torch.rand(2, *SHAPE))
    assert lipschitz_bound(network, SHAPE) == pytest.approx(3.0, rel=1e-6)


def test_float64_networks_are_proven_too() -> None:
    network = nn.Sequential(identity_conv(3.0), nn.BatchNorm2d(4, eps=0.0), nn.ReLU(True))
    assert lipschitz_bound(network.double().eval(), SHAPE) == pytest.approx(3.0, rel=1e-6)


@pytest.mark.parametrize(
    "rearrange",
    [lambda x: x.transpose(0, 1), lambda x: x.flatten(), lambda x: (x, torch.ones(3, 2))],
    ids=["second axis", "flat", "constant"],
)
def test_images_may_lie_along_any_axis(rearrange: Callable[[Tensor], Any]) -> None:
    assert lipschitz_bound(Apply(rearrange), SHAPE) == pytest.approx(1)


def test_a_subclass_of_a_detector_is_proven() -> None:
    class Renamed(SSD):
        pass

    detector = small_detector()
    detector.__class__ = Renamed
    assert math.isfinite(lipschitz_bound(detector, (3, 8, 8)))
