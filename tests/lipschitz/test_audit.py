"""The audit: factors known by hand, and that they multiply to the certified bound."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lipdet.certificate import lipschitz_bound
from lipdet.certificate.constants.outputs import bounds_of_outputs, propagate_detector
from lipdet.checkpoint import load_detector
from lipdet.lipschitz import audit, propagate
from lipdet.lipschitz.audit import Audit


def product(found: Audit) -> float:
    return found.shrinking * math.prod(one.factor or 1.0 for one in found.findings)


def scaled_identity(factor: float) -> nn.Conv2d:
    conv = nn.Conv2d(3, 3, 1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(factor * torch.eye(3)[:, :, None, None])
    return conv


class KnownFactors(nn.Module):
    """Each line enlarges the bound by what its comment says."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = scaled_identity(3.0)
        self.norm = nn.BatchNorm2d(3, eps=0.0)
        nn.init.constant_(self.norm.weight, 2.5)
        self.reflecting = nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect", bias=False)
        nn.init.dirac_(self.reflecting.weight)
        self.pool = nn.MaxPool2d(3, stride=2)
        self.slope = nn.LeakyReLU(1.5)
        self.last = scaled_identity(0.5)

    def forward(self, images: Tensor) -> Tensor:
        x = (images - 0.5) / 0.25  # 4
        x = self.norm(self.conv(x))  # 3 and 2.5
        x = self.reflecting(x)  # √2 along each axis: two of the pixels are doubled
        x = self.slope(self.pool(x))  # √(⌈3/2⌉²) = 2 and 1.5
        result: Tensor = self.last(
            x + torch.flip(x, [3])
        )  # 2, and a factor of 1/2 that is no finding
        return result


def test_every_factor_is_found() -> None:
    net = KnownFactors().eval()
    found = audit(propagate(net, (3, 16, 16), past_obstacles=True))
    # Oracle: by hand, in the comments above.
    expected = {
        ("", "truediv"): 4.0,
        ("conv", "Conv2d"): 3.0,
        ("norm", "BatchNorm2d"): 2.5,
        ("reflecting", "Conv2d"): 2.0,
        ("pool", "MaxPool2d"): 2.0,
        ("", "add"): 2.0,
        ("slope", "LeakyReLU"): 1.5,
    }
    assert {(one.name, one.kind): one.factor for one in found.findings} == pytest.approx(
        expected, rel=1e-5
    )
    factors = [one.factor for one in found.findings]
    assert factors == sorted(factors, key=lambda factor: -(factor or 0))
    assert found.shrinking == pytest.approx(0.5, rel=1e-5)
    # Oracle: the certificate, computed forwards.
    assert found.bound == pytest.approx(lipschitz_bound(net, (3, 16, 16)), rel=1e-6)
    assert product(found) == pytest.approx(found.bound, rel=1e-9)
    causes = {one.name or one.kind: one.cause + one.instead for one in found.findings}
    for name, words in (
        ("truediv", "pixels are scaled by up to 4"),
        ("norm", "BatchNorm scales by up to 2.5"),
        ("reflecting", 'padding_mode="reflect"'),
        ("pool", "3×3 windows at stride 2 overlap"),
        ("pool", "DisjointMaxPool2d"),
        ("conv", "OrthogonalConv1x1"),
        ("add", "SLLBlock"),
    ):
        assert words in causes[name]


def test_a_layer_of_norm_one_is_no_finding() -> None:
    net = nn.Sequential(scaled_identity(1.0), nn.ReLU(), nn.MaxPool2d(2)).eval()
    found = audit(propagate(net, (3, 8, 8), past_obstacles=True))
    assert found.findings == ()
    assert found.bound == pytest.approx(1.0, rel=1e-6)


class Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.ones(1, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.value


@pytest.mark.parametrize(("net", "bound"), [(nn.Identity(), 1.0), (Constant(), 0.0)])
def test_what_computes_nothing_has_a_bound(net: nn.Module, bound: float) -> None:
    found = audit(propagate(net.eval(), (3, 8, 8), past_obstacles=True))
    assert (found.bound, found.findings) == (bound, ())


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.activation = nn.Hardsigmoid()
        self.conv = scaled_identity(3.0)

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = self.conv(self.activation(images))
        return x * torch.sigmoid(x)


def test_what_has_no_bound_is_named_first() -> None:
    found = audit(propagate(Gated().eval(), (3, 8, 8), past_obstacles=True))
    assert found.bound is None
    assert [(one.name, one.kind, one.factor) for one in found.findings[:2]] == [
        ("activation", "Hardsigmoid", None),
        ("", "mul", None),
    ]
    assert "gates" in found.findings[1].instead
    # What comes behind is still looked at.
    [conv] = found.findings[2:]
    assert conv.name == "conv"
    assert conv.factor == pytest.approx(3.0, rel=1e-6)


@pytest.mark.slow
def test_naive() -> None:
    detector = load_detector("naive").detector
    propagation = propagate_detector(detector, past_obstacles=True)
    found = audit(propagation)
    # Oracle: the published architecture; pixels go to [-1, 1], and two pools of 3×3 at stride 2.
    twos = [one.name for one in found.findings if one.factor == pytest.approx(2.0, rel=1e-6)]
    assert sorted(twos) == ["backbone.fire10.0", "backbone.fire8.13", "normalize"]
    assert found.bound is not None
    assert product(found) == pytest.approx(found.bound, rel=1e-9)
    # All outputs together are bounded by √(number of maps) times the largest.
    bounds = bounds_of_outputs(detector, propagation)
    assert found.bound <= bounds.joint <= math.sqrt(8) * found.bound * (1 + 1e-6)
    assert bounds.joint > float(bounds.offsets.max())
    assert bounds.logits.shape == (1700, 11)
    assert len(bounds.features) == 4
    for constants in (bounds.logits, bounds.offsets, torch.tensor(bounds.features)):
        assert (constants > 0).all()
        assert constants.isfinite().all()
