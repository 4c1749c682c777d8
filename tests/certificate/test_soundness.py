"""What a user may do to a network so that a bound of its parts would not hold for the whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lipdet.certificate import UnknownLipschitz, lipschitz_bound
from lipdet.detector.ssd import SSD, Head, _per_box
from lipdet.errors import InputError
from lipdet.layers import AOLConv2d, BCOPConv2d, FoldedResidual, SLLBlock, fold
from lipdet.types import RawOutput
from tests.certificate.detectors import small_detector
from tests.certificate.helpers import Apply, jacobian_norm


class Named(nn.Module):
    """A layer under a name that is also a method of tensors."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, nn.Conv2d(3, 4, 3))

    def forward(self, x: Tensor) -> object:
        return self.get_submodule(self.name)(x), x.shape


@pytest.mark.parametrize("name", ["size", "dim", "numel"])
def test_a_layer_named_like_a_question_about_shapes_counts(name: str) -> None:
    torch.manual_seed(0)
    network = Named(name)
    layer = network.get_submodule(name)
    # Oracles: SVD of the dense Jacobian, and the same layer alone.
    assert jacobian_norm(layer, (3, 5, 5)) <= lipschitz_bound(network, (3, 5, 5))
    assert lipschitz_bound(network, (3, 5, 5)) == lipschitz_bound(layer, (3, 5, 5))


class LoudConv(AOLConv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 10 * super().forward(x)


class LoudBlock(SLLBlock):
    def forward(self, x: Tensor) -> Tensor:
        return 10 * super().forward(x)


def _hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda module, arguments, y: 10 * y)
    return layer


def _pre_hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_pre_hook(lambda module, arguments: (10 * arguments[0],))
    return layer


def _replaced(layer: nn.Module) -> nn.Module:
    original = layer.forward
    layer.forward = lambda x: 10 * original(x)
    return layer


TIMES_TEN: dict[str, Callable[[], nn.Module]] = {
    "convolution subclass": lambda: LoudConv(3, 3, 1),
    "block subclass": lambda: LoudBlock(3),
    "hook": lambda: _hooked(BCOPConv2d(3, 3, 1)),
    "pre-hook": lambda: _pre_hooked(BCOPConv2d(3, 3, 1)),
    "instance forward": lambda: _replaced(BCOPConv2d(3, 3, 1)),
}


@pytest.mark.parametrize("build", TIMES_TEN.values(), ids=TIMES_TEN.keys())
def test_a_constructed_layer_that_computes_something_else_is_refused(
    build: Callable[[], nn.Module],
) -> None:
    network = nn.Sequential(nn.Identity(), build())
    with pytest.raises(ValueError, match=r'at "1" cannot be folded'):
        fold(network)
    with pytest.raises(UnknownLipschitz, match=r'at "1" cannot be folded'):
        lipschitz_bound(network, (3, 5, 5))


class Untrue(AOLConv2d):
    """Folds into something else than it computes."""

    def forward(self, x: Tensor) -> Tensor:
        return 10 * super().forward(x)

    def folded(self) -> nn.Conv2d:
        return super().folded()


def test_the_graph_is_compared_with_the_module_before_folding() -> None:
    with pytest.raises(UnknownLipschitz, match="computes something else"):
        lipschitz_bound(Untrue(3, 3, 1), (3, 5, 5))


def test_hooks_of_the_whole_network_are_refused() -> None:
    # The hook does nothing at the image that the graph is compared at.
    network = nn.Sequential(nn.ReLU())
    network.register_forward_hook(lambda module, arguments, y: y if y.max() < 5 else 10 * y)
    with pytest.raises(UnknownLipschitz, match="reads values"):
        lipschitz_bound(network, (3, 5, 5))


def test_hooks_inside_a_folded_block_are_refused() -> None:
    block = fold(SLLBlock(3))
    assert isinstance(block, FoldedResidual)
    _hooked(block.outer)
    with pytest.raises(UnknownLipschitz, match=r"something else.*aten\.mul"):
        lipschitz_bound(nn.Sequential(block), (3, 5, 5))


