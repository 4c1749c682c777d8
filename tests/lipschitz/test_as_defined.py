"""Networks of torch's and this package's classes alone: what is recorded once, and what is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lipdet.certificate import UnknownLipschitz, lipschitz_bound
from lipdet.config import DetectorConfig
from lipdet.detector import build_detector
from lipdet.detector.ssd import SSD
from lipdet.layers import (
    Abs,
    AOLConv2d,
    BCOPConv2d,
    DisjointMaxPool2d,
    DropChannels,
    Householder,
    L2NormConv2d,
    MaxMin,
    ScaledAvgPool2d,
    SLLBlock,
    SpaceToDepth,
    SpectralConv2d,
    ZeroPadChannels,
)
from lipdet.lipschitz import same_function
from tests.certificate.detectors import small_detector

SHAPE = (4, 6, 6)
NAIVE = "tinier-ssd"

OWN = {
    "aol": lambda: nn.Sequential(AOLConv2d(4, 4, 3, padding=1), MaxMin(), Abs()),
    "bcop": lambda: nn.Sequential(BCOPConv2d(4, 4, 3, padding=1), Householder(4)),
    "spectral": lambda: nn.Sequential(SpectralConv2d(4, 4, 3), ScaledAvgPool2d(2)),
    "l2": lambda: nn.Sequential(L2NormConv2d(4, 4, 3), ZeroPadChannels(6), DropChannels(4)),
    "sll": lambda: nn.Sequential(SLLBlock(4, 3), SpaceToDepth(2), DisjointMaxPool2d(1)),
    "detector": small_detector,
    "naive": lambda: build_detector(DetectorConfig(NAIVE)),
    "orthogonal": lambda: build_detector(DetectorConfig("orthogonal-ssd", image_size=32, width=48)),
    "sll-detector": lambda: build_detector(DetectorConfig("sll-l2", width=4)),
}


@pytest.mark.slow
@pytest.mark.parametrize("build", OWN.values(), ids=OWN)
def test_what_this_package_defines_passes_the_whole_proof(
    monkeypatch: pytest.MonkeyPatch, build: Callable[[], nn.Module]
) -> None:
    module = build().eval()
    shape = SHAPE
    if isinstance(module, SSD):
        shape = (3, module.config.image_size, module.config.image_size)
    found = lipschitz_bound(module, shape)
    monkeypatch.setattr(same_function, "_is_as_defined", lambda _: False)
    assert lipschitz_bound(module, shape) == found


def _hooked() -> nn.Module:
    module = nn.Sequential(nn.ReLU())
    module[0].register_forward_hook(lambda *_: None)
    return module


def _with_attribute() -> nn.Module:
    module = nn.ReLU()
    module.forward = lambda x: x  # type: ignore[method-assign]
    return module


class _Closure(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _closure() -> nn.Module:
    return _Closure(torch.relu)


class _Own(nn.ReLU):
    pass


def _with_parametrization() -> nn.Module:
    return parametrizations.weight_norm(nn.Conv2d(4, 4, 1))


def _named_like_torch_s() -> nn.Module:
    return type("ReLU", (nn.ReLU,), {"__module__": nn.ReLU.__module__})()


@pytest.mark.parametrize(
    "build",
    [
        *(_hooked, _with_attribute, _Own, _with_parametrization, _named_like_torch_s),
        _closure,
        lambda: torch.fx.symbolic_trace(nn.Sequential(nn.ReLU())),
    ],
)
def test_what_may_hide_something_is_proven_as_a_whole(build: Callable[[], nn.Module]) -> None:
    assert same_function._is_as_defined(nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 1)))
    assert not same_function._is_as_defined(build())


@pytest.mark.parametrize("place", [0, 1])
def test_a_softmax_over_the_batch_mixes_images(place: int) -> None:
    layers: list[nn.Module] = [nn.Conv2d(4, 4, 1), nn.ReLU()]
    layers.insert(place, nn.Softmax(dim=0))
    network = nn.Sequential(*layers).eval()
    assert same_function._is_as_defined(network)
    with pytest.raises(UnknownLipschitz, match="other images"):
        lipschitz_bound(network, SHAPE)
