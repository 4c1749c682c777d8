"""Networks of torch's and this package's classes alone: what is recorded once, and what is not."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from lipdet.certificate import UnknownLipschitz, lipschitz_bound
from lipdet.config import PRESETS, DetectorConfig
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
    activations,
)
from lipdet.lipschitz import same_function
from lipdet.types import Canvas
from tests.certificate.detectors import small_detector
from tests.certificate.helpers import Apply

SHAPE = (4, 6, 6)

OWN = {
    "aol": lambda: nn.Sequential(AOLConv2d(4, 4, 3, padding=1), MaxMin(), Abs()),
    "bcop": lambda: nn.Sequential(BCOPConv2d(4, 4, 3, padding=1), Householder(4)),
    "spectral": lambda: nn.Sequential(SpectralConv2d(4, 4, 3), ScaledAvgPool2d(2)),
    "l2": lambda: nn.Sequential(L2NormConv2d(4, 4, 3), ZeroPadChannels(6), DropChannels(4)),
    "sll": lambda: nn.Sequential(SLLBlock(4, 3), SpaceToDepth(2), DisjointMaxPool2d(1)),
    "detector": small_detector,
    "orthogonal": lambda: build_detector(
        replace(PRESETS["certified-small"].detector, canvas=Canvas(32, 32))
    ),
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
        shape = (3, *module.config.canvas)
    found = lipschitz_bound(module, shape)
    monkeypatch.setattr(same_function, "is_as_defined", lambda _: False)
    assert lipschitz_bound(module, shape) == found


def _hooked() -> nn.Module:
    module = nn.Sequential(nn.ReLU())
    module[0].register_forward_hook(lambda *_: None)
    return module


def _with_attribute() -> nn.Module:
    module = nn.ReLU()
    module.forward = lambda x: x  # type: ignore[method-assign]
    return module


class _Own(nn.ReLU):
    pass


@pytest.mark.parametrize(
    "build",
    [
        *(_hooked, _with_attribute, _Own),
        lambda: parametrizations.weight_norm(nn.Conv2d(4, 4, 1)),
        # Named like torch's.
        type("ReLU", (nn.ReLU,), {"__module__": nn.ReLU.__module__}),
        lambda: Apply(torch.relu),
        lambda: torch.fx.symbolic_trace(nn.Sequential(nn.ReLU())),
    ],
)
def test_what_may_hide_something_is_proven_as_a_whole(build: Callable[[], nn.Module]) -> None:
    assert same_function.is_as_defined(nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 1)))
    assert not same_function.is_as_defined(build())


@pytest.mark.parametrize("place", [0, 1])
def test_a_softmax_over_the_batch_mixes_images(place: int) -> None:
    layers: list[nn.Module] = [nn.Conv2d(4, 4, 1), nn.ReLU()]
    layers.insert(place, nn.Softmax(dim=0))
    network = nn.Sequential(*layers).eval()
    assert same_function.is_as_defined(network)
    with pytest.raises(UnknownLipschitz, match="other images"):
        lipschitz_bound(network, SHAPE)


def _dirac() -> nn.Module:
    conv = nn.Conv2d(4, 4, 1, bias=False)
    nn.init.dirac_(conv.weight)
    return nn.Sequential(conv, nn.ReLU(), MaxMin(), nn.BatchNorm2d(4, eps=0.0)).eval()


def _louder_with_gradients(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that it names itself like the original."""

    @functools.wraps(original)
    def loud(*arguments: Any, **options: Any) -> Any:
        y = original(*arguments, **options)
        return 10 * y if torch.is_grad_enabled() and type(y) is Tensor else y

    return loud


METHODS: list[tuple[type, str]] = [
    *((nn.ReLU, "forward"), (nn.Conv2d, "_conv_forward"), (nn.Sequential, "forward")),
    *((nn.Module, "__call__"), (nn.Module, "_call_impl"), (nn.ReLU, "__call__")),
    *((MaxMin, "forward"), (nn.Module, "__getattr__"), (nn.BatchNorm2d, "_check_input_dim")),
]


@pytest.mark.parametrize("wrap", [_louder_with_gradients, torch.no_grad()], ids=["wraps", "torch"])
@pytest.mark.parametrize(("kind", "method"), METHODS)
def test_a_replaced_method_of_a_class_is_seen(
    monkeypatch: pytest.MonkeyPatch,
    kind: type,
    method: str,
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]],
) -> None:
    network = _dirac()
    assert same_function.is_as_defined(network)
    loud = _louder_with_gradients(getattr(kind, method))
    # A decorator of torch's own hides the file of what it wraps.
    monkeypatch.setattr(kind, method, wrap(loud), raising=False)
    assert not same_function.is_as_defined(network)


@pytest.mark.parametrize(("kind", "method"), METHODS[:-1])
def test_a_replaced_method_that_depends_on_modes_is_refused(
    monkeypatch: pytest.MonkeyPatch, kind: type, method: str
) -> None:
    network = _dirac()
    monkeypatch.setattr(kind, method, _louder_with_gradients(getattr(kind, method)), raising=False)
    with pytest.raises(UnknownLipschitz):
        lipschitz_bound(network, SHAPE)


def test_a_property_in_place_of_a_weight_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    network = _dirac()

    def weight(conv: nn.Conv2d) -> Tensor | None:
        found = conv._parameters["weight"]
        return 10 * found if found is not None and torch.is_grad_enabled() else found

    monkeypatch.setattr(nn.Conv2d, "weight", property(weight), raising=False)
    with pytest.raises(UnknownLipschitz):
        lipschitz_bound(network, SHAPE)


@pytest.mark.parametrize(
    ("home", "name", "replacement"),
    [
        *((one, "relu", None) for one in (functional, torch, Tensor)),
        (functional, "conv2d", None),
        (activations, "_halves", None),
        (functional, "relu", functional.leaky_relu),
        (torch, "relu", torch.neg),
        (Tensor, "relu", Tensor.neg),
        (activations, "torch", types.SimpleNamespace(relu=torch.neg, cat=torch.cat)),
    ],
)
def test_nothing_is_proven_with_replaced_functions(
    monkeypatch: pytest.MonkeyPatch, home: Any, name: str, replacement: object
) -> None:
    network = _dirac()
    replacement = replacement or _louder_with_gradients(getattr(home, name))
    monkeypatch.setattr(home, name, replacement)
    with pytest.raises(UnknownLipschitz, match="is replaced"):
        lipschitz_bound(network, SHAPE)


def test_replaced_defaults_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional.leaky_relu, "__defaults__", (9.0, False))
    with pytest.raises(UnknownLipschitz, match=r"torch\.nn\.functional\.leaky_relu is replaced"):
        lipschitz_bound(nn.ReLU(), SHAPE)


class Parameters(dict[str, Any]):
    def __getitem__(self, name: str) -> Any:
        found = super().__getitem__(name)
        return 10 * found if name == "weight" and torch.is_grad_enabled() else found


class Modules(dict[str, Any]):
    def values(self) -> Any:
        found = list(super().values())
        return found * 2 if torch.is_grad_enabled() else found


def test_dictionaries_of_other_classes_are_seen() -> None:
    for name, kind in (("_parameters", Parameters), ("_modules", Modules)):
        network = nn.Sequential(nn.LeakyReLU(3.0), nn.Conv2d(4, 4, 1)).eval()
        owner = network[1] if name == "_parameters" else network
        vars(owner)[name] = kind(vars(owner)[name])
        with pytest.raises(UnknownLipschitz):
            lipschitz_bound(network, SHAPE)
