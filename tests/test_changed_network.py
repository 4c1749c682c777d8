"""`Detector.certify` notices that its network has changed."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules import module as torch_module
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from lipdet import Detector
from lipdet.boxes import SigmoidScores
from lipdet.checkpoint import LoadedDetector
from lipdet.config import PRESETS
from lipdet.detector import SSD, build_detector
from lipdet.errors import UnknownLipschitz
from lipdet.layers import MaxMin
from lipdet.types import Canvas

pytestmark = pytest.mark.slow


@pytest.fixture
def detector() -> Detector:
    """Of code that is the package's alone."""
    torch.manual_seed(0)
    config = replace(PRESETS["certified-small"].detector, canvas=Canvas(32, 32))
    return Detector(LoadedDetector("small", build_detector(config).eval(), {}))


def _first(network: SSD) -> nn.Parameter:
    return next(network.heads[0].classification.parameters())


def _steeper(network: SSD) -> None:
    with torch.no_grad():
        for parameter in network.heads.parameters():
            parameter.mul_(2.0)


def _in_place(network: SSD) -> None:
    _first(network).data.mul_(1.5)  # which autograd does not count


def _loaded(network: SSD) -> None:
    network.load_state_dict({name: 0.5 * value for name, value in network.state_dict().items()})


def _hotter(network: SSD) -> None:
    network.scores = SigmoidScores(2.0)


def _other_boxes(network: SSD) -> None:
    network.default_boxes += 1.0


def _other_overlap(network: SSD) -> None:
    network.nms_iou = 0.9


def _precise(network: SSD) -> None:
    network.double()


def test_a_change_is_noticed(detector: Detector) -> None:
    """No certificate of weights as they were."""
    before = detector._verifier
    assert detector._verifier is before
    for change in (
        *(_steeper, _in_place, _loaded, _hotter, _other_boxes, _other_overlap, _precise),
    ):
        change(detector.network)
        after = detector._verifier
        assert after is not before, change
        before = after
    # Oracle: a detector that never had another network.
    fresh = Detector(LoadedDetector("fresh", detector.network, {}))._verifier
    assert torch.equal(after.bounds.logits, fresh.bounds.logits)
    assert after.decoder.scores == fresh.decoder.scores
    assert after.decoder.nms_iou == fresh.decoder.nms_iou
    assert torch.equal(after.decoder.default_boxes, fresh.decoder.default_boxes)
    assert after.rounding_known == fresh.rounding_known


class Acting(nn.Module):
    """A backbone whose maps go through a function."""

    def __init__(self, backbone: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.backbone, self.function = backbone, function

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.function(one) for one in self.backbone(images)]


def _forward(self: Acting, images: Tensor) -> list[Tensor]:
    return [10 * one for one in self.backbone(images)]


SETTINGS = types.ModuleType("settings")


@cache
def _factor() -> float:
    return float(SETTINGS.factor)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: SETTINGS.factor * x,
        lambda x: (lambda y: SETTINGS.factor * y)(x),
        lambda x: _factor() * x,
    ],
    ids=["module", "nested", "cached"],
)
def test_what_code_of_the_user_s_depends_on_is_looked_at_at_every_call(
    detector: Detector, function: Callable[[Tensor], Tensor]
) -> None:
    detector.network.backbone = Acting(detector.network.backbone, function)
    found = []
    for factor in (1.0, 10.0):
        SETTINGS.factor = factor  # type: ignore[attr-defined]
        _factor.cache_clear()
        found.append(detector._verifier.bounds.features)
    assert found[1] == pytest.approx([10 * one for one in found[0]])


def test_another_method_of_a_class_is_noticed(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector.network.backbone = Acting(detector.network.backbone, lambda x: x)
    before = detector._verifier.bounds.features
    monkeypatch.setattr(Acting, "forward", _forward)
    after = detector._verifier.bounds.features
    assert after == pytest.approx([10 * one for one in before])


def _ten_times(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *arguments, **options: 10 * function(*arguments, **options)


def test_replaced_code_of_torch_or_this_package_is_noticed(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = detector._verifier
    for home, name in (
        (MaxMin, "forward"),
        (functional, "conv2d"),
        (torch, "relu"),
        (Tensor, "relu"),
    ):
        monkeypatch.setattr(home, name, _ten_times(getattr(home, name)))
        with pytest.raises(UnknownLipschitz):
            _ = detector._verifier
        monkeypatch.undo()
    assert torch.equal(detector._verifier.bounds.logits, before.bounds.logits)


class Louder(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        y = func(*args, **(kwargs or {}))
        return 10 * y if func is functional.conv2d else y


class Deeper(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        y = func(*args, **(kwargs or {}))
        return 10 * y if func is torch.ops.aten.convolution.default else y


@contextmanager
def hooked() -> Iterator[None]:
    handle = torch_module.register_module_forward_pre_hook(lambda _, x: (10 * x[0],))
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("known", [False, True], ids=["first", "later"])
@pytest.mark.parametrize(
    ("meanwhile", "words"),
    [
        (hooked, "hooks of all modules"),
        (Louder, "mode Louder"),
        (Deeper, "mode Deeper"),
        (lambda: torch.autocast("cpu", torch.bfloat16), "autocast"),
    ],
)
def test_nothing_is_certified_while_torch_computes_something_else(
    detector: Detector,
    meanwhile: Callable[[], AbstractContextManager[Any]],
    words: str,
    known: bool,
) -> None:
    picture = Image.new("RGB", (32, 32), "gray")
    before = detector._verifier if known else None
    with meanwhile(), pytest.raises(UnknownLipschitz, match=words):
        detector.certify(picture, crop=(0, 0, 32, 32))
    with torch.device("cpu"):  # a mode, too, but of where tensors are made
        after = detector._verifier
    assert before is None or torch.equal(after.bounds.logits, before.bounds.logits)


def test_another_precision_of_float32_is_noticed(detector: Detector) -> None:
    before, usual = detector._verifier, torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert detector._verifier is not before
    finally:
        torch.set_float32_matmul_precision(usual)