class LoudDetector(SSD):
    def forward(self, images: Tensor) -> RawOutput:
        return super().forward(10 * images)


class LoudHead(Head):
    def forward(self, features: Tensor) -> RawOutput:
        return super().forward(10 * features)


def _of_class(detector: SSD) -> None:
    detector.__class__ = LoudDetector


def _with_head_of_class(detector: SSD) -> None:
    detector.heads[0].__class__ = LoudHead


def _with_hooked_classification(detector: SSD) -> None:
    classification = detector.heads[0].classification
    assert isinstance(classification, nn.Sequential)
    _hooked(classification)


LOUDER: dict[str, tuple[Callable[[SSD], object], str]] = {
    "detector class": (_of_class, "the detector"),
    "detector hook": (_pre_hooked, "the detector"),
    "detector forward": (_replaced, "the detector"),
    "head class": (_with_head_of_class, r"heads\.0"),
    "head hook": (lambda detector: _pre_hooked(detector.heads[1]), r"heads\.1"),
    "hook in a head": (_with_hooked_classification, r"heads\.0\.classification"),
}


@pytest.mark.parametrize("change", LOUDER.values(), ids=LOUDER.keys())
def test_a_detector_that_computes_something_else_is_refused(
    change: tuple[Callable[[SSD], object], str],
) -> None:
    make_louder, name = change
    detector = small_detector()
    make_louder(detector)
    with pytest.raises(UnknownLipschitz, match=name):
        lipschitz_bound(detector, (3, 8, 8))


def test_the_parts_of_a_detector_are_compared_with_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The detector reorders its boxes in a function that its parts do not run.
    monkeypatch.setattr("lipdet.detector.ssd._per_box", lambda maps, n: 10 * _per_box(maps, n))
    with pytest.raises(UnknownLipschitz, match="than its parts show"):
        lipschitz_bound(small_detector(), (3, 8, 8))


def test_a_detector_is_bounded_for_its_own_image_size_only() -> None:
    with pytest.raises(InputError, match=r"\(3, 8, 8\)"):
        lipschitz_bound(small_detector(), (3, 16, 16))


REPEATING: dict[str, Callable[[Tensor], object]] = {
    "clamp": lambda x: torch.clamp(x[:, :1, :1, :1], min=torch.full((1, 3, 8, 8), -5.0)),
    "method": lambda x: x[:, :1].clamp(max=torch.full((1, 8, 1, 1), 5.0)),
    "clip": lambda x: torch.clip(x[:, :1], torch.zeros(1, 8, 1, 1)),
    "clamp_min": lambda x: torch.clamp_min(x[:, :1], torch.zeros(1, 8, 1, 1)),
    "clamp_max": lambda x: x[:, :1].clamp_max(torch.zeros(1, 8, 1, 1)),
    "tensor_split": lambda x: torch.cat(x.tensor_split([6, 1], 1), 1),
}


@pytest.mark.parametrize("function", REPEATING.values(), ids=REPEATING.keys())
def test_what_repeats_entries_is_refused(function: Callable[[Tensor], object]) -> None:
    # Oracle: the dense Jacobian, of norm above 1 where every step alone has slopes of at most 1.
    assert jacobian_norm(Apply(function), (8, 2, 2)) > 1.4
    with pytest.raises(UnknownLipschitz):
        lipschitz_bound(Apply(function), (8, 2, 2))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.cat(x.chunk(2, 1) + x.chunk(2, 1), 1),
        lambda x: torch.cat(x.chunk(2, 1) * 2, 1),
        lambda x: torch.cat([*x.chunk(4, 1), x.chunk(4, 1)[2]], 1),
    ],
)
def test_parts_that_come_several_times_count_as_often(function: Callable[[Tensor], Tensor]) -> None:
    bound = lipschitz_bound(Apply(function), (8, 2, 2))
    assert 1.4 < jacobian_norm(Apply(function), (8, 2, 2)) <= bound
